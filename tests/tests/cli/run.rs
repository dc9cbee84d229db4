//! A folder with a configuration, and the program run in it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use laneway_tests::{laneway, plugin};
use tempfile::TempDir;

/// Longest wait for something that should happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A user's folder.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    /// A configuration with these blocks, and the plugins that the tests name.
    pub fn configure(&self, text: &str) {
        for name in ["counter", "noop", "fail", "publish-log"] {
            let copy = self.path().join(format!("{name}.wasm"));
            if !copy.exists() {
                std::fs::copy(plugin(name), copy).unwrap();
            }
        }
        self.write("laneway.toml", text);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(laneway());
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null());
        for name in
            ["LANEWAY_STORAGE_URL", "LANEWAY_CONFIG", "LANEWAY_LOG", "LANEWAY_LOG_FORMAT", "LANEWAY_SIGN_PASSWORD"]
        {
            command.env_remove(name);
        }
        command.env("NO_COLOR", "1").env("XDG_CACHE_HOME", self.path().join("cache"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs and answers standard output; panics with standard error if it fails.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[&["--json"], arguments].concat())).unwrap()
    }

    /// Runs with this standard input.
    pub fn feed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Small enough for the pipes, so that neither waits for the other.
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs, expects this exit code, and answers standard error.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        stderr
    }

    pub fn start(&self, arguments: &[&str]) -> Running {
        self.start_as(self.command(arguments))
    }

    pub fn start_as(&self, mut command: Command) -> Running {
        let log = std::fs::File::create(self.path().join("run.log")).unwrap();
        Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    /// Starts a node, whose log nobody reads any more once it runs, as if its terminal were closed.
    pub fn start_then_close_its_log(&self, mut command: Command) -> Running {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("laneway is running") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it ran");
        }
        Running(child)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("run.log")).unwrap_or_default()
    }

    /// How often the log of what was started has this text.
    pub fn times_in_log(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Waits until the log of what was started has this text.
    pub fn wait_for_log(&self, text: &str) {
        self.wait_for_times_in_log(text, 1);
    }

    /// Waits until the log of what was started has this text so often.
    pub fn wait_for_times_in_log(&self, text: &str, times: usize) {
        let started = Instant::now();
        while self.times_in_log(text) < times {
            assert!(started.elapsed() < PATIENCE, "waited in vain for `{text}`: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the status says so.
    pub fn wait_for(&self, what: &str, storage: &[&str], reached: impl Fn(&serde_json::Value) -> bool) {
        let started = Instant::now();
        loop {
            let output = self.run(&[&["--json", "status"], storage].concat());
            let status = serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null);
            if reached(&status) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain for {what}: {status}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until an attempt at the message has failed, and answers its error.
    pub fn wait_for_error(&self, id: &str) -> String {
        let started = Instant::now();
        loop {
            let message = self.json(&["messages", "show", id]);
            if let Some(error) = message["deliveries"][0]["last_error"].as_str() {
                return error.to_owned();
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain for an error: {message}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Deliveries that are left in all lanes, or `None` if the status has no subscription yet.
pub fn left(status: &serde_json::Value) -> Option<u64> {
    let mut sum = 0;
    let subscriptions = status["subscriptions"].as_array()?;
    for lane in subscriptions.iter().flat_map(|s| s["lanes"].as_array().into_iter().flatten()) {
        sum += lane["due"].as_u64()? + lane["leased"].as_u64()? + lane["delayed"].as_u64()?;
    }
    (!subscriptions.is_empty()).then_some(sum)
}

/// A running program; killed when dropped.
pub struct Running(Child);

impl Running {
    /// Sends SIGTERM.
    pub fn signal(&self) {
        self.send("-TERM");
    }

    /// Sends a signal, such as `-HUP`.
    pub fn send(&self, signal: &str) {
        let killed = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Sends SIGTERM, and answers the exit code; `None` if the signal itself ended it.
    pub fn terminate(self) -> Option<i32> {
        self.signal();
        self.ended()
    }

    /// Waits for its end, and answers the exit code; `None` if a signal ended it.
    pub fn ended(mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
