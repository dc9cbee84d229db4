//! A PostgreSQL server of our own, that lives no longer than this process.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use super::database;
use super::programs::ServerPrograms;

/// Longest time for the server to accept connections.
const START_MAX: Duration = Duration::from_secs(60);

/// Longest time for the server to go after it was asked to; the watchdog kills it before.
const STOP_MAX: Duration = Duration::from_secs(15);

/// Another process may take the port between our look and the server's start.
const STARTS_MAX: u32 = 5;

/// Runs the server ("$@", after the directory) and ends it when standard input ends, which is when the process that
/// holds the other end of the pipe ends, however it ends; then removes the directory. Signals of a terminal are for
/// the test, which then ends, and so ends this. The sleeps are short, so that nothing outlives the server for long.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
directory=$1
shift
exec 3<&0
"$@" >"$directory/log" 2>&1 </dev/null 3<&- &
server=$!
(
    while read -r _; do :; done
    : >"$directory/ended"
    kill -INT $server
    tries=0
    while kill -0 $server && [ $tries -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -KILL $server
) <&3 2>/dev/null &
reader=$!
wait $server
kill -KILL $reader
[ -e "$directory/ended" ] && cd / && rm -rf "$directory"
"#;

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
        let Some(programs) = ServerPrograms::find() else { return Ok(None) };
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

        for attempt in 1.. {
            let port = free_port()?;
            let mut watchdog = account
                .command("sh", directory.path())
                .args(["-c", WATCHDOG, "laneway-postgres"])
                .arg(directory.path())
                .arg(&programs.postgres)
                .arg("-D")
                .arg(&data)
                .args(settings(port).iter().flat_map(|setting| ["-c", setting]))
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // A group of its own: a test runner that kills the group of a test must not kill the watchdog.
                .process_group(0)
                .spawn()
                .context("failed to run the PostgreSQL server")?;
            match wait_until_ready(port, &mut watchdog) {
                Ok(()) => return Ok(Some(Self { port, watchdog, directory })),
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

/// Ends the server: closes the pipe, which the watchdog waits for, then waits for it.
fn stop(watchdog: &mut Child) {
    drop(watchdog.stdin.take());
    let deadline = Instant::now() + STOP_MAX;
    while matches!(watchdog.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            // Nothing more can be done here than this; its server was killed by it, or never will be.
            drop(watchdog.kill());
            drop(watchdog.wait());
            return;
        }
        sleep(Duration::from_millis(10));
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

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a free port")?;
    Ok(listener.local_addr()?.port())
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

/// Who the server runs as: PostgreSQL refuses to run as root.
struct Account {
    switch_to: Option<(u32, u32)>,
}

impl Account {
    /// The account to run as, which is given the directory.
    fn of_server(directory: &Path) -> anyhow::Result<Self> {
        // We made the directory, so its owner is who we are.
        if fs::metadata(directory)?.uid() != 0 {
            return Ok(Self { switch_to: None });
        }
        for name in ["postgres", "nobody"] {
            if let (Some(uid), Some(gid)) = (numeric_id("-u", name)?, numeric_id("-g", name)?) {
                std::os::unix::fs::chown(directory, Some(uid), Some(gid))
                    .with_context(|| format!("failed to give {} to {name}", directory.display()))?;
                return Ok(Self { switch_to: Some((uid, gid)) });
            }
        }
        bail!("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as")
    }

    fn command(&self, program: impl AsRef<OsStr>, directory: &Path) -> Command {
        let mut command = Command::new(program);
        // The account may not enter our working directory.
        command.current_dir(directory).env("HOME", directory).env("LC_ALL", "C");
        if let Some((uid, gid)) = self.switch_to {
            command.uid(uid).gid(gid);
        }
        command
    }
}

fn numeric_id(option: &str, user: &str) -> anyhow::Result<Option<u32>> {
    let output = match Command::new("id").args([option, user]).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("failed to run id"),
    };
    if !output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let id = text.trim().parse().with_context(|| format!("`id {option} {user}` answered {text:?}"))?;
    Ok(Some(id))
}
