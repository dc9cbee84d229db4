//! Which file is open. Whoever puts another one at its path does not change that: SQLite goes on with the one it has.
//!
//! Then nobody sees what is written, or worse: a program that opens the new file finds the old one's `-wal` beside it, and
//! takes its pages for the new file's. So from then on nothing more is written.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use laneway_core::StoreError;

/// What SQLite adds to the file's path for the files beside it.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// A file by its number on its device, which no rename changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// The database's file and those beside it, as they were opened.
pub(super) struct OpenFile(Vec<(PathBuf, Identity)>);

impl OpenFile {
    /// Notes what is at the path now. To be called with the file open and looked at, when the files beside it are there.
    pub(super) fn of(path: &Path) -> Self {
        // SQLite follows links, and puts the others beside the file itself.
        let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let beside = BESIDE.map(|ending| {
            let mut name: OsString = file.clone().into();
            name.push(ending);
            PathBuf::from(name)
        });
        let all = std::iter::once(path.to_owned()).chain(beside);
        Self(all.filter_map(|path| identity(&path).ok().flatten().map(|identity| (path, identity))).collect())
    }

    /// # Errors
    /// [`StoreError::Exchanged`] if another file is at one of the paths, or none.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        for (path, opened) in &self.0 {
            let what = match identity(path) {
                Ok(Some(found)) if found == *opened => continue,
                Ok(Some(_)) => "was replaced by another file",
                Ok(None) => "was moved or removed",
                // What cannot be looked at may be there: SQLite finds out.
                Err(_) => continue,
            };
            return Err(StoreError::Exchanged(format!(
                "{} {what} while this process had it open; stop all that use the database, put the right files in \
                 place (a database that is copied in comes without `-wal` and `-shm` of the old one) and start again",
                path.display()
            )));
        }
        Ok(())
    }
}

/// `None` if there is no such file, or only an open one that no folder names any more.
fn identity(path: &Path) -> Result<Option<Identity>, std::io::Error> {
    match std::fs::metadata(path) {
        Ok(found) if found.nlink() == 0 => Ok(None),
        Ok(found) => Ok(Some(Identity { device: found.dev(), inode: found.ino() })),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use laneway_core::{NewMessage, Store, Topic};

    use super::super::{SqliteOptions, SqliteStore};
    use super::*;

    async fn enqueue(store: &SqliteStore) -> Result<(), StoreError> {
        store.enqueue(&[NewMessage::new(Topic::parse("a").unwrap(), "{}")]).await.map(drop)
    }

    /// Opens a database, lets `exchange` do something to its folder, and answers the error of the next write.
    async fn error_after(exchange: impl FnOnce(&Path)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(SqliteOptions::new(directory.path().join("test.db"))).await.unwrap();
        enqueue(&store).await.unwrap();
        enqueue(&store).await.unwrap();
        exchange(directory.path());
        match enqueue(&store).await {
            Err(StoreError::Exchanged(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn nothing_is_written_to_a_file_that_is_no_longer_at_its_path() {
        let file = |folder: &Path, name: &str| folder.join(name);
        let replaced = error_after(|folder| {
            std::fs::copy(file(folder, "test.db"), file(folder, "new.db")).unwrap();
            std::fs::rename(file(folder, "new.db"), file(folder, "test.db")).unwrap();
        });
        assert!(replaced.await.contains("test.db was replaced"));
        let moved = error_after(|folder| std::fs::rename(file(folder, "test.db"), file(folder, "old.db")).unwrap());
        assert!(moved.await.contains("test.db was moved or removed"));
        let removed = error_after(|folder| std::fs::remove_file(file(folder, "test.db")).unwrap());
        assert!(removed.await.contains("test.db was moved or removed"));
        for name in ["test.db-wal", "test.db-shm"] {
            let removed = error_after(|folder| std::fs::remove_file(file(folder, name)).unwrap()).await;
            assert!(removed.contains(&format!("{name} was moved or removed")), "{removed}");
        }
    }

    #[tokio::test]
    async fn a_link_that_names_another_file_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let (link, data) = (directory.path().join("link.db"), directory.path().join("data"));
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(data.join("one.db"), &link).unwrap();
        let store = SqliteStore::open(SqliteOptions::new(&link)).await.unwrap();
        enqueue(&store).await.unwrap();
        std::fs::copy(data.join("one.db"), data.join("two.db")).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(data.join("two.db"), &link).unwrap();
        assert!(matches!(enqueue(&store).await, Err(StoreError::Exchanged(_))));
    }
}
