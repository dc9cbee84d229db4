//! `laneway run`: wires store, host and engine together, and drains at a signal.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use laneway_core::{AppliedTopology, Invoker, Name, Store, SubscriptionId};
use laneway_engine::{Binding, Engine, EngineOptions};
use laneway_host::{Host, HostOptions};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::Shared;
use crate::config::{Config, SubscriptionConfig};
use crate::output;

#[derive(clap::Args)]
pub struct Args {
    /// This node's name, before that of the configuration
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Apply the configuration's subscriptions even if the database has others
    #[arg(long)]
    apply: bool,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let mut config = Config::load(&shared.config, shared.storage.as_deref())?;
    if let Some(node) = &args.node {
        config.node = Name::parse(node).context("--node")?;
    }
    // Listen before anything is claimed: a signal from here on drains.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let host = host(&config)?;
    let invokers = load(&host, &config.subscriptions).await?;
    let store = config.storage.open().await?;
    let topology = agree(&*store, &config, args.apply).await?;
    let bindings = bind(&config, &topology, invokers)?;
    let sandbox = sandbox(config.sandbox_threads)?;
    let options = EngineOptions {
        poll_interval: config.poll_interval,
        grace: config.grace,
        ..EngineOptions::new(config.node.clone())
    };
    let engine = Engine::start(&store, bindings, options, sandbox.handle());
    let stats = engine.stats().clone();
    info!(storage = config.storage.kind(), topology = topology.revision, "laneway is running");
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: draining"),
        _ = interrupt.recv() => info!("SIGINT: draining"),
    }
    tokio::select! {
        report = engine.drain() => {
            if !report.complete {
                warn!("stopped before everything was handed back");
            }
        }
        _ = terminate.recv() => warn!("second signal: stopping at once; leases end by themselves"),
        _ = interrupt.recv() => warn!("second signal: stopping at once; leases end by themselves"),
    }
    sandbox.shutdown_background();
    if shared.json {
        output::json(&stats.snapshot())?;
    }
    Ok(())
}

/// The WebAssembly host that a configuration asks for.
pub fn host(config: &Config) -> Result<Arc<Host>> {
    let options = HostOptions {
        cache_dir: config.cache_dir.clone(),
        instances_max: config.instances_max,
        memory_bytes_max: config.memory_bytes_max,
        ..HostOptions::default()
    };
    Ok(Host::new(options)?)
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
        let plugin = host
            .plugin(&bytes, spec.clone())
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
