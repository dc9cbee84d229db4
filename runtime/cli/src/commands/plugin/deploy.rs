//! `laneway plugin deploy`: a version is checked, made ready on every node, and put to work.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use laneway_core::{
    Canary, CanaryBy, DeploymentState, Name, NewDeployment, PluginLoader, PluginVersion, Readiness, Store,
};
use laneway_engine::ALIVE_FOR;
use serde::Serialize;
use tracing::warn;

use super::{resolve, step};
use crate::Shared;
use crate::config::{Config, PluginSource, duration_argument};
use crate::loader::Loader;
use crate::output;

/// Between two looks at what the nodes say.
const LOOK: Duration = Duration::from_millis(10);

#[derive(clap::Args)]
pub struct Args {
    /// NAME@VERSION, or NAME for the version that was pushed last
    plugin: String,
    /// Try it first with this percentage of the messages, above 0 and up to 100
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    canary: Option<f64>,
    /// What decides which messages the canary gets
    #[arg(long, value_enum, default_value = "message", requires = "canary")]
    by: By,
    /// How long the canary is tried
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration_argument, requires = "canary")]
    window: Duration,
    /// Attempts that it takes to judge the canary
    #[arg(long, value_name = "NUMBER", default_value_t = 50, requires = "canary")]
    min_attempts: u64,
    /// Percentage points by which more of the canary's attempts may fail than of the active version's
    #[arg(long, value_name = "POINTS", default_value_t = 5.0, value_parser = points, requires = "canary")]
    max_failures: f64,
    /// How many times the active version's mean time the canary's attempts may take
    #[arg(long, value_name = "TIMES", default_value_t = 2.0, value_parser = times, requires = "canary")]
    max_slower: f64,
    /// Keep a canary that has held on trial, rather than make it active
    #[arg(long, requires = "canary")]
    hold: bool,
    /// How long to wait for nodes to say that they are ready
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration_argument)]
    wait: Duration,
    /// Put it to work although nodes have not said in time that they are ready; they follow when they are
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum By {
    /// Each message by itself
    Message,
    /// Its key: all messages of one key, or none
    Key,
}

#[derive(Serialize)]
struct Deployed {
    deployment: i64,
    #[serde(flatten)]
    plugin: PluginVersion,
    state: DeploymentState,
    /// Subscriptions of the configuration that it was checked for.
    subscriptions: Vec<String>,
    /// Nodes that did not say in time that they are ready.
    late: Vec<String>,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let config = Config::load(&shared.config, shared.storage.as_ref())?;
    let store = config.storage.open().await?;
    let plugin = resolve(&*store, &args.plugin).await?;
    let canary = args.trial();
    if canary.is_some() {
        check_trial(&config, &*store, &plugin).await?;
    }
    let deployment = store.stage(&NewDeployment { plugin: plugin.clone(), canary, back_to: None }).await?;
    let failed = async |state, error: anyhow::Error| {
        // Who was faster has ended it in another way.
        store.advance(deployment, state, DeploymentState::Failed, Some(&format!("{error:#}"))).await?;
        Err(error.context(format!("{plugin} is not deployed")))
    };
    let subscriptions = match check(&config, &*store, &plugin).await {
        Ok(subscriptions) => subscriptions,
        Err(error) => return failed(DeploymentState::Staged, error).await,
    };
    step(&*store, deployment, DeploymentState::Staged, DeploymentState::Validated, None).await?;
    let late = match wait_for_nodes(&*store, deployment, args.wait).await {
        Ok(late) if late.is_empty() || args.force => late,
        Ok(late) => {
            let error = anyhow::anyhow!(
                "nodes did not say within {:?} that they are ready: {}; --wait gives them longer, --force puts it to \
                 work without them",
                args.wait,
                late.join(", ")
            );
            return failed(DeploymentState::Validated, error).await;
        }
        Err(error) => return failed(DeploymentState::Validated, error).await,
    };
    let state = if canary.is_some() { DeploymentState::Canary } else { DeploymentState::Active };
    step(&*store, deployment, DeploymentState::Validated, state, None).await?;
    for node in &late {
        warn!(node, "the node did not say in time that it is ready; it follows when it is");
    }
    if shared.json {
        return output::json(&Deployed { deployment, plugin, state, subscriptions, late });
    }
    output::line(&match args.canary {
        Some(percent) => {
            format!("{plugin} is on trial with {percent} % of the messages, as deployment {deployment}.")
        }
        None => format!("{plugin} is active, as deployment {deployment}."),
    })
}

