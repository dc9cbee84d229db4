//! The process that compiles plugins: this program, started once more for each.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use laneway_host::CompilerProcess;

use crate::exit;

/// With less, not even the smallest plugin compiles.
const MEMORY_BYTES_MIN: u64 = 256 << 20;
/// First argument of the process. No subcommand: nobody else is to call it.
const ARGUMENT: &str = "__compile";

/// What compiling one plugin may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Processor time, in whole seconds.
    pub time_max: Duration,
    /// Memory, in bytes.
    pub memory_bytes_max: u64,
}

impl Default for CompileLimits {
    /// Some four times what an interpreter of Python takes.
    fn default() -> Self {
        Self { time_max: Duration::from_secs(120), memory_bytes_max: 4 << 30 }
    }
}

impl CompileLimits {
    /// Refuses what no plugin could be compiled with, and what the system does not count.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.time_max >= Duration::from_secs(1) && self.time_max.subsec_nanos() == 0,
            "sandbox.compile_time_max is {:?}; whole seconds are meant, such as \"2m\"",
            self.time_max
        );
        ensure!(
            self.memory_bytes_max >= MEMORY_BYTES_MIN,
            "sandbox.compile_memory_bytes_max is {}; at least {MEMORY_BYTES_MIN} are needed",
            self.memory_bytes_max
        );
        Ok(())
    }

    /// How to compile under these limits.
    pub fn process(&self) -> Result<CompilerProcess> {
        let Self { time_max, memory_bytes_max } = *self;
        Ok(CompilerProcess { program: this_program()?, args: vec![ARGUMENT.into()], time_max, memory_bytes_max })
    }
}

/// The file of this very program: another version may lie where it was started from, and compile for another host.
fn this_program() -> Result<PathBuf> {
    if cfg!(target_os = "linux") {
        return Ok("/proc/self/exe".into());
    }
    std::env::current_exe().context("failed to find this program's own file, which compiles plugins")
}

/// Compiles one component, if this is a process that [`CompileLimits::process`] describes.
pub fn serve_if_asked() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != ARGUMENT {
        return None;
    }
    let code = match laneway_host::compile_one() {
        Ok(()) => exit::SUCCESS,
        Err(error) => {
            eprintln!("laneway: failed to compile: {error}");
            exit::FAILURE
        }
    };
    Some(code.into())
}
