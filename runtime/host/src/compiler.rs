//! Compiles components, in this process or in one of its own.
//!
//! What a component makes the compiler do is the component's choice. `shape.rs` refuses at once what is estimated to
//! take too long; a process of its own, which the kernel holds to its limits, ends what the estimate got wrong. The
//! host writes two numbers and the component to the process, and reads the code; nothing else is shared, so that a
//! crash of the compiler is that component's alone.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use wasmtime::Engine;

use crate::error::PluginError;
use crate::{engine, outcome};

/// Threads that one compilation works with: further ones would only take processors from the messages.
const THREADS_MAX: usize = 4;
/// What is read of what the process writes when it fails.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;
/// Nothing is heard of a compiler that waits for something; this ends it, at so many times its processor time.
const CLOCK_FACTOR: u32 = 8;
/// How much the process gives way to others.
const NICE: i32 = 10;

/// Last byte of an answer: before it is code.
const CODE: u8 = 0;
/// Last byte of an answer: before it is what is wrong with the component.
const WRONG: u8 = 1;

/// How to start a process that runs [`compile_one`], and what it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompilerProcess {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Processor time for one component, of all threads together. Counted in whole seconds, at least one.
    pub time_max: Duration,
    /// Memory for one component, in bytes. Systems other than Linux hold a process to it in part or not at all.
    pub memory_bytes_max: u64,
}

impl CompilerProcess {
    /// Compiles a component in a process of its own. Blocks until that ends.
    pub(crate) fn compile(&self, component: &[u8]) -> Result<Vec<u8>, PluginError> {
        let threads = thread::available_parallelism().map_or(1, |found| found.get().min(THREADS_MAX));
        let mut child = Command::new(&self.program)
            .args(&self.args)
            // It needs nothing from there, and there may be secrets.
            .env_clear()
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map(Killed)
            .map_err(PluginError::CompilerProcess)?;
        let (mut answer, complaint) =
            self.exchange(&mut child.0, component).map_err(PluginError::CompilerProcess)?;
        let status = child.0.wait().map_err(PluginError::CompilerProcess)?;
        match answer.pop() {
            Some(CODE) if status.success() => Ok(answer),
            Some(WRONG) if status.success() => {
                Err(PluginError::Compile(String::from_utf8_lossy(&answer).into_owned()))
            }
            _ => Err(self.failure(status, &String::from_utf8_lossy(&complaint))),
        }
    }

    /// Sends the component, and reads what comes on stdout and stderr.
    fn exchange(&self, child: &mut Child, component: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let closed = || io::Error::other("a pipe is missing");
        let mut to = child.stdin.take().ok_or_else(closed)?;
        let from = child.stdout.take().ok_or_else(closed)?;
        let errors = child.stderr.take().ok_or_else(closed)?;
        let limits = Limits { seconds: self.seconds(), memory_bytes: self.memory_bytes_max };
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        thread::scope(|scope| {
            // Each pipe has a thread: who fills one while the other side waits for another would wait for ever. A
            // process that ended takes no more, and its status says why.
            scope.spawn(move || to.write_all(&limits.to_bytes()).and_then(|()| to.write_all(component)));
            scope.spawn(|| errors.take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint));
            from.take(self.memory_bytes_max).read_to_end(&mut answer)
        })?;
        Ok((answer, complaint))
    }

    fn seconds(&self) -> u64 {
        self.time_max.as_secs().max(1)
    }

    fn failure(&self, status: ExitStatus, complaint: &str) -> PluginError {
        let too_long = || PluginError::CompileTime { max: Duration::from_secs(self.seconds()) };
        if status.code() == Some(EXIT_CLOCK) {
            return too_long();
        }
        #[cfg(unix)]
        {
            use std::os::unix::process::ExitStatusExt;
            if status.signal() == Some(rustix::process::Signal::XCPU.as_raw()) {
                return too_long();
            }
        }
        // Rust's own words, before it aborts.
        if complaint.contains("memory allocation of") {
            return PluginError::CompileMemory { max: self.memory_bytes_max };
        }
        let complaint = complaint.lines().next().unwrap_or("it says nothing");
        PluginError::Compile(format!("the compiler failed ({status}): {complaint}"))
    }
}

