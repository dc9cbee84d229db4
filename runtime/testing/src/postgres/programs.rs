//! Where PostgreSQL's programs are on this machine.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Environment variable with the directory of the PostgreSQL programs to use, such as those of another version.
pub const PROGRAMS: &str = "LANEWAY_TEST_POSTGRES_PROGRAMS";

/// The directories that may hold PostgreSQL's programs, the likeliest first.
fn directories() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    // The programs that serve a database are often not on the PATH, but pg_config tells where they are.
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output()
        && output.status.success()
    {
        found.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let mut versions: Vec<(u32, PathBuf)> = Path::new("/usr/lib/postgresql")
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_unstable_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.extend(versions.into_iter().map(|(_, path)| path));
    found
}

/// The client for scripts, `psql`.
pub(super) fn psql() -> Option<PathBuf> {
    directories().into_iter().map(|directory| directory.join("psql")).find(|path| path.is_file())
}

/// The pooler, `pgbouncer`. Systems keep it where the users' PATH does not lead.
pub(super) fn pgbouncer() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    directories.map(|directory| directory.join("pgbouncer")).find(|path| path.is_file())
}

/// The programs that make and run a cluster; both of one directory, so of one version.
pub(super) struct ServerPrograms {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
}

impl ServerPrograms {
    /// `None` if this machine has no PostgreSQL server.
    pub(super) fn find() -> Option<Self> {
        match env::var_os(PROGRAMS) {
            Some(only) => Self::of(Path::new(&only)),
            None => directories().iter().find_map(|directory| Self::of(directory)),
        }
    }

    /// Those of a directory, if it has both.
    pub(super) fn of(directory: &Path) -> Option<Self> {
        let programs = Self { initdb: directory.join("initdb"), postgres: directory.join("postgres") };
        (programs.initdb.is_file() && programs.postgres.is_file()).then_some(programs)
    }
}
