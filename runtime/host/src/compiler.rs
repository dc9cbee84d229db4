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
/// Most machine code that the host takes for one component, in bytes: an interpreter of Python has a sixth of it.
const CODE_BYTES_MAX: u64 = 512 << 20;
/// What is read of what the process writes when it fails.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;
/// Nothing is heard of a compiler that waits for something; this ends it, at so many times its processor time. It is no
/// limit of a busy machine's.
const CLOCK_FACTOR: u32 = 60;

/// Last byte of an answer: before it is code.
const CODE: u8 = 0;
/// Last byte of an answer: before it is what is wrong with the component.
const WRONG: u8 = 1;
/// Last byte of an answer: before it is where memory ran out.
const MEMORY: u8 = 2;

/// How to start a process that runs [`compile_one`], and what it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompilerProcess {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Processor time for one component, of all threads together, in whole seconds; at least one.
    pub time_max: Duration,
    /// Memory for one component, in bytes. Systems other than Linux hold a process to it in part or not at all.
    pub memory_bytes_max: u64,
}

impl CompilerProcess {
    /// Compiles a component in a process of its own. Blocks until that ends.
    pub(crate) fn compile(&self, component: &[u8]) -> Result<Vec<u8>, PluginError> {
        let threads = thread::available_parallelism().map_or(1, |found| found.get().min(THREADS_MAX));
        let failed = |error: io::Error| self.failed(&error.to_string());
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
            .map_err(failed)?;
        let (mut answer, complaint) = self.exchange(&mut child.0, component).map_err(failed)?;
        if answer.len() as u64 > CODE_BYTES_MAX {
            return Err(PluginError::CodeSize { max: CODE_BYTES_MAX });
        }
        let status = child.0.wait().map_err(failed)?;
        match answer.pop() {
            Some(CODE) if status.success() => Ok(answer),
            Some(WRONG) if status.success() => Err(PluginError::compile(String::from_utf8_lossy(&answer))),
            Some(MEMORY) if status.success() => Err(self.out_of_memory()),
            _ => Err(self.failure(status, &String::from_utf8_lossy(&complaint))),
        }
    }

    /// Sends the component, and reads what comes on stdout and stderr.
    fn exchange(&self, child: &mut Child, component: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let closed = || io::Error::other("a pipe is missing");
        let mut to = child.stdin.take().ok_or_else(closed)?;
        let from = child.stdout.take().ok_or_else(closed)?;
        let errors = child.stderr.take().ok_or_else(closed)?;
        let allowance = Allowance { seconds: self.seconds(), memory_bytes: self.memory_bytes_max };
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        thread::scope(|scope| {
            // Each pipe has a thread: who fills one while the other side waits for another would wait for ever. A
            // process that ended takes no more, and its status says why.
            scope.spawn(move || to.write_all(&allowance.to_bytes()).and_then(|()| to.write_all(component)));
            scope.spawn(|| errors.take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint));
            from.take(CODE_BYTES_MAX + 1).read_to_end(&mut answer)
        })?;
        Ok((answer, complaint))
    }

    fn seconds(&self) -> u64 {
        self.time_max.as_secs().max(1)
    }

    /// Why a process ended without an answer.
    fn failure(&self, status: ExitStatus, complaint: &str) -> PluginError {
        // Rust's own words, before it aborts.
        if complaint.contains("memory allocation of") {
            return self.out_of_memory();
        }
        let complaint = complaint.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it says nothing");
        #[cfg(unix)]
        {
            use std::os::unix::process::ExitStatusExt;

            use rustix::process::Signal;
            let is = |signal: Signal| status.signal() == Some(signal.as_raw());
            if is(Signal::XCPU) {
                return PluginError::CompileTime { max: Duration::from_secs(self.seconds()) };
            }
            // All others come from outside: from whoever stops the node, or from a machine that is short of memory.
            if [Signal::ABORT, Signal::SEGV, Signal::BUS, Signal::ILL, Signal::FPE, Signal::TRAP]
                .into_iter()
                .any(is)
            {
                return PluginError::compile(format!("the compiler crashed ({status}): {complaint}"));
            }
        }
        self.failed(&format!("it ended with {status}: {complaint}"))
    }

    fn out_of_memory(&self) -> PluginError {
        PluginError::CompileMemory { max: self.memory_bytes_max }
    }

    fn failed(&self, error: &str) -> PluginError {
        let error = outcome::one_line(error).to_string();
        PluginError::CompilerProcess { program: self.program.clone(), error }
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
    guarded(|| engine.precompile_component(component))
}

