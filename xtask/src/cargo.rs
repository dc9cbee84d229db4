//! Where this checkout is, and cargo, which builds and tests it.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Beginnings of the variables that `cargo run` sets for the package that it runs.
const OF_RUN: [&str; 5] =
    ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];

/// The root of the checkout.
pub fn root() -> Result<PathBuf> {
    // Asked at run time, so that a checkout may be moved after it was built.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").context("start this as `cargo xtask`")?;
    let root = Path::new(&manifest).parent().context("xtask is not in a workspace")?;
    Ok(root.to_owned())
}

/// The directory that cargo builds into: `target`, unless the user has it elsewhere.
pub fn target() -> Result<PathBuf> {
    laneway_testing::target_dir(&root()?)
}

/// A cargo command in the root of the checkout.
pub fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root()?);
    // What `cargo run` says of xtask itself. Build scripts look at these, so that all that depends on theirs would be
    // built again whenever the user calls cargo without xtask in between.
    for (name, _) in env::vars_os() {
        let of_run = |name: &str| OF_RUN.iter().any(|of_run| name.starts_with(of_run));
        if name.to_str().is_some_and(of_run) {
            command.env_remove(&name);
        }
    }
    Ok(command)
}

/// Runs a command to its end; an unsuccessful end is an error.
pub fn succeed(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command.status().with_context(|| format!("could not run {name}"))?;
    ensure!(status.success(), "`{name}` ended with {status}");
    Ok(())
}

/// Program and first argument of a command.
fn name(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let program = Path::new(&program).file_name().unwrap_or(program.as_ref()).to_string_lossy();
    let first = command.get_args().next().unwrap_or_default().to_string_lossy();
    format!("{program} {first}").trim_end().to_owned()
}

/// Programs that were built, by name.
pub struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    /// Where a program is.
    pub fn path(&self, name: &str) -> Result<&Path> {
        let path = self.0.get(name).with_context(|| format!("cargo built no program `{name}`"))?;
        Ok(path)
    }
}

/// Builds the workspace's programs, which the demo and the tests run. All of them at once: dependencies then have the
/// same features as in the tests, and are built once.
pub fn build_programs() -> Result<Programs> {
    build(&["--workspace", "--bins"])
}

/// Builds programs, and asks cargo where they are: that depends on profile, target and configuration.
pub fn build(arguments: &[&str]) -> Result<Programs> {
    let mut cargo = cargo(&["build", "--locked", "--message-format=json-render-diagnostics"])?;
    let output = cargo.args(arguments).stderr(Stdio::inherit()).output().context("could not run cargo")?;
    ensure!(output.status.success(), "`{}` ended with {}", name(&cargo), output.status);
    Ok(Programs(String::from_utf8_lossy(&output.stdout).lines().filter_map(built_program).collect()))
}

/// Name and file of a program, if that is what a line of cargo's output tells of.
fn built_program(line: &str) -> Option<(String, PathBuf)> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some((line["target"]["name"].as_str()?.to_owned(), line["executable"].as_str()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_where_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"laneway"},"executable":"/x/debug/laneway"}"#;
        assert_eq!(built_program(line), Some(("laneway".to_owned(), "/x/debug/laneway".into())));
        let library = r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}"#;
        assert_eq!(built_program(library), None);
        assert_eq!(built_program("   Compiling laneway"), None);
    }
}
