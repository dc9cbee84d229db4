//! The process that compiles plugins: this program, started once more for each.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use laneway_host::CompilerProcess;

use crate::exit;

/// Processor time for one plugin, if nothing else is said: some four times what an interpreter of Python takes.
pub const TIME_MAX: Duration = Duration::from_secs(120);
/// Memory for one plugin, in bytes, if nothing else is said.
pub const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// With less, not even the smallest plugin compiles.
pub const MEMORY_BYTES_MIN: u64 = 256 << 20;

/// First argument of the process. No subcommand: nobody else is to call it.
const ARGUMENT: &str = "__compile";

/// How to compile under these limits.
pub fn process(time_max: Duration, memory_bytes_max: u64) -> Result<CompilerProcess> {
    Ok(CompilerProcess { program: this_program()?, args: vec![ARGUMENT.into()], time_max, memory_bytes_max })
}

/// The file of this very program: another version may lie where it was started from, and compile for another host.
fn this_program() -> Result<PathBuf> {
    if cfg!(target_os = "linux") {
        return Ok("/proc/self/exe".into());
    }
    std::env::current_exe().context("failed to find this program's own file, which compiles plugins")
}

/// Compiles one component, if this is a process that [`process`] describes.
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
