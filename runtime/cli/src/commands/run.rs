//! `laneway run`: wires store, host and engine together, and drains at a signal.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use laneway_core::{AppliedTopology, Name, Store, StoreError, SubscriptionId};
use laneway_engine::{Binding, Engine, EngineOptions, Runs};
use laneway_host::{Compiled, Grants};
use tracing::{error, info, warn};

use crate::Shared;
use crate::config::{self, Config, PluginSource, SubscriptionConfig};
use crate::loader::Loader;
use crate::signals::{Sent, Signals};
use crate::{exit, output};

#[derive(clap::Args)]
pub struct Args {
    /// This node's name, before that of the configuration
    #[arg(long, value_name = "NAME", value_parser = Name::parse)]
    node: Option<Name>,
    /// Apply the configuration's subscriptions even if the database has others
    #[arg(long)]
    apply: bool,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let mut config = Config::load(&shared.config, shared.storage.as_ref())?;
    if let Some(node) = args.node {
        config.node = node;
    }
    let mut signals = Signals::listen()?;
    let Some(node) = Node::start(&config, args.apply, &mut signals).await? else { return Ok(()) };
    let exchanged = node.engine.exchanged();
    tokio::select! {
        signal = signals.next() => node.stop(signal, &mut signals, shared.json).await,
        error = exchanged => Err(node.abandon(error)),
    }
}

/// A node at work.
pub struct Node {
    pub engine: Engine,
    pub loader: Arc<Loader>,
    sandbox: tokio::runtime::Runtime,
}

impl Node {
    /// Starts a node; none if a signal came first.
    pub async fn start(config: &Config, apply: bool, signals: &mut Signals) -> Result<Option<Self>> {
        let (loader, store, topology, bindings) = tokio::select! {
            ready = prepare(config, apply) => ready?,
            signal = signals.next() => {
                info!("{}: stopped before anything was claimed", signal.as_str());
                return Ok(None);
            }
        };
        let sandbox = sandbox(config.sandbox_threads)?;
        let options = EngineOptions {
            poll_interval: config.poll_interval,
            grace: config.grace,
            place: place(),
            ..EngineOptions::new(config.node.clone())
        };
        for warning in &config.schedules.warnings {
            warn!("{warning}");
        }
        for what in &config.schedules.turned_off {
            warn!("cleanup.{} is turned off: its retention is not above zero", what.as_str());
        }
        if let Some(crowded) = config.crowded() {
            warn!("{crowded}");
        }
        let engine = Engine::start(&store, bindings, config.schedules.all.clone(), options, sandbox.handle());
        info!(storage = config.storage.kind(), topology = topology.revision, "laneway is running");
        Ok(Some(Self { engine, loader, sandbox }))
    }

    /// Ends the node at once, as a crash would: its database is not the one that its messages are in.
    pub fn abandon(self, error: StoreError) -> anyhow::Error {
        error!("{error}");
        self.sandbox.shutdown_background();
        anyhow::Error::new(error).context(
            "the node stopped; what it had in hand was not committed, and is due again \
            in the file that it was claimed from when its leases end",
        )
    }

    /// Drains the node, for this signal. A second one ends it at once, but for SIGHUP: where a terminal or a session ends,
    /// that comes more than once, and together with SIGTERM.
    pub async fn stop(self, signal: Sent, signals: &mut Signals, json: bool) -> Result<()> {
        info!("{}: draining", signal.as_str());
        let stats = self.engine.stats().clone();
        let incomplete = tokio::select! {
            report = self.engine.drain() => (!report.complete).then_some("not everything could be handed back"),
            () = signals.second(signal) => Some("a second signal came while it drained"),
        };
        self.sandbox.shutdown_background();
        if json {
            output::json(&stats.snapshot())?;
        }
        match incomplete {
            None => Ok(()),
            Some(why) => Err(exit::Incomplete(why).into()),
        }
    }
}

/// Where this process runs, as other nodes and operators are told.
fn place() -> String {
    format!("host {}, process {}", config::host(), std::process::id())
}

type Prepared = (Arc<Loader>, Arc<dyn Store>, AppliedTopology, Vec<Binding>);