/// A process that does not outlive its name.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail where it has ended and was waited for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Compiles in this process. Blocks for as long as that takes.
pub(crate) fn compile(engine: &Engine, component: &[u8]) -> Result<Vec<u8>, PluginError> {
    // No component is known that makes the compiler panic; if one does, it is that component's fault alone.
    catch_unwind(AssertUnwindSafe(|| engine.precompile_component(component)))
        .map_err(|panic| PluginError::Compile(format!("the compiler panicked: {}", outcome::panic_text(&*panic))))?
        .map_err(|error| PluginError::Compile(format!("{error:#}")))
}

/// Exit code of a process that took too long by the clock.
const EXIT_CLOCK: i32 = 124;

/// The other side of [`CompilerProcess`]: puts this process under the limits that it reads from stdin, compiles the
/// component that follows, and writes the code to stdout. To be called first thing, before any other thread is there.
///
/// # Errors
/// An [`io::Error`] if what comes is incomplete, or nobody reads the answer.
pub fn compile_one() -> io::Result<()> {
    let mut stdin = io::stdin().lock();
    let mut limits = [0; Limits::BYTES];
    stdin.read_exact(&mut limits)?;
    let limits = Limits::from_bytes(limits);
    limits.impose()?;
    let mut component = Vec::new();
    stdin.read_to_end(&mut component)?;
    let compiled = engine::compiling()
        .map_err(|error| PluginError::Compile(format!("{error:#}")))
        .and_then(|engine| compile(&engine, &component));
    let (answer, last) = match compiled {
        Ok(code) => (code, CODE),
        Err(PluginError::Compile(text)) => (text.into_bytes(), WRONG),
        Err(other) => (other.to_string().into_bytes(), WRONG),
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&answer)?;
    stdout.write_all(&[last])?;
    stdout.flush()
}

/// What a process may take, as it reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    seconds: u64,
    memory_bytes: u64,
}

impl Limits {
    const BYTES: usize = 16;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        (u128::from(self.seconds) << 64 | u128::from(self.memory_bytes)).to_be_bytes()
    }

    fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let both = u128::from_be_bytes(bytes);
        Self { seconds: (both >> 64) as u64, memory_bytes: both as u64 }
    }

    /// Puts this process under the limits.
    fn impose(self) -> io::Result<()> {
        #[cfg(unix)]
        self.impose_by_kernel()?;
        let clock = Duration::from_secs(self.seconds).saturating_mul(CLOCK_FACTOR);
        thread::Builder::new().name("clock".to_owned()).spawn(move || {
            thread::sleep(clock);
            std::process::exit(EXIT_CLOCK);
        })?;
        Ok(())
    }

    #[cfg(unix)]
    fn impose_by_kernel(self) -> io::Result<()> {
        use rustix::process::{Resource, Rlimit, getrlimit, nice, setrlimit};
        // A limit that is lower already stays.
        let at_most = |resource: Resource, current: u64, maximum: u64| {
            let lower = |max: u64| getrlimit(resource).maximum.map_or(max, |found| found.min(max));
            setrlimit(resource, Rlimit { current: Some(lower(current)), maximum: Some(lower(maximum)) })
        };
        // The first ends it with a signal that says why.
        at_most(Resource::Cpu, self.seconds, self.seconds.saturating_add(1))?;
        // It writes no files, and what is in its memory is nobody's business.
        at_most(Resource::Fsize, 0, 0)?;
        at_most(Resource::Core, 0, 0)?;
        // What can be written to. Of addresses, allocators reserve more than they use, and more with each thread.
        at_most(Resource::Data, self.memory_bytes, self.memory_bytes)?;
        nice(NICE)?;
        // Nobody would read what it makes.
        #[cfg(target_os = "linux")]
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_were_written() {
        let limits = Limits { seconds: 120, memory_bytes: u64::MAX - 1 };
        assert_eq!(Limits::from_bytes(limits.to_bytes()), limits);
    }
}
