//! A PostgreSQL server of our own, that lives no longer than this process.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::database;
use super::programs::ServerPrograms;
use super::watchdog::{Account, free_port, stop, watched};

/// Longest time for the server to accept connections.
const START_MAX: Duration = Duration::from_secs(60);

/// Another process may take the port between our look and the server's start.
const STARTS_MAX: u32 = 5;

/// A throw-away PostgreSQL cluster: listens on 127.0.0.1 only, on a free port, and trusts everyone there. Its one
/// superuser is `postgres`. It ends, and its files go, when this is dropped and also when this process is killed.
#[derive(Debug)]
pub struct Cluster {
    port: u16,
    watchdog: Child,
    directory: TempDir,
}

impl Cluster {
    /// Makes and starts a cluster, in one to three seconds. `Ok(None)` if this machine has no PostgreSQL server.
    ///
    /// # Errors
    /// If there is a server that cannot be made or started; the text holds the end of its log.
    pub fn start() -> anyhow::Result<Option<Self>> {
        ServerPrograms::find().map(|programs| Self::make(&programs)).transpose()
    }

    /// The same with the programs of a directory; `Ok(None)` if it does not hold them.
    ///
    /// # Errors
    /// Those of [`Cluster::start`].
    pub fn start_with(programs: &Path) -> anyhow::Result<Option<Self>> {
        ServerPrograms::of(programs).map(|programs| Self::make(&programs)).transpose()
    }

    fn make(programs: &ServerPrograms) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("laneway-postgres-")
            .tempdir()
            .context("failed to make a directory for a throw-away PostgreSQL")?;
        let account = Account::of_server(directory.path())?;
        let data = directory.path().join("data");
        let output = account
            .command(&programs.initdb, directory.path())
            .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .stdin(Stdio::null())
            .output()
            .context("failed to run initdb")?;
        ensure!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());

        Self::run(programs, &account, directory, &data)
    }

    /// Makes and starts a standby of this cluster, which follows it.
    ///
    /// # Errors
    /// If it cannot be made or started; the text holds the end of its log.
    pub fn start_standby(&self) -> anyhow::Result<Self> {
        let programs = ServerPrograms::find().context("PostgreSQL's programs are gone")?;
        let directory = tempfile::Builder::new()
            .prefix("laneway-standby-")
            .tempdir()
            .context("failed to make a directory for a throw-away standby")?;
        let account = Account::of_server(directory.path())?;
        let data = directory.path().join("data");
        // Beside the program itself, of which the one that was found may be a link.
        let beside = programs.initdb.canonicalize().context("initdb is gone")?;
        let output = account
            .command(beside.with_file_name("pg_basebackup"), directory.path())
            .args([
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
                "--dbname",
                &self.url("postgres"),
                "-D",
            ])
            .arg(&data)
            .stdin(Stdio::null())
            .output()
            .context("failed to run pg_basebackup")?;
        ensure!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr).trim());
        Self::run(&programs, &account, directory, &data)
    }

    /// Makes a standby the primary.
    ///
    /// # Errors
    /// If it is none, or does not become one.
    pub fn promote(&self) -> anyhow::Result<()> {
        database::run(&self.url("postgres"), "select pg_promote(true, 60)")
    }

    fn run(programs: &ServerPrograms, account: &Account, directory: TempDir, data: &Path) -> anyhow::Result<Self> {
        for attempt in 1.. {
            let port = free_port()?;
            let mut arguments = vec![OsStr::new("-D").to_owned(), data.as_os_str().to_owned()];
            arguments.extend(settings(port).into_iter().flat_map(|setting| ["-c".into(), setting.into()]));
            let arguments: Vec<&OsStr> = arguments.iter().map(std::ffi::OsString::as_os_str).collect();
            let mut watchdog = watched(account, directory.path(), "INT", &programs.postgres, &arguments)?;
            match wait_until_ready(port, &mut watchdog) {
                Ok(()) => return Ok(Self { port, watchdog, directory }),
                Err(error) => {
                    let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
                    if attempt < STARTS_MAX && log.contains("Address already in use") {
                        continue;
                    }
                    stop(&mut watchdog);
                    let end: Vec<&str> = log.lines().rev().take(10).collect();
                    bail!("{error}; its log ends:\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// How to connect to a database of this cluster, as its superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// If there is one of this name already, or `psql` cannot be run.
    pub fn create_database(&self, name: &str) -> anyhow::Result<()> {
        database::create(&self.url("postgres"), name)
    }

    /// Where the cluster keeps its files, its `log` among them.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        stop(&mut self.watchdog);
    }
}

/// Small, but durable as in production: only the flush of each commit is what a test of a crash needs.
fn settings(port: u16) -> Vec<String> {
    [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "max_connections=200",
        "max_prepared_transactions=20",
        "shared_buffers=64MB",
        "max_wal_size=512MB",
        "fsync=on",
        "synchronous_commit=on",
        "autovacuum_naptime=10s",
        "log_min_messages=warning",
        "log_timezone=UTC",
        "timezone=UTC",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("port={port}")])
    .collect()
}

/// Waits until the server answers a query, so also until its start-up is over.
fn wait_until_ready(port: u16, watchdog: &mut Child) -> anyhow::Result<()> {
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let deadline = Instant::now() + START_MAX;
    loop {
        if let Some(status) = watchdog.try_wait()? {
            bail!("the PostgreSQL server ended at its start ({status})");
        }
        let Err(error) = database::run(&url, "select 1") else { return Ok(()) };
        if Instant::now() > deadline {
            return Err(error.context(format!("the PostgreSQL server did not answer in {START_MAX:?}")));
        }
        sleep(Duration::from_millis(50));
    }
}
