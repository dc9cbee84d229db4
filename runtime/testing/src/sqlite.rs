//! Throw-away SQLite databases.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

/// The path of a database file that does not exist yet, in a directory of its own: a database in WAL mode has files
/// beside it. The directory goes when this is dropped.
#[derive(Debug)]
pub struct TempFile {
    path: PathBuf,
    _directory: TempDir,
}

impl TempFile {
    /// Where the database is to be made.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the directory for a throw-away database.
///
/// # Errors
/// If the directory cannot be made.
pub fn temp_file() -> anyhow::Result<TempFile> {
    let directory = tempfile::Builder::new()
        .prefix("laneway-sqlite-")
        .tempdir()
        .context("failed to make a directory for a throw-away SQLite database")?;
    Ok(TempFile { path: directory.path().join("laneway.db"), _directory: directory })
}