/// Everything up to the first claim. The plugins come first: a database is not made for what cannot run.
async fn prepare(config: &Config, apply: bool) -> Result<Prepared> {
    let loader = Arc::new(Loader::new(config)?);
    let runs = load(&loader, &config.subscriptions).await?;
    let store = config.storage.open().await?;
    let topology = agree(&*store, config, apply).await?;
    store.note_grants(&config.node, &grants(config)?).await?;
    let bindings = bind(config, &topology, runs)?;
    Ok((loader, store, topology, bindings))
}

/// Threads for guests only, so that they delay no lease and no commit.
pub fn sandbox(threads: Option<usize>) -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder.thread_name("sandbox").enable_all().build().context("failed to start the sandbox threads")
}

/// What runs each subscription. Files are loaded now; what is deployed is loaded as the database says.
async fn load(loader: &Arc<Loader>, subscriptions: &[SubscriptionConfig]) -> Result<Vec<Runs>> {
    // Each file is read once, so that all who run it run the same.
    let mut components: HashMap<&Path, Arc<Compiled>> = HashMap::new();
    let mut sources = Vec::with_capacity(subscriptions.len());
    for SubscriptionConfig { subscription, source, .. } in subscriptions {
        let name = &subscription.name;
        let source = match source {
            PluginSource::File(path) => {
                let component = match components.entry(path) {
                    Entry::Occupied(entry) => entry.get().clone(),
                    Entry::Vacant(entry) => {
                        let opened = loader.open_file(path).await.with_context(|| cannot_run(name, path))?;
                        entry.insert(opened).clone()
                    }
                };
                Source::File(path, component)
            }
            PluginSource::Deployed(plugin) => Source::Deployed(plugin),
        };
        sources.push((name, source));
    }
    let all = sources.into_iter().map(|(name, source)| runs(loader, name, source));
    let at_once = std::thread::available_parallelism().map_or(1, NonZero::get);
    futures::stream::iter(all).buffered(at_once).try_collect().await
}

/// Where a subscription's component comes from, and what was read there.
enum Source<'a> {
    File(&'a Path, Arc<Compiled>),
    Deployed(&'a Name),
}

async fn runs(loader: &Arc<Loader>, name: &Name, source: Source<'_>) -> Result<Runs> {
    match source {
        Source::File(path, component) => {
            let (loader, of) = (loader.clone(), name.clone());
            // On a task of its own, so that others are checked beside it.
            let loaded = tokio::spawn(async move { loader.load(&of, &component).await }).await?;
            let plugin = loaded.with_context(|| cannot_run(name, path))?;
            info!(subscription = %name, plugin = %plugin.digest(), "plugin loaded");
            Ok(Runs::Fixed(plugin))
        }
        Source::Deployed(plugin) => Ok(Runs::Deployed { plugin: plugin.clone(), loader: loader.clone() }),
    }
}

fn cannot_run(subscription: &Name, path: &Path) -> String {
    format!("subscription `{subscription}`: {} cannot run", path.display())
}

/// The topology to work under: the configuration's, which must be the database's too.
async fn agree(store: &dyn Store, config: &Config, apply: bool) -> Result<AppliedTopology> {
    let wanted = config.topology();
    match store.topology().await? {
        Some(active) if active.canonical == wanted.canonical() => Ok(active),
        Some(active) if !apply => bail!(
            "the configuration differs from topology revision {} in the database; run `laneway apply`, or \
             `laneway run --apply`",
            active.revision
        ),
        _ => Ok(store.apply(&wanted).await?),
    }
}

/// What each subscription grants its plugin, as JSON; `{}` if it is what all get.
fn grants(config: &Config) -> Result<Vec<(Name, String)>> {
    let written = |grants: &Grants| match *grants == Grants::default() {
        true => Ok("{}".to_owned()),
        false => serde_json::to_string(grants),
    };
    config.subscriptions.iter().map(|it| Ok((it.subscription.name.clone(), written(&it.spec.grants)?))).collect()
}

fn bind(config: &Config, topology: &AppliedTopology, runs: Vec<Runs>) -> Result<Vec<Binding>> {
    let numbers: HashMap<&Name, SubscriptionId> =
        topology.subscriptions.iter().map(|(name, id)| (name, *id)).collect();
    config
        .subscriptions
        .iter()
        .zip(runs)
        .map(|(SubscriptionConfig { subscription, .. }, runs)| {
            let name = &subscription.name;
            let id = numbers
                .get(name)
                .with_context(|| format!("subscription `{name}` is not active in the database"))?;
            Ok(Binding { subscription: subscription.clone(), id: *id, runs })
        })
        .collect()
}
