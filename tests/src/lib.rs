//! Where the tests find what `cargo xtask test` has built: the `laneway` program and the plugins.

use std::path::{Path, PathBuf};

/// The workspace's folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// The `laneway` program.
///
/// # Panics
/// If it is not built.
#[must_use]
pub fn laneway() -> PathBuf {
    built(target().join("debug/laneway"))
}

/// A plugin by its name, such as `publish-http`.
///
/// # Panics
/// If it is not built.
#[must_use]
pub fn plugin(name: &str) -> PathBuf {
    built(target().join("plugins").join(format!("{name}.wasm")))
}

fn built(path: PathBuf) -> PathBuf {
    assert!(path.is_file(), "{} is missing; `cargo xtask test` builds it and runs the tests", path.display());
    path
}
