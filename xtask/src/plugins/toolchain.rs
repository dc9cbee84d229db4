//! Finds a toolchain that can build guests: one that rustup manages, with the target `wasm32-wasip2`, or else
//! Debian's `rustc-web` with the sources of the standard library.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Forces the target: `wasip2` or `unknown`.
const TARGET_VARIABLE: &str = "LANEWAY_GUEST_TARGET";
const WASIP2: &str = "wasm32-wasip2";
const UNKNOWN: &str = "wasm32-unknown-unknown";

/// Longest time that rustup may take to add the target. Without a network it tries for long.
const RUSTUP_TIMEOUT: Duration = Duration::from_secs(60);

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
/// Oldest minor version of Rust 1 that builds the guests.
const RUST_MINOR_MIN: u32 = 95;

/// What guests are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestTarget {
    /// `wasm32-wasip2`: the linker makes a component.
    Wasip2,
    /// `wasm32-unknown-unknown`: the linker makes a module, which has yet to become a component.
    Unknown,
}

/// How guests are built.
#[derive(Debug)]
pub enum Toolchain {
    /// The toolchain that runs this, which has the target `wasm32-wasip2`.
    Current,
    /// Debian's compiler, which builds the standard library for `wasm32-unknown-unknown`.
    Debian {
        /// Linker for WebAssembly.
        linker: PathBuf,
    },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => write!(f, "the current toolchain for {WASIP2}"),
            Self::Debian { .. } => write!(f, "{DEBIAN_RUSTC} for {UNKNOWN}"),
        }
    }
}

impl Toolchain {
    /// What it compiles for.
    pub fn target(&self) -> GuestTarget {
        match self {
            Self::Current => GuestTarget::Wasip2,
            Self::Debian { .. } => GuestTarget::Unknown,
        }
    }

    /// A call of cargo that builds for the target: `cargo`, without its subcommand.
    ///
    /// Arguments given to it must be those of `cargo build`.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        clear_environment(&mut cargo);
        match self {
            Self::Current => {
                cargo.env("CARGO_BUILD_TARGET", WASIP2);
            }
            Self::Debian { linker } => {
                cargo.args(["-Z", "build-std=std,panic_abort"]);
                cargo.env("CARGO_BUILD_TARGET", UNKNOWN);
                cargo.env("RUSTC", DEBIAN_RUSTC);
                // Building the standard library is unstable, and this compiler and this cargo are stable ones.
                cargo.env("RUSTC_BOOTSTRAP", "1");
                cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
                // `cargo run` puts the libraries of its own compiler first.
                cargo.env_remove("LD_LIBRARY_PATH");
            }
        }
        cargo
    }
}

/// Takes out what `cargo run` or the user's shell says to another cargo: flags, targets, wrappers, the package run.
fn clear_environment(cargo: &mut Command) {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_TERM_", "CARGO_BUILD_JOBS"];
    const TAKEN: [&str; 5] = ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_BOOTSTRAP", "RUSTFLAGS"];
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let of_cargo = text.starts_with("CARGO_") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if of_cargo || TAKEN.contains(&text) {
            cargo.env_remove(&name);
        }
    }
}

/// Finds a toolchain, installs what is missing if it can, and says on stderr what it does. The directory keeps a
/// note of what need not be tried again.
///
/// # Errors
/// If no toolchain can be had; the error says what to install.
pub fn find(notes: &Path) -> anyhow::Result<Toolchain> {
    match env::var(TARGET_VARIABLE).ok().as_deref() {
        None | Some("") => {}
        Some("wasip2") if has_wasip2() || add_wasip2() => return Ok(Toolchain::Current),
        Some("wasip2") => {
            bail!(
                "the current toolchain lacks {WASIP2}, and rustup could not add it ({TARGET_VARIABLE} asks for it)"
            )
        }
        Some("unknown") => return debian(),
        Some(other) => bail!("{TARGET_VARIABLE} is `{other}`; set it to `wasip2` or `unknown`"),
    }
    if has_wasip2() {
        return Ok(Toolchain::Current);
    }
    let note = notes.join("rustup-cannot-add-wasip2");
    let compiler = answer(Command::new("rustc").arg("--version")).unwrap_or_default();
    if fs::read_to_string(&note).is_ok_and(|noted| noted == compiler) {
        eprintln!("plugins: not asking rustup for {WASIP2} again; remove {} to do so", note.display());
    } else if add_wasip2() {
        return Ok(Toolchain::Current);
    }
    let toolchain = debian().with_context(|| {
        format!(
            "no toolchain for guests: `rustup target add {WASIP2}`, or install {}",
            DEBIAN_PACKAGES.join(" and ")
        )
    })?;
    // Noted only now: as long as nothing works, each run should try everything.
    fs::create_dir_all(notes).and_then(|()| fs::write(&note, compiler)).context("failed to write a note")?;
    Ok(toolchain)
}

