//! A server that ends when this process does, however that ends, and who it runs as.

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

use anyhow::{Context, bail};

/// Longest time for the server to go after it was asked to; the watchdog kills it before.
const STOP_MAX: Duration = Duration::from_secs(15);

/// Runs a server ("$@", after the directory and the signal that ends it) and ends it when standard input ends, which is when the process that
/// holds the other end of the pipe ends, however it ends; then removes the directory. Signals of a terminal are for
/// the test, which then ends, and so ends this. The sleeps are short, so that nothing outlives the server for long.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
directory=$1
signal=$2
shift 2
exec 3<&0
"$@" >"$directory/log" 2>&1 </dev/null 3<&- &
server=$!
(
    while read -r _; do :; done
    : >"$directory/ended"
    kill -$signal $server
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

/// Runs a server that ends by a signal, such as `INT`, when the watchdog's standard input is closed. What it prints is in
/// `log` in the directory, which is removed after its end.
pub(super) fn watched(
    account: &Account,
    directory: &Path,
    signal: &str,
    program: &Path,
    arguments: &[&OsStr],
) -> anyhow::Result<Child> {
    account
        .command("sh", directory)
        .args(["-c", WATCHDOG, "laneway-watchdog"])
        .arg(directory)
        .arg(signal)
        .arg(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own: a test runner that kills the group of a test must not kill the watchdog.
        .process_group(0)
        .spawn()
        .with_context(|| format!("failed to run {}", program.display()))
}

/// Ends the server: closes the pipe, which the watchdog waits for, then waits for it.
pub(super) fn stop(watchdog: &mut Child) {
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

pub(super) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Who the server runs as: PostgreSQL refuses to run as root.
pub(super) struct Account {
    switch_to: Option<(u32, u32)>,
}

impl Account {
    /// The account to run as, which is given the directory.
    pub(super) fn of_server(directory: &Path) -> anyhow::Result<Self> {
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

    pub(super) fn command(&self, program: impl AsRef<OsStr>, directory: &Path) -> Command {
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