/// Runs a part of the compiler. No component is known that makes it panic; if one does, it is that component's fault
/// alone.
pub(crate) fn guarded<T>(run: impl FnOnce() -> wasmtime::Result<T>) -> Result<T, PluginError> {
    catch_unwind(AssertUnwindSafe(run))
        .map_err(|panic| PluginError::compile(format!("the compiler panicked: {}", outcome::panic_text(&*panic))))?
        .map_err(|error| PluginError::compile(format!("{error:#}")))
}

/// The other side of [`CompilerProcess`]: puts this process under the limits that it reads from stdin, compiles the
/// component that follows, and writes the code to stdout. To be called first thing, before any other thread is there.
///
/// # Errors
/// An [`io::Error`] if what comes is incomplete, or nobody reads the answer.
pub fn compile_one() -> io::Result<()> {
    let mut stdin = io::stdin().lock();
    let mut allowance = [0; Allowance::BYTES];
    stdin.read_exact(&mut allowance)?;
    Allowance::from_bytes(allowance).impose()?;
    let mut component = Vec::new();
    stdin.read_to_end(&mut component)?;
    let (answer, last) = match guarded(engine::compiling).and_then(|engine| compile(&engine, &component)) {
        Ok(code) => (code, CODE),
        Err(error) => {
            let error = match error {
                PluginError::Compile(text) => text,
                other => other.to_string(),
            };
            // wasmtime, its panics, and the system.
            let short = ["out of memory", "out-of-memory", "Cannot allocate memory"];
            let last = if short.iter().any(|words| error.contains(words)) { MEMORY } else { WRONG };
            (error.into_bytes(), last)
        }
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&answer)?;
    stdout.write_all(&[last])?;
    stdout.flush()
}

/// What a process may take, as it reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowance {
    seconds: u64,
    memory_bytes: u64,
}

impl Allowance {
    const BYTES: usize = 16;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        (u128::from(self.seconds) << 64 | u128::from(self.memory_bytes)).to_be_bytes()
    }

    fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let both = u128::from_be_bytes(bytes);
        Self { seconds: (both >> 64) as u64, memory_bytes: both as u64 }
    }

    /// Holds this process to it.
    fn impose(self) -> io::Result<()> {
        #[cfg(unix)]
        self.impose_by_kernel()?;
        let clock = Duration::from_secs(self.seconds).saturating_mul(CLOCK_FACTOR);
        thread::Builder::new().name("clock".to_owned()).spawn(move || {
            thread::sleep(clock);
            eprintln!("it has taken {} s by the clock", clock.as_secs());
            std::process::exit(1);
        })?;
        Ok(())
    }

    #[cfg(unix)]
    fn impose_by_kernel(self) -> io::Result<()> {
        use rustix::process::{Resource, Rlimit, getrlimit, nice, setrlimit};
        // How much it gives way to what delivers messages.
        const NICE: i32 = 5;
        // A limit that is lower already stays.
        let at_most = |resource: Resource, current: u64, maximum: u64| {
            let found = getrlimit(resource);
            let lower = |max: u64, found: Option<u64>| Some(found.map_or(max, |found| found.min(max)));
            let (current, maximum) = (lower(current, found.current), lower(maximum, found.maximum));
            setrlimit(resource, Rlimit { current, maximum })
        };
        // Where memory is short, it goes before the node does. Not every system has this.
        #[cfg(target_os = "linux")]
        drop(std::fs::write("/proc/self/oom_score_adj", "1000"));
        // The first ends it with a signal that says why.
        at_most(Resource::Cpu, self.seconds, self.seconds.saturating_add(1))?;
        // It writes no files.
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
    fn an_allowance_is_read_as_it_was_written() {
        let allowance = Allowance { seconds: 120, memory_bytes: u64::MAX - 1 };
        assert_eq!(Allowance::from_bytes(allowance.to_bytes()), allowance);
    }
}