fn has_wasip2() -> bool {
    sysroot("rustc").is_some_and(|sysroot| sysroot.join("lib/rustlib").join(WASIP2).join("lib").is_dir())
}

fn add_wasip2() -> bool {
    eprintln!("plugins: rustup target add {WASIP2}");
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", WASIP2]).stdout(Stdio::null()).stderr(Stdio::null());
    let added = succeeds_within(&mut rustup, RUSTUP_TIMEOUT) && has_wasip2();
    if !added {
        eprintln!("plugins: rustup could not add {WASIP2}");
    }
    added
}

fn succeeds_within(command: &mut Command, timeout: Duration) -> bool {
    let Ok(mut child) = command.stdin(Stdio::null()).spawn() else { return false };
    let start = Instant::now();
    while start.elapsed() < timeout {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(50)),
            Err(_) => return false,
        }
    }
    // It may have ended just now, which is as well.
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// Debian's compiler, installed if it is missing.
fn debian() -> anyhow::Result<Toolchain> {
    if !debian_is_usable() {
        install()?;
        if !debian_is_usable() {
            bail!(
                "{DEBIAN_RUSTC} is older than Rust 1.{RUST_MINOR_MIN}, or without the standard library's sources"
            );
        }
    }
    let linker = linker().context("no linker for WebAssembly: neither rust-lld of a Rust toolchain nor wasm-ld")?;
    Ok(Toolchain::Debian { linker })
}

fn debian_is_usable() -> bool {
    let recent = answer(Command::new(DEBIAN_RUSTC).arg("--version")).and_then(|version| minor(&version));
    let sources = sysroot(DEBIAN_RUSTC).map(|sysroot| sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml"));
    recent.is_some_and(|minor| minor >= RUST_MINOR_MIN) && sources.is_some_and(|file| file.is_file())
}

/// The `95` in `rustc 1.95.0 (...)`.
fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

fn install() -> anyhow::Result<()> {
    let packages = DEBIAN_PACKAGES.join(" ");
    let as_root: &[&str] = if answer(Command::new("id").arg("-u")).as_deref() == Some("0") {
        &["apt-get"]
    } else if answer(Command::new("sudo").args(["-n", "true"])).is_some() {
        &["sudo", "-n", "apt-get"]
    } else {
        bail!("{packages} must be installed, and this is not root, nor does sudo work without a password");
    };
    for arguments in [&["update"][..], &["install", "--yes", "--no-install-recommends"]] {
        let mut apt = Command::new(as_root[0]);
        apt.args(&as_root[1..]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        if arguments[0] == "install" {
            apt.args(DEBIAN_PACKAGES);
        }
        eprintln!("plugins: {apt:?}");
        // What it prints is no result of ours.
        apt.stdout(std::io::stderr());
        if !apt.status().is_ok_and(|status| status.success()) {
            bail!("apt-get could not install {packages}");
        }
    }
    Ok(())
}

/// A linker: that of a Rust toolchain fits best, because its LLVM is as new as the compiler's.
fn linker() -> Option<PathBuf> {
    let host = answer(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: "))?;
    let in_sysroot = ["rustc", DEBIAN_RUSTC]
        .into_iter()
        .filter_map(sysroot)
        .map(|sysroot| sysroot.join("lib/rustlib").join(host).join("bin/rust-lld"));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|dir| dir.join("wasm-ld"));
    in_sysroot.chain(in_path).find(|linker| linker.is_file())
}

fn sysroot(rustc: &str) -> Option<PathBuf> {
    answer(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

/// What a command prints, or `None` if it fails.
fn answer(command: &mut Command) -> Option<String> {
    let output = command.env_remove("LD_LIBRARY_PATH").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_compiler_is_read() {
        assert_eq!(minor("rustc 1.96.0 (ac68faa20 2026-04-14) (built from a source tarball)"), Some(96));
        assert_eq!(minor("rustc 2.0.0"), None);
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended() {
        let start = Instant::now();
        assert!(!succeeds_within(Command::new("sleep").arg("30"), Duration::from_millis(100)));
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(succeeds_within(&mut Command::new("true"), Duration::from_secs(10)));
    }
}
