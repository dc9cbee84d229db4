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

/// Longest time that rustup may take to add the target, on a slow network. Without one it tries for long.
const RUSTUP_TIMEOUT: Duration = Duration::from_secs(5 * 60);

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
    sysroot("rustc").is_some_and(|sysroot| is_whole(&sysroot.join("lib/rustlib").join(WASIP2).join("lib")))
}

/// Whether a target's directory has a standard library in it: one that rustup was interrupted in has not.
fn is_whole(libraries: &Path) -> bool {
    libraries.read_dir().into_iter().flatten().flatten().any(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn add_wasip2() -> bool {
    eprintln!("plugins: rustup target add {WASIP2}");
    let mut rustup = Command::new("rustup");
    let added = run_within(rustup.args(["target", "add", WASIP2]), RUSTUP_TIMEOUT).and_then(|()| {
        if has_wasip2() { Ok(()) } else { bail!("it succeeded, but the target's standard library is not there") }
    });
    if let Err(error) = &added {
        eprintln!("plugins: rustup could not add {WASIP2}: {error:#}");
    }
    added.is_ok()
}

/// Runs a command that must succeed in time. The error has what it said on stderr.
fn run_within(command: &mut Command, timeout: Duration) -> anyhow::Result<()> {
    // A file, which takes any amount while nobody reads it.
    let said = tempfile::NamedTempFile::new()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.reopen()?)
        .spawn()
        .context("cannot be run")?;
    let start = Instant::now();
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() >= timeout {
            // It may have ended just now, which is as well.
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let ended = match ended {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("it ended with {status}"),
        None => format!("it was ended after {timeout:?}"),
    };
    let said = String::from_utf8_lossy(&fs::read(said.path())?).trim().to_owned();
    if said.is_empty() { bail!("{ended}, and said nothing") } else { bail!("{ended}, and said:\n{said}") }
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
        let error = run_within(Command::new("sleep").arg("300"), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("ended after 100ms"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn what_a_command_that_fails_says_is_told() {
        run_within(&mut Command::new("true"), Duration::from_secs(60)).unwrap();
        let fails = |script: &str| {
            run_within(Command::new("sh").args(["-c", script]), Duration::from_secs(60)).unwrap_err().to_string()
        };
        let error = fails("echo no network >&2; exit 3");
        assert!(error.contains("exit status: 3") && error.contains("no network"), "{error}");
        assert!(fails("exit 1").contains("said nothing"));
        assert!(run_within(&mut Command::new("/nonexistent"), Duration::from_secs(60)).is_err());
    }

    #[test]
    fn a_target_without_its_standard_library_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_whole(&folder.path().join("missing")));
        fs::write(folder.path().join("libcore-0a1b2c.rlib.partial"), "").unwrap();
        assert!(!is_whole(folder.path()), "rustup was interrupted here");
        fs::write(folder.path().join("libcore-0a1b2c.rlib"), "").unwrap();
        assert!(is_whole(folder.path()));
    }
}
