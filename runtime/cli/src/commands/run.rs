//! `laneway run`: wires store, host and engine together, and drains at a signal.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use laneway_core::{AppliedTopology, Invoker, Name, Store, SubscriptionId};
use laneway_engine::{Binding, Engine, EngineOptions};
use laneway_host::{Host, HostError, HostOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::Shared;
use crate::config::{Config, SubscriptionConfig};
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
    let (store, topology, bindings) = tokio::select! {
        ready = prepare(&config, args.apply) => ready?,
        name = signals.next() => {
            info!("{name}: stopped before anything was claimed");
            return Ok(());
        }
    };
    let sandbox = sandbox(config.sandbox_threads)?;
    let options = EngineOptions {
        poll_interval: config.poll_interval,
        grace: config.grace,
        ..EngineOptions::new(config.node.clone())
    };
    for what in &config.schedules.turned_off {
        warn!("cleanup.{} is turned off: its retention is not above zero", what.as_str());
    }
    let engine = Engine::start(&store, bindings, config.schedules.all.clone(), options, sandbox.handle());
    let stats = engine.stats().clone();
    info!(storage = config.storage.kind(), topology = topology.revision, "laneway is running");
    let name = signals.next().await;
    info!("{name}: draining");
    let incomplete = tokio::select! {
        report = engine.drain() => (!report.complete).then_some("not everything could be handed back"),
        _ = signals.next() => Some("a second signal came while it drained"),
    };
    sandbox.shutdown_background();
    if shared.json {
        output::json(&stats.snapshot())?;
    }
    match incomplete {
        None => Ok(()),
        Some(why) => Err(exit::Incomplete(why).into()),
    }
}

/// The signals that ask for an end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one, and names it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Everything up to the first claim. The plugins come first: a database is not made for what cannot run.
async fn prepare(config: &Config, apply: bool) -> Result<(Arc<dyn Store>, AppliedTopology, Vec<Binding>)> {
    let host = host(config)?;
    let invokers = load(&host, &config.subscriptions).await?;
    let store = config.storage.open().await?;
    let topology = agree(&*store, config, apply).await?;
    let bindings = bind(config, &topology, invokers)?;
    Ok((store, topology, bindings))
}

/// The WebAssembly host that a configuration asks for.
fn host(config: &Config) -> Result<Arc<Host>> {
    let options = HostOptions {
        cache_dir: config.cache_dir.clone(),
        instances_max: config.instances_max,
        memory_bytes_max: config.memory_bytes_max,
        ..HostOptions::default()
    };
    match Host::new(options.clone()) {
        Err(error @ HostError::Cache { .. }) if !config.cache_dir_is_set => {
            warn!(%error, "no cache of compiled plugins: each start compiles them; `cache_dir` names another place");
            Ok(Host::new(HostOptions { cache_dir: None, ..options })?)
        }
        made => Ok(made?),
    }
}

/// Threads for guests only, so that they delay no lease and no commit.
pub fn sandbox(threads: Option<usize>) -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder.thread_name("sandbox").enable_all().build().context("failed to start the sandbox threads")
}

async fn load(host: &Arc<Host>, subscriptions: &[SubscriptionConfig]) -> Result<Vec<Arc<dyn Invoker>>> {
    let mut invokers: Vec<Arc<dyn Invoker>> = Vec::with_capacity(subscriptions.len());
    for SubscriptionConfig { subscription, component, spec } in subscriptions {
        let name = &subscription.name;
        let bytes = std::fs::read(component)
            .with_context(|| format!("subscription `{name}`: failed to read {}", component.display()))?;
        // Compiling takes long, and a signal is to be heard meanwhile.
        let compiling = tokio::task::spawn_blocking({
            let (host, spec) = (host.clone(), spec.clone());
            move || host.plugin(&bytes, spec)
        });
        let plugin = compiling
            .await?
            .with_context(|| format!("subscription `{name}`: {} cannot run", component.display()))?;
        plugin
            .validate()
            .await
            .with_context(|| format!("subscription `{name}`: {} refuses its configuration", component.display()))?;
        info!(subscription = %name, plugin = %plugin.digest(), "plugin loaded");
        invokers.push(plugin);
    }
    Ok(invokers)
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

fn bind(config: &Config, topology: &AppliedTopology, invokers: Vec<Arc<dyn Invoker>>) -> Result<Vec<Binding>> {
    config
        .subscriptions
        .iter()
        .zip(invokers)
        .map(|(SubscriptionConfig { subscription, .. }, invoker)| {
            let id = number(topology, &subscription.name)?;
            Ok(Binding { subscription: subscription.clone(), id, invoker })
        })
        .collect()
}

fn number(topology: &AppliedTopology, name: &Name) -> Result<SubscriptionId> {
    let found = topology.subscriptions.iter().find(|(other, _)| other == name);
    found.map(|(_, id)| *id).with_context(|| format!("subscription `{name}` is not active in the database"))
}
