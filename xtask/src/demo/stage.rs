//! Where the demo plays: a temporary directory, a configuration, a database, and the programs that use them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use tempfile::TempDir;

use super::{
    flights::{Carriers, read_report},
    node::Node,
};
use crate::cargo::{self, Programs};

/// How often the demo looks whether something has happened.
const POLL: Duration = Duration::from_millis(5);

/// Where the plugins are in the committed configuration.
const PLUGINS: &str = "../../target/plugins/";

/// Where the receiver is in the committed configuration.
const RECEIVER: &str = "http://127.0.0.1:8089";

/// Ctrl-C and SIGTERM end the demo as an error does: with everything that it started.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes both signals from now on. A second one ends this process at once.
    pub fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, flag.clone())?;
            signal_hook::flag::register(signal, flag.clone())?;
        }
        Ok(Self(flag))
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.0.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}

/// What `laneway status --json` says, as far as the demo needs it.
pub struct Status {
    /// Deliveries that are due, leased or delayed.
    pub open: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Active subscriptions.
    subscriptions: usize,
}

/// The stage.
pub struct Stage {
    interrupt: Interrupt,
    directory: TempDir,
    config: PathBuf,
    storage: String,
    laneway: PathBuf,
    producer: PathBuf,
}

impl Stage {
    /// Makes the directory, and in it the configuration of the example with the real plugins and receiver.
    pub fn new(interrupt: Interrupt, programs: &Programs, plugins: &Path, receiver: &str) -> Result<Self> {
        let committed = cargo::root()?.join("examples/flights/laneway.toml");
        let text = fs::read_to_string(&committed).with_context(|| committed.display().to_string())?;
        let text = adapt(&text, plugins, receiver).with_context(|| committed.display().to_string())?;
        let directory = tempfile::Builder::new().prefix("laneway-demo-").tempdir()?;
        let config = directory.path().join("laneway.toml");
        fs::write(&config, text)?;
        Ok(Self {
            interrupt,
            directory,
            config,
            storage: String::new(),
            laneway: programs.path("laneway")?.to_owned(),
            producer: programs.path("flights-producer")?.to_owned(),
        })
    }

    /// Takes an SQLite file, which the first node makes.
    pub fn use_sqlite(&mut self) {
        self.storage = format!("sqlite://{}", self.directory.path().join("laneway.db").display());
    }

    /// Takes an empty PostgreSQL database, and makes Laneway's tables there.
    pub fn use_postgres(&mut self, url: String) -> Result<()> {
        self.storage = url;
        cargo::succeed(self.laneway().arg("migrate").stdout(Stdio::null()))
            .context("could not migrate the database")
    }

    /// Removes the directory, or says where it is.
    pub fn close(self, keep: bool) -> Result<()> {
        if keep {
            println!("kept: {}", self.directory.keep().display());
            return Ok(());
        }
        let path = self.directory.path().to_owned();
        self.directory.close().with_context(|| format!("could not remove {}", path.display()))
    }

    /// Starts a node of the runtime.
    pub fn start_node(&self, name: &str) -> Result<Node> {
        Node::start(name, self.laneway().args(["run", "--node", name]), self.directory.path())
    }

    /// Starts the producer.
    pub fn start_producer(&self, csv: &Path) -> Result<Node> {
        Node::start("producer", self.producer().arg("--csv").arg(csv), self.directory.path())
    }

    /// Starts the producer with so many flights a second, a tenth of them at once.
    pub fn start_producer_at(&self, csv: &Path, pace: u32) -> Result<Node> {
        let mut command = self.producer();
        let batch = (pace / 10).clamp(1, 100);
        command.arg("--csv").arg(csv).args(["--pace", &pace.to_string(), "--batch", &batch.to_string()]);
        Node::start("producer", &mut command, self.directory.path())
    }

    /// Readies the configuration for many kills: short leases, and attempts enough for messages that are hit often.
    pub fn expect_kills(&self) -> Result<()> {
        let text = fs::read_to_string(&self.config)?;
        let text = text
            .replace("lease = \"5s\"", "lease = \"1s\"")
            .replace("concurrency = 8", "concurrency = 8\nretry = { max_attempts = 1000 }")
            .replace("base = \"100ms\"", "base = \"100ms\"\nmax_attempts = 1000");
        ensure!(text.matches("max_attempts = 1000").count() == 2, "the configuration of the example has changed");
        fs::write(&self.config, text).context("failed to write the configuration")
    }

    /// Starts a program that ends when so many flights are handled.
    pub fn watch(&self, flights: i64, patience: Duration) -> Result<Node> {
        let mut command = Command::new(&self.producer);
        command.args(["report", "--database", &self.storage]);
        command.args(["--wait-handled", &flights.to_string(), "--timeout", &patience.as_secs().to_string()]);
        Node::start("watch", &mut command, self.directory.path())
    }

