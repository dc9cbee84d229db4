//! Where this checkout is, and cargo, which builds and tests it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// The root of the checkout.
pub fn root() -> Result<PathBuf> {
    // Asked at run time, so that a checkout may be moved after it was built.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").context("start this as `cargo xtask`")?;
    let root = Path::new(&manifest).parent().context("xtask is not in a workspace")?;
    Ok(root.to_owned())
}

/// The directory of the programs that `cargo build` makes: the one that this program is in.
pub fn programs() -> Result<PathBuf> {
    let this = env::current_exe().context("could not find this program")?;
    Ok(this.parent().context("this program is in no directory")?.to_owned())
}

/// A cargo command in the root of the checkout.
pub fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root()?);
    Ok(command)
}

/// Runs a command to its end; an unsuccessful end is an error.
pub fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let name = Path::new(&program).file_name().unwrap_or(program.as_ref()).to_string_lossy().into_owned();
    let first = command.get_args().next().unwrap_or_default().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("could not run {program}"))?;
    ensure!(status.success(), "`{name} {first}` ended with {status}");
    Ok(())
}

/// Builds the workspace's programs, which the demo and the tests run. All of them at once: dependencies then have the
/// same features as in the tests, and are built once.
pub fn build_programs() -> Result<()> {
    succeed(&mut cargo(&["build", "--locked", "--workspace", "--bins"])?)
}

/// The path of a built program.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = programs()?.join(name).with_extension(env::consts::EXE_EXTENSION);
    if !path.is_file() {
        bail!("{} is not there after the build", path.display());
    }
    Ok(path)
}