impl Args {
    fn trial(&self) -> Option<Canary> {
        Some(Canary {
            share: self.canary? / 100.0,
            by: match self.by {
                By::Message => CanaryBy::Message,
                By::Key => CanaryBy::Key,
            },
            window: self.window,
            attempts_min: self.min_attempts.max(1),
            failures_over_max: self.max_failures / 100.0,
            slower_max: self.max_slower,
            promote: !self.hold,
        })
    }
}

/// Refuses a trial in which the version would get no message.
async fn check_trial(config: &Config, store: &dyn Store, plugin: &PluginVersion) -> Result<()> {
    let under_way = store.deployments(Some(&plugin.name), 0).await?;
    if !under_way.iter().any(|deployment| deployment.state == DeploymentState::Active) {
        bail!(
            "no version of `{}` is active, with which {plugin} could be compared; deploy it without --canary",
            plugin.name
        );
    }
    let mut subscriptions = config.subscriptions.iter().filter(|s| runs(&s.source, &plugin.name)).peekable();
    if subscriptions.peek().is_some() && subscriptions.all(|s| s.subscription.retry.attempts_max() < 2) {
        bail!(
            "subscriptions of {plugin} have one attempt for each message, and a canary gets none that is the last one; \
             allow two with `retry = {{ max_attempts = 2 }}`, or deploy it without --canary"
        );
    }
    Ok(())
}

fn runs(source: &PluginSource, plugin: &Name) -> bool {
    matches!(source, PluginSource::Deployed(name) if name == plugin)
}

/// Compiles the version and lets it check its configuration, for each subscription that runs the plugin. Answers which.
async fn check(config: &Config, store: &dyn Store, plugin: &PluginVersion) -> Result<Vec<String>> {
    let of_plugin = config.subscriptions.iter().filter(|s| runs(&s.source, &plugin.name));
    let subscriptions: Vec<_> = of_plugin.map(|s| s.subscription.name.clone()).collect();
    if subscriptions.is_empty() {
        bail!(
            "no subscription of the configuration runs it; write `handler = \"{0}\"` or `publisher = \"{0}\"` where it \
             is to run",
            plugin.name
        );
    }
    let Some(stored) = store.plugin(plugin).await? else { bail!("it is not stored any more; push it again") };
    let open = Loader::new(config)?.open(stored).await;
    for name in &subscriptions {
        let loaded = match &open {
            Ok(open) => open.load(name).await.map(drop),
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = loaded {
            bail!("subscription `{name}`: {error}");
        }
    }
    Ok(subscriptions.iter().map(ToString::to_string).collect())
}

/// Waits until every living node has the version ready. Answers those that did not say so in time; fails if one cannot run
/// it.
pub async fn wait_for_nodes(store: &dyn Store, deployment: i64, wait: Duration) -> Result<Vec<String>> {
    let began = Instant::now();
    loop {
        let mut waiting = store.nodes_alive(ALIVE_FOR).await?;
        for view in store.reports(&[deployment], ALIVE_FOR).await?.into_iter().filter(|view| view.alive) {
            if view.report.readiness == Readiness::Failed {
                bail!("node `{}` cannot run it: {}", view.node, view.report.error.unwrap_or_default());
            }
            waiting.retain(|node| *node != view.node);
        }
        if waiting.is_empty() || began.elapsed() >= wait {
            return Ok(waiting.iter().map(ToString::to_string).collect());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn within(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if range.contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} does not lie between {} and {}", range.start(), range.end()))
    }
}

fn percent(text: &str) -> Result<f64, String> {
    within(text, 0.001..=100.0)
}

fn points(text: &str) -> Result<f64, String> {
    within(text, 0.0..=100.0)
}

fn times(text: &str) -> Result<f64, String> {
    within(text, 1.0..=1_000_000.0)
}
