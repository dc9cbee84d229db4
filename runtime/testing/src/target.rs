//! Where cargo puts what it builds, for all that starts it or uses its work.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use serde_json::Value;

/// The directory that cargo builds a workspace into. Cargo itself is asked, because the environment
/// (`CARGO_TARGET_DIR`) and any of its configurations (`build.target-dir`) may say which.
///
/// # Errors
/// If cargo cannot be run, or finds no workspace there.
pub fn target_dir(workspace: &Path) -> anyhow::Result<PathBuf> {
    static KNOWN: Mutex<Option<HashMap<PathBuf, PathBuf>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(found) = known.get(workspace) {
        return Ok(found.clone());
    }
    let found = ask(workspace)?;
    known.insert(workspace.to_owned(), found.clone());
    Ok(found)
}

fn ask(workspace: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        // Where it stands decides which configurations it reads, and what a relative path is relative to.
        .current_dir(workspace)
        .stdin(Stdio::null())
        .output()
        .context("failed to run cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata answered no JSON")?;
    let found = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(found.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_directory_is_what_a_configuration_says() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("Cargo.toml", "[package]\nname = \"x\"\nedition = \"2024\"\n");
        write("src/lib.rs", "");
        write(".cargo/config.toml", "[build]\ntarget-dir = \"elsewhere\"\n");
        let found = target_dir(folder.path()).unwrap();
        // The environment comes before a configuration, and a relative path is the workspace's.
        let wanted = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "elsewhere".into());
        assert_eq!(found, folder.path().canonicalize().unwrap().join(wanted));
        assert!(target_dir(Path::new("/")).is_err(), "there is no workspace");
    }
}
