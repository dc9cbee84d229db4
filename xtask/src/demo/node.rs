//! A program that the demo started: a node of the runtime, the producer, a watch. It never outlives this value.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest time for a node to stop after SIGTERM: its grace period and a little.
const STOP_MAX: Duration = Duration::from_secs(30);

/// After this time a program listens for signals, on a busy machine too, even if it has logged nothing.
const BEGUN: Duration = Duration::from_secs(10);

/// Lines of a log that an error shows.
const LOG_LINES: usize = 15;

/// A running program whose output goes to a file.
pub struct Node {
    name: String,
    child: Child,
    started: Instant,
    log: PathBuf,
    /// Bytes that the log had before.
    logged_before: u64,
}

impl Node {
    /// Starts a program; its log is appended to `NAME.log` in the directory.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let logged_before = file.metadata()?.len();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("could not start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, started: Instant::now(), log, logged_before })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// An error if it has ended, which a node does not do by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(self.failure(status)),
            None => Ok(()),
        }
    }

    /// Waits for its end, which must be a successful one.
    pub fn succeed(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(self.failure(status)) }
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.check()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop with SIGTERM and waits until it has; it must end with success.
    pub fn stop(mut self) -> Result<()> {
        self.check()?;
        // A program that has only just begun does not listen for signals yet, and is ended by one. It logs nothing
        // before.
        while fs::metadata(&self.log)?.len() <= self.logged_before && self.started.elapsed() < BEGUN {
            self.check()?;
            thread::sleep(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + STOP_MAX;
        while !self.ended()? {
            if Instant::now() > deadline {
                bail!(
                    "{} did not stop within {STOP_MAX:?} of SIGTERM; its log ends:\n{}",
                    self.name,
                    self.log_end()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.succeed()
    }

    fn failure(&self, status: ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("{} ended with {status}; its log ends:\n{}", self.name, self.log_end())
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
