//! Where the tests find what `cargo xtask test` has built: the `laneway` program and the plugins.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use laneway_testing::target_dir;

/// The `laneway` program, as `cargo xtask test` says. A bare `cargo test` takes what is where it builds.
const PROGRAM: &str = "LANEWAY_BUILT_PROGRAM";

/// The program of `cargo xtask`, likewise.
const XTASK: &str = "LANEWAY_BUILT_XTASK";

/// The directory of the plugins, likewise.
const PLUGINS: &str = "LANEWAY_BUILT_PLUGINS";

/// The workspace's folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// The directory that cargo builds into.
///
/// # Panics
/// If cargo does not tell.
#[must_use]
pub fn target() -> PathBuf {
    target_dir(&root()).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The `laneway` program.
///
/// # Panics
/// If it is not built.
#[must_use]
pub fn laneway() -> PathBuf {
    program(PROGRAM, "laneway")
}

/// The program of `cargo xtask`, as a command in the workspace's folder.
///
/// # Panics
/// If it is not built.
#[must_use]
pub fn xtask() -> Command {
    let mut command = Command::new(program(XTASK, "xtask"));
    // As `cargo xtask` would start it.
    command.current_dir(root()).env("CARGO_MANIFEST_DIR", root().join("xtask"));
    command
}

fn program(variable: &str, name: &str) -> PathBuf {
    let name = format!("{name}{}", env::consts::EXE_SUFFIX);
    built(env::var_os(variable).map_or_else(|| target().join("debug").join(name), PathBuf::from))
}

/// A plugin by its name, such as `publish-http`.
///
/// # Panics
/// If it is not built.
#[must_use]
pub fn plugin(name: &str) -> PathBuf {
    let plugins = env::var_os(PLUGINS).map_or_else(|| target().join("plugins"), PathBuf::from);
    built(plugins.join(format!("{name}.wasm")))
}

fn built(path: PathBuf) -> PathBuf {
    assert!(path.is_file(), "{} is missing; `cargo xtask test` builds it and runs the tests", path.display());
    path
}
