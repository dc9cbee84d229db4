//! `laneway dev`: a node for whoever writes a plugin. What changes on the disk is swapped in, while messages flow.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use laneway_core::Name;
use tokio::process::Command;
use tracing::{error, info, warn};

use super::run::Node;
use crate::Shared;
use crate::config::{Config, PluginSource};
use crate::signals::Signals;

/// Between two looks at the disk.
const LOOK: Duration = Duration::from_millis(100);
/// Deepest folder of a crate that is looked into.
const DEPTH_MAX: usize = 16;

#[derive(clap::Args)]
pub struct Args {
    /// Do not build Rust crates when their sources change
    #[arg(long)]
    no_build: bool,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let config = Config::load(&shared.config, shared.storage.as_ref())?;
    let mut signals = Signals::listen()?;
    let mut watched: Vec<Watched> = Vec::new();
    let mut crates: Vec<Crate> = Vec::new();
    for subscription in &config.subscriptions {
        let PluginSource::File(path) = &subscription.source else { continue };
        let crate_of = if args.no_build { None } else { Crate::of(path) };
        if let Some(found) = crate_of.filter(|found| !crates.iter().any(|other| other.builds_like(found))) {
            crates.push(found);
        }
        watched.push(Watched {
            subscription: subscription.subscription.name.clone(),
            path: path.clone(),
            seen: None,
        });
    }
    for found in &mut crates {
        tokio::select! {
            built = found.build() => built?,
            _ = signals.next() => return Ok(()),
        }
    }
    for file in &mut watched {
        file.seen = Stamp::of(&file.path);
    }
    let Some(node) = Node::start(&config, true, &mut signals).await? else { return Ok(()) };
    for file in &watched {
        info!(subscription = %file.subscription, file = %file.path.display(), "watching");
    }
    for found in &crates {
        info!(crate = %found.root.display(), "watching the sources of the crate");
    }
    let exchanged = node.engine.exchanged();
    let signal = tokio::select! {
        signal = signals.next() => signal,
        error = exchanged => return Err(node.abandon(error)),
        never = follow(&node, &mut watched, &mut crates) => match never {},
    };
    node.stop(signal, &mut signals, shared.json).await
}

/// Looks at the disk for ever.
async fn follow(node: &Node, watched: &mut [Watched], crates: &mut [Crate]) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        for found in crates.iter_mut().filter_map(Crate::changed) {
            if let Err(error) = found.build().await {
                warn!("{error:#}; the plugin stays as it was");
            }
        }
        for file in watched.iter_mut() {
            file.look(node).await;
        }
    }
}

/// A component's file that a subscription runs.
struct Watched {
    subscription: Name,
    path: PathBuf,
    /// What was there when it was loaded last, be it in vain.
    seen: Option<Stamp>,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok()?, bytes: metadata.len() })
    }
}

impl Watched {
    /// Swaps the plugin if its file has changed and is whole.
    async fn look(&mut self, node: &Node) {
        let Some(found) = Stamp::of(&self.path).filter(|found| Some(*found) != self.seen) else { return };
        // One that is still being written changes once more.
        tokio::time::sleep(LOOK).await;
        if Stamp::of(&self.path) != Some(found) {
            return;
        }
        self.seen = Some(found);
        let began = Instant::now();
        let load = async {
            let component = node.loader.open_file(&self.path).await?;
            node.loader.load(&self.subscription, &component).await
        };
        match load.await {
            Ok(plugin) => {
                let digest = plugin.digest().clone();
                node.engine.swap(&self.subscription, plugin);
                info!(subscription = %self.subscription, plugin = %digest, took = ?began.elapsed(), "plugin swapped");
            }
            Err(error) => {
                let error = format!("{error:#}");
                error!(subscription = %self.subscription, error, "the new plugin cannot run; the one before goes on");
            }
        }
    }
}

/// A Rust crate that a component is built from: the one in whose target folder it lies.
struct Crate {
    root: PathBuf,
    triple: String,
    profile: String,
    /// Newest time of its sources when it was built last.
    built: Option<SystemTime>,
}

impl Crate {
    /// The crate of `ROOT/target/TRIPLE/PROFILE/NAME.wasm`, if there is one.
    fn of(component: &Path) -> Option<Self> {
        let mut folders = component.ancestors().skip(1);
        let name = |folder: Option<&Path>| Some(folder?.file_name()?.to_str()?.to_owned());
        let (profile, triple) = (name(folders.next())?, name(folders.next())?);
        if !triple.starts_with("wasm32-") || name(folders.next())? != "target" {
            return None;
        }
        let root = folders.next().map(|root| if root.as_os_str().is_empty() { Path::new(".") } else { root })?;
        let is_crate = root.join("Cargo.toml").is_file();
        is_crate.then(|| Self { root: root.to_owned(), triple, profile, built: None })
    }

    fn builds_like(&self, other: &Self) -> bool {
        self.root == other.root && self.triple == other.triple && self.profile == other.profile
    }

    /// Itself, if its sources have changed since it was built.
    fn changed(&mut self) -> Option<&mut Self> {
        let newest = newest(&self.root, 0);
        (newest > self.built).then_some(self)
    }

    /// Builds it. Cargo's words go to stderr.
    async fn build(&mut self) -> Result<()> {
        // What changes while it builds is newer than this, and is built next.
        self.built = newest(&self.root, 0);
        info!(crate = %self.root.display(), "building");
        let profile = if self.profile == "debug" { "dev" } else { &self.profile };
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--target", &self.triple, "--profile", profile])
            .current_dir(&self.root)
            .stdin(Stdio::null())
            // Data alone goes to stdout.
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .context("failed to run cargo")?;
        anyhow::ensure!(
            status.success(),
            "the crate {} does not build; cargo's output is above",
            self.root.display()
        );
        Ok(())
    }
}

/// Newest time of a crate's sources: all but what is hidden, and what cargo makes.
fn newest(folder: &Path, depth: usize) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let kind = entry.file_type().ok()?;
            let is_hidden = name.to_str().is_some_and(|name| name.starts_with('.'));
            if kind.is_dir() {
                let is_made = is_hidden || name == "target" || depth >= DEPTH_MAX;
                return if is_made { None } else { newest(&entry.path(), depth + 1) };
            }
            let is_source =
                [".rs", ".toml", ".wit"].iter().any(|end| name.to_str().is_some_and(|n| n.ends_with(end)));
            if is_source && !is_hidden { entry.metadata().ok()?.modified().ok() } else { None }
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_in_a_target_folder_is_of_the_crate_around_it() {
        let root = tempfile::tempdir().unwrap();
        let component = |path: &str| root.path().join(path);
        let found = |path: &str| Crate::of(&component(path)).map(|found| (found.triple, found.profile));
        assert_eq!(found("target/wasm32-wasip2/release/p.wasm"), None, "there is no crate");
        std::fs::write(root.path().join("Cargo.toml"), "").unwrap();
        let wanted = ("wasm32-wasip2".to_owned(), "release".to_owned());
        assert_eq!(found("target/wasm32-wasip2/release/p.wasm"), Some(wanted));
        assert_eq!(found("target/plugins/p.wasm"), None);
        assert_eq!(found("p.wasm"), None);
    }

    #[test]
    fn sources_are_looked_at_and_what_is_made_of_them_is_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        for path in ["target/x.rs", ".git/x.toml", "laneway.db", "src/.x.rs"] {
            write(path);
        }
        assert_eq!(newest(root.path(), 0), None);
        write("src/a/lib.rs");
        assert!(newest(root.path(), 0).is_some());
    }
}
