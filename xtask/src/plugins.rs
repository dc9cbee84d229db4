//! Builds the plugins: the first-party ones, those of the examples and those of the tests, each one component in
//! one directory. Which toolchain builds them is found out in [`toolchain`].

mod toolchain;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde_json::Value;
use wit_component::{ComponentEncoder, DecodedWasm};

use self::toolchain::GuestTarget;
use crate::cargo;

/// The packages that plugins are made from. A package can have several: its examples are plugins too.
const PACKAGES: [&str; 4] = ["publish-http", "publish-log", "delay-stats", "laneway-test-guests"];

/// Stack of a guest, in bytes: its memory is made afresh for each message, so it must be small.
const STACK_BYTES: u32 = 64 * 1024;

/// Arguments of `cargo xtask plugins`.
#[derive(Debug, clap::Args)]
pub struct PluginsArgs {
    /// Directory for the components; `plugins` in cargo's target directory if not given
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Folder of a Rust project, built in place of Laneway's own plugins, with the toolchain that builds those
    #[arg(long, value_name = "DIR")]
    pub project: Option<PathBuf>,
}

/// Which world a plugin is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginKind {
    /// Processes messages.
    Handler,
    /// Forwards messages.
    Publisher,
}

impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handler => "handler",
            Self::Publisher => "publisher",
        })
    }
}

/// A component that was built.
#[derive(Debug)]
pub struct BuiltPlugin {
    /// Name of the package, or of the example.
    pub name: String,
    /// The component.
    pub path: PathBuf,
    /// Which world it is of.
    pub kind: PluginKind,
}

/// Builds the plugins and lists them on stdout: kind, size in bytes, path.
///
/// # Errors
/// Those of [`build`].
pub fn run(args: PluginsArgs) -> anyhow::Result<()> {
    let out = args.out.map_or_else(directory, |out| Ok(std::path::absolute(out)?))?;
    let built = match args.project {
        Some(project) => build_project(&std::path::absolute(project)?, &out)?,
        None => build(&out)?,
    };
    for plugin in built {
        let bytes = fs::metadata(&plugin.path)?.len();
        println!("{:<9} {bytes:>8} {}", plugin.kind.to_string(), plugin.path.display());
    }
    Ok(())
}

/// Builds the plugins, which is quick when nothing has changed, and answers the directory with the components.
///
/// # Errors
/// Those of [`build`].
pub fn ensure_built() -> anyhow::Result<PathBuf> {
    let out = directory()?;
    build(&out)?;
    Ok(out)
}

/// Where the components are if the user wants them nowhere else.
fn directory() -> anyhow::Result<PathBuf> {
    Ok(cargo::target()?.join("plugins"))
}

/// Builds the plugins into a directory, which is made if it is missing. A component that has not changed is not
/// written again.
///
/// # Errors
/// If there is no toolchain for guests, if a plugin does not compile, or if what was built is no plugin.
pub fn build(out: &Path) -> anyhow::Result<Vec<BuiltPlugin>> {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    build_in(&cargo::root()?, out, |cargo| {
        cargo.args(["--lib", "--examples", "--locked", "--profile", "guest"]).args(packages);
    })
}

/// Builds a project that is not of this workspace, as its own profile for releases says.
///
/// # Errors
/// Those of [`build`].
fn build_project(project: &Path, out: &Path) -> anyhow::Result<Vec<BuiltPlugin>> {
    build_in(project, out, |cargo| {
        cargo.args(["--lib", "--release"]);
    })
}

fn build_in(folder: &Path, out: &Path, choose: impl FnOnce(&mut Command)) -> anyhow::Result<Vec<BuiltPlugin>> {
    // A target directory of its own: the caller's cargo may hold the lock of the other one.
    let guests = cargo::target()?.join("guests");
    let toolchain = toolchain::find(&guests)?;
    eprintln!("plugins: building with {toolchain}");
    fs::create_dir_all(out).with_context(|| format!("failed to make {}", out.display()))?;

    let mut cargo = toolchain.cargo();
    cargo.current_dir(folder).arg("build");
    choose(&mut cargo);
    let mut plugins = Vec::new();
    for (name, module) in compile(cargo, &guests)? {
        let plugin = finish(&name, &module, toolchain.target(), out)
            .with_context(|| format!("failed to make a component of {}", module.display()))?;
        plugins.push(plugin);
    }
    plugins.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(plugins)
}

/// Runs cargo, and answers the names and files of what it built, or had built already.
fn compile(mut cargo: Command, target_dir: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    cargo.args(["--message-format", "json-render-diagnostics", "--target-dir"]).arg(target_dir);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", format!("-Clink-arg=-zstack-size={STACK_BYTES}"));
    let output = cargo.stderr(Stdio::inherit()).output().context("failed to run cargo")?;
    if !output.status.success() {
        bail!("cargo could not build the plugins; its output is above");
    }
    let modules: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().filter_map(built_module).collect();
    if modules.is_empty() {
        bail!("cargo built no plugin");
    }
    Ok(modules)
}

/// Name and file of a module, if that is what a line of cargo's output tells of.
fn built_module(line: &str) -> Option<(String, PathBuf)> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line["reason"] != "compiler-artifact" {
        return None;
    }
    let files = line["filenames"].as_array()?;
    let module = files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".wasm"))?;
    // The library of a package has the package's name, with underscores.
    let name = line["target"]["name"].as_str()?.replace('_', "-");
    Some((name, module.into()))
}

/// Makes a component of what the compiler built, checks it, and puts it where it belongs.
fn finish(name: &str, module: &Path, target: GuestTarget, out: &Path) -> anyhow::Result<BuiltPlugin> {
    let built = fs::read(module)?;
    let component = match target {
        GuestTarget::Wasip2 => built,
        GuestTarget::Unknown => ComponentEncoder::default().validate(true).module(&built)?.encode()?,
    };
    let kind = kind_of(&component)?;
    let path = out.join(format!("{name}.wasm"));
    if fs::read(&path).ok().as_ref() != Some(&component) {
        // Renamed into place, so that nobody reads half a component.
        let part = tempfile::NamedTempFile::new_in(out)?;
        fs::write(part.path(), &component)?;
        part.persist(&path)?;
    }
    Ok(BuiltPlugin { name: name.to_owned(), path, kind })
}

/// Which world a component is of, by what it exports.
fn kind_of(component: &[u8]) -> anyhow::Result<PluginKind> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component)? else {
        bail!("it is a WIT package, not a component");
    };
    let exports: Vec<String> =
        resolve.worlds[world].exports.keys().map(|export| resolve.name_world_key(export)).collect();
    let has =
        |interface: &str| exports.iter().any(|name| name.starts_with(&format!("laneway:plugin/{interface}@")));
    match (has("lifecycle"), has("handler"), has("publisher")) {
        (true, true, false) => Ok(PluginKind::Handler),
        (true, false, true) => Ok(PluginKind::Publisher),
        _ => bail!("it is of neither world of the contract; it exports {exports:?}"),
    }
}