    /// Flights handled, and the counts by carrier.
    pub fn report(&self) -> Result<(i64, Carriers)> {
        let mut command = Command::new(&self.producer);
        read_report(&output(command.args(["report", "--database", &self.storage]))?)
    }

    /// The runtime's status.
    pub fn status(&self) -> Result<Status> {
        read_status(&output(self.laneway().args(["status", "--json", "--log", "error"]))?)
    }

    /// Waits until a node has made the database ready for the producer.
    pub fn wait_for_topology(&self, node: &mut Node, longest: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            node.check()?;
            // Until the node has made its tables there is nothing that a status could be read from.
            match self.status() {
                Ok(status) if status.subscriptions > 0 => return Ok(()),
                _ => self.pause(begin, longest, "a node to be ready")?,
            }
        }
    }

    /// Waits until a node says in its log that it runs.
    pub fn wait_until_running(&self, node: &mut Node, longest: Duration) -> Result<()> {
        let begin = Instant::now();
        while !node.log_end().contains("laneway is running") {
            node.check()?;
            self.pause(begin, longest, "a node to be ready")?;
        }
        Ok(())
    }

    /// Sleeps a little in a loop that waits for something; an error after an interrupt and when it took too long.
    pub fn pause(&self, begin: Instant, longest: Duration, what: &str) -> Result<()> {
        self.interrupt.check()?;
        if begin.elapsed() > longest {
            bail!("waited {longest:?} for {what}");
        }
        thread::sleep(POLL);
        Ok(())
    }

    fn laneway(&self) -> Command {
        let mut command = Command::new(&self.laneway);
        command.arg("--config").arg(&self.config).args(["--storage", &self.storage]);
        command
    }

    fn producer(&self) -> Command {
        let mut command = Command::new(&self.producer);
        command.args(["--database", &self.storage]);
        command
    }
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("could not run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// Puts the real plugins and receiver into the committed configuration.
fn adapt(text: &str, plugins: &Path, receiver: &str) -> Result<String> {
    for wanted in [PLUGINS, RECEIVER] {
        ensure!(text.contains(wanted), "{wanted:?} is not in the configuration, so it cannot be replaced");
    }
    let plugins = plugins.to_str().context("the path of the plugins is not UTF-8")?;
    let text = text.replace(PLUGINS, &format!("{plugins}/")).replace(RECEIVER, receiver);
    // Compiled plugins go with the directory; a restart finds them there.
    Ok(format!("{text}\n[sandbox]\ncache_dir = \"cache\"\n"))
}

fn read_status(json: &[u8]) -> Result<Status> {
    let status: Value = serde_json::from_slice(json).context("the status is no JSON")?;
    let mut sum = Status { open: 0, dead_letters: 0, subscriptions: 0 };
    let number = |value: &Value, name: &str| {
        value[name].as_u64().with_context(|| format!("the status has no number {name:?} in {value}"))
    };
    for subscription in status["subscriptions"].as_array().context("the status has no subscriptions")? {
        sum.subscriptions += usize::from(subscription["active"] == true);
        sum.dead_letters += number(subscription, "dead_letters")?;
        for lane in subscription["lanes"].as_array().context("a subscription has no lanes")? {
            sum.open += number(lane, "due")? + number(lane, "leased")? + number(lane, "delayed")?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_configuration_can_be_adapted() {
        let text = include_str!("../../../examples/flights/laneway.toml");
        let adapted = adapt(text, Path::new("/plugins"), "http://127.0.0.1:1").unwrap();
        assert!(adapted.contains("handler = \"/plugins/delay-stats.wasm\""), "{adapted}");
        assert!(adapted.contains("publisher = \"/plugins/publish-http.wasm\""), "{adapted}");
        assert_eq!(adapted.matches("http://127.0.0.1:1").count(), 2, "{adapted}");
        assert!(!adapted.contains("8089"), "{adapted}");
        assert!(adapt("[storage]", Path::new("/plugins"), "http://127.0.0.1:1").is_err());
    }

    #[test]
    fn open_deliveries_are_summed_over_lanes_and_subscriptions() {
        let status = read_status(
            br#"{"subscriptions":[
                {"active":true,"dead_letters":1,"lanes":[{"due":1,"leased":2,"delayed":4},{"due":8,"leased":0,"delayed":0}]},
                {"active":false,"dead_letters":0,"lanes":[{"due":16,"leased":0,"delayed":0}]}]}"#,
        )
        .unwrap();
        assert_eq!((status.open, status.dead_letters, status.subscriptions), (31, 1, 1));
        assert!(read_status(br#"{"subscriptions":[{"active":true,"dead_letters":0,"lanes":[{}]}]}"#).is_err());
    }
}
