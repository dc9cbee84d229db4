//! The migrations of one database: in which order they run, and which programs can work with what they made.
//!
//! A migration is either *closing* or an *addition*. A program that does not know a closing one is refused. A program
//! that does not know an addition works on: whoever writes an addition sees to it that every statement of older programs
//! still does what it did. So nodes can be upgraded one after the other, and older ones can be started again meanwhile.
//! Each kind is recorded in a table of its own, since the first programs look only into the one of the closing kind.

use laneway_core::StoreError;
use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};

/// Versions of closing migrations; all others are additions.
const CLOSING: [i64; 2] = [1, 2];

/// All migrations of a database that this program knows.
pub(crate) struct Migrations {
    closing: Migrator,
    additions: Migrator,
}

/// The migrations that a database has.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Newest version of the closing kind; 0 if there is none.
    pub closing: i64,
    /// Versions of additions.
    pub additions: Vec<i64>,
}

impl Found {
    /// Newest version of all; 0 if there is none.
    pub fn newest(&self) -> i64 {
        self.additions.iter().copied().fold(self.closing, i64::max)
    }
}

impl Migrations {
    /// Sorts migrations by kind. Each kind is recorded in its table.
    pub fn new(all: &Migrator, closing_table: &'static str, additions_table: &'static str) -> Self {
        let (closing, additions) =
            all.iter().cloned().partition::<Vec<Migration>, _>(|migration| CLOSING.contains(&migration.version));
        let mut migrations =
            Self { closing: Migrator::with_migrations(closing), additions: Migrator::with_migrations(additions) };
        migrations.closing.dangerous_set_table_name(closing_table);
        migrations.additions.dangerous_set_table_name(additions_table);
        // A newer program may have added some that this one does not know.
        migrations.additions.set_ignore_missing(true);
        migrations
    }

    /// Has the schema made first, if it is missing.
    pub fn in_schema(mut self, schema: &'static str) -> Self {
        self.closing.create_schema(schema);
        self
    }

    /// Newest version known.
    pub fn newest(&self) -> i64 {
        self.known().max().unwrap_or_default()
    }

    fn known(&self) -> impl Iterator<Item = i64> {
        self.closing.iter().chain(self.additions.iter()).map(|migration| migration.version)
    }

    /// Runs what the database lacks, up to version `last`.
    pub async fn run<C: Migrate>(&self, connection: &mut C, last: i64) -> Result<(), MigrateError> {
        let mut versions: Vec<i64> = self.known().filter(|version| *version <= last).collect();
        versions.sort_unstable();
        // One kind may build on what the other made, so they take turns.
        for run in versions.chunk_by(|a, b| CLOSING.contains(a) == CLOSING.contains(b)) {
            let kind = if CLOSING.contains(&run[0]) { &self.closing } else { &self.additions };
            kind.run_direct(run.last().copied(), connection, false).await?;
        }
        Ok(())
    }

    /// Checks that this program can work with what a database has.
    ///
    /// # Errors
    /// [`StoreError::SchemaNewer`] for a closing migration that is not known here, [`StoreError::SchemaOlder`] if one is
    /// missing that this program needs.
    pub fn check(&self, found: &Found) -> Result<(), StoreError> {
        let known = self.newest();
        if found.closing > known {
            return Err(StoreError::SchemaNewer { found: found.closing, known });
        }
        let has = |version: i64| {
            version <= found.closing && CLOSING.contains(&version) || found.additions.contains(&version)
        };
        match self.known().filter(|version| !has(*version)).min() {
            None => Ok(()),
            Some(missing) => {
                let before = self.known().filter(|version| *version < missing).max().unwrap_or_default();
                Err(StoreError::SchemaOlder { found: before, needed: known })
            }
        }
    }
}
