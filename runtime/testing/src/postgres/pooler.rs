//! A PgBouncer of our own before a server, that lives no longer than this process.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::database;
use super::programs;
use super::watchdog::{Account, free_port, stop, watched};

/// Longest time for it to accept connections.
const START_MAX: Duration = Duration::from_secs(20);

/// For how long a session of the server is a client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as the client is connected.
    Session,
    /// For a transaction.
    Transaction,
}

/// A PgBouncer on 127.0.0.1, on a free port. It trusts everyone, and ends when this is dropped and also when this
/// process is killed.
#[derive(Debug)]
pub struct Pooler {
    port: u16,
    watchdog: Child,
    _directory: TempDir,
}

impl Pooler {
    /// Starts one before a server of this machine. `Ok(None)` if this machine has no PgBouncer.
    ///
    /// # Errors
    /// If there is a PgBouncer that cannot be started; the text holds its log.
    pub fn start(server_url: &str, mode: PoolMode) -> anyhow::Result<Option<Self>> {
        let Some(program) = programs::pgbouncer() else { return Ok(None) };
        let (host, server_port) = database::host_and_port(server_url)?;
        let directory = tempfile::Builder::new()
            .prefix("laneway-pgbouncer-")
            .tempdir()
            .context("failed to make a directory for a throw-away PgBouncer")?;
        let account = Account::of_server(directory.path())?;
        let port = free_port()?;
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let configuration = directory.path().join("pgbouncer.ini");
        fs::write(directory.path().join("users.txt"), "\"postgres\" \"\"\n")?;
        // Sessions of the server go a moment after their clients, so that a test finds none of another.
        fs::write(
            &configuration,
            format!(
                "[databases]\n* = host={host} port={server_port} auth_user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {0}/users.txt\n\
                 pool_mode = {mode}\nmax_client_conn = 1000\ndefault_pool_size = 100\nserver_idle_timeout = 2\n\
                 logfile = {0}/pgbouncer.log\n",
                directory.path().display()
            ),
        )?;
        let mut watchdog = watched(&account, directory.path(), "TERM", &program, &[configuration.as_os_str()])?;
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let deadline = Instant::now() + START_MAX;
        while let Err(error) = database::run(&url, "select 1") {
            if watchdog.try_wait()?.is_some() || Instant::now() > deadline {
                stop(&mut watchdog);
                bail!("PgBouncer does not answer: {error:#}\n{}", log_of(directory.path()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(Self { port, watchdog, _directory: directory }))
    }

    /// Where it listens, `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A server's URL, through this.
    ///
    /// # Errors
    /// If it is no URL.
    pub fn url(&self, server_url: &str) -> anyhow::Result<String> {
        database::with_address(server_url, &self.address())
    }
}

fn log_of(directory: &Path) -> String {
    let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
    read("pgbouncer.log") + &read("log")
}

impl Drop for Pooler {
    fn drop(&mut self) {
        stop(&mut self.watchdog);
    }
}
