//! The one place that chooses between the databases.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use laneway_core::{Store, StoreError};

use crate::postgres::{self, PostgresOptions, PostgresStore};
use crate::sqlite::{self, SqliteOptions, SqliteStore};

/// What a migration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// Schema version before; 0 if there was none.
    pub from: i64,
    /// Schema version now.
    pub to: i64,
}

/// A storage address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStorageUrl {
    /// Neither of the known schemes.
    #[error("storage url has an unknown scheme; use `sqlite://PATH` or `postgres://USER@HOST/DATABASE`")]
    UnknownScheme,
    /// SQLite with settings behind the file's name, as other programs read them.
    #[error("storage url has a `?`; settings of SQLite are not read from it: use `sqlite://PATH`")]
    Settings,
    /// SQLite without a file.
    #[error("storage url names no file; use `sqlite://PATH`, such as `sqlite://laneway.db`")]
    NoPath,
}

/// Where messages are stored.
#[derive(Clone)]
pub enum Storage {
    /// A file on this machine.
    Sqlite(SqliteOptions),
    /// A server.
    Postgres(PostgresOptions),
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An address may carry a password.
        f.write_str(self.kind())
    }
}

impl Storage {
    /// Reads `sqlite://PATH` or `postgres://...`.
    ///
    /// # Errors
    /// [`InvalidStorageUrl`] says which form is expected.
    pub fn parse(url: &str) -> Result<Self, InvalidStorageUrl> {
        if let Some(path) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) {
            if path.is_empty() {
                return Err(InvalidStorageUrl::NoPath);
            }
            if path.contains('?') {
                return Err(InvalidStorageUrl::Settings);
            }
            Ok(Self::Sqlite(SqliteOptions::new(PathBuf::from(path))))
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Ok(Self::Postgres(PostgresOptions::new(url.to_owned())))
        } else {
            Err(InvalidStorageUrl::UnknownScheme)
        }
    }

    /// `sqlite` or `postgres`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }

    /// Opens the database. A SQLite file that is missing or holds no tables of ours is made ready; a PostgreSQL
    /// database must have been migrated.
    ///
    /// # Errors
    /// [`StoreError`] says whether the database is out of reach, older, newer, or not ours.
    pub async fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::Sqlite(options) => Arc::new(SqliteStore::open(options.clone()).await?),
            Self::Postgres(options) => Arc::new(PostgresStore::open(options.clone()).await?),
        })
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] as for [`Storage::open`], but for an older schema.
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        self.migrate_up_to(None).await
    }

    /// Brings the schema up to date, or up to version `last`, as a program of that version would: so tests make the
    /// database of an earlier program.
    ///
    /// # Errors
    /// As for [`Storage::migrate`].
    pub async fn migrate_up_to(&self, last: Option<i64>) -> Result<Migrated, StoreError> {
        match self {
            Self::Sqlite(options) => sqlite::migrate(options.clone(), last).await,
            Self::Postgres(options) => postgres::migrate(options.clone(), last).await,
        }
    }

    /// Position in the write-ahead log, in bytes; `Ok(None)` where the database does not tell.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be reached.
    pub async fn wal_position(&self) -> Result<Option<u64>, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(None),
            Self::Postgres(options) => postgres::wal_position(options).await.map(Some),
        }
    }
}
