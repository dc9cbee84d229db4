//! `laneway plugin test`: runs a component in the real sandbox, with nothing behind it.

mod messages;
mod report;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use laneway_core::{Attempt, Call, Interrupt, Invoker, Lane, Message, Name, RetryPolicy, SubscriptionKind};
use laneway_host::{Grants, Host, HostError, HostOptions, HttpAnswer, Limits, Plugin, PluginError, PluginSpec};

use crate::compiler::CompileLimits;
use crate::config::{Config, SubscriptionConfig, default_cache_dir};
use crate::{Shared, exit, output};
use report::{CallReport, EffectsReport, MessageReport, Report};
use world::{Fault, World, WrittenState};

/// Largest payload, in bytes, where no configuration says.
const PAYLOAD_BYTES_MAX: u64 = 1 << 20;

#[derive(clap::Args)]
#[command(
    after_help = "The file of messages has one object or an array of them: {\"topic\": \"orders.created\", \"payload\": \
    {...}}, and if need be \"id\", \"key\", \"headers\", \"tenant\", \"priority\", \"content_type\", and \"payload_text\" in place \
    of \"payload\". A handler gets one after the other, with the state kept between them; a publisher gets all at once. HTTP \
    requests go nowhere. Exit codes: 0 if every message succeeded, 1 if not."
)]
pub struct Args {
    /// The component
    file: PathBuf,
    /// File of one message or more, as JSON; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    message: PathBuf,
    /// Value of the plugin's configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
    /// Take configuration, limits and timeout of this subscription in the file that --config names
    #[arg(long, value_name = "NAME", value_parser = Name::parse)]
    subscription: Option<Name>,
    /// State to begin with, as JSON: {"state": {"key": "value"}, "counters": {"name": 1}}
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// What goes wrong on purpose; may be repeated
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,
    /// What HTTP requests are answered with
    #[arg(long, value_name = "STATUS[:BODY]", default_value = "200", value_parser = parse_answer)]
    http_answer: HttpAnswer,
    /// Number of the attempt that the plugin is told
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    attempt: u32,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("use KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_answer(text: &str) -> Result<HttpAnswer, String> {
    let (status, body) = text.split_once(':').unwrap_or((text, ""));
    match status.parse() {
        Ok(status @ 200..=599) => {
            Ok(HttpAnswer::Response { status, headers: Vec::new(), body: Bytes::from(body.to_owned()) })
        }
        _ => Err("use a status from 200 to 599, and a body after a colon if there is to be one".to_owned()),
    }
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    if args.fault.iter().filter(|fault| fault.is_of_http()).count() > 1 {
        return Err(exit::usage(
            "--fault: HTTP requests can go wrong in one way only; give one of the http faults",
        ));
    }
    let Setting { spec, timeout, compile_limits } = setting(shared, &args)?;
    let messages = messages::read(&args.message, spec.payload_bytes_max)?;
    let state = match &args.state {
        Some(path) => serde_json::from_str(&messages::read_text(path)?)
            .with_context(|| format!("state in {}", path.display()))?,
        None => WrittenState::default(),
    };
    let world = Arc::new(World::new(args.http_answer, &args.fault, state)?);
    let (plugin, kind) = load(&world, &args.file, spec, compile_limits)?;
    plugin.validate().await.with_context(|| {
        format!("{} refuses its configuration; give it with --set KEY=VALUE or --subscription", args.file.display())
    })?;
    // What the check of the configuration has logged belongs to no message.
    drop(world.take_seen());
    let trial = Trial {
        conflict: args.fault.contains(&Fault::StateConflict),
        attempt: Attempt {
            number: args.attempt,
            max: args.attempt.max(RetryPolicy::default().max_attempts),
            lane: Lane::Primary,
            timeout,
            maybe_duplicate: args.attempt > 1,
        },
        world,
        plugin,
        kind,
    };
    let mut calls = Vec::new();
    match kind {
        SubscriptionKind::Handler => {
            for message in messages {
                calls.push(trial.run(&[message]).await?);
            }
        }
        SubscriptionKind::Publisher => calls.push(trial.run(&messages).await?),
    }
    let outcomes = || calls.iter().flat_map(|call| &call.messages).map(|message| message.outcome);
    let (all, failed) = (outcomes().count(), outcomes().filter(|outcome| *outcome != "success").count());
    let plugin = trial.plugin.digest().clone();
    let report = Report { plugin, kind, success: failed == 0, calls, state: trial.world.written() };
    if shared.json {
        output::json(&report)?;
    } else {
        report.print()?;
    }
    if failed > 0 {
        bail!("{failed} of {all} messages did not succeed");
    }
    Ok(())
}

/// How the plugin is run.
struct Setting {
    spec: PluginSpec,
    timeout: Duration,
    compile_limits: CompileLimits,
}

fn setting(shared: &Shared, args: &Args) -> Result<Setting> {
    let mut setting = match &args.subscription {
        Some(name) => of_subscription(shared, name)?,
        None => Setting {
            spec: PluginSpec {
                name: Name::parse("test")?,
                // Found out when it is loaded.
                kind: SubscriptionKind::Handler,
                config: BTreeMap::new(),
                grants: Grants::default(),
                limits: Limits::default(),
                reuse: false,
                payload_bytes_max: PAYLOAD_BYTES_MAX,
            },
            timeout: Duration::from_secs(30),
            compile_limits: CompileLimits::default(),
        },
    };
    setting.spec.config.extend(args.set.iter().cloned());
    Ok(setting)
}

fn of_subscription(shared: &Shared, name: &Name) -> Result<Setting> {
    let config = Config::load(&shared.config, shared.storage.as_ref())?;
    let found = config.subscriptions.into_iter().find(|it| it.subscription.name == *name);
    let SubscriptionConfig { subscription, spec, .. } =
        found.with_context(|| format!("no subscription `{name}` in {}", shared.config.display()))?;
    Ok(Setting { spec, timeout: subscription.timeout, compile_limits: config.compile_limits })
}

/// Loads the component as what it is.
fn load(
    world: &Arc<World>,
    file: &Path,
    spec: PluginSpec,
    compile_limits: CompileLimits,
) -> Result<(Arc<Plugin>, SubscriptionKind)> {
    let bytes = std::fs::read(file).with_context(|| format!("failed to read {}", file.display()))?;
    let options = HostOptions {
        cache_dir: default_cache_dir(),
        instances_max: 1,
        memory_bytes_max: spec.limits.memory_bytes_max.max(HostOptions::default().memory_bytes_max),
        compiler: Some(compile_limits.process()?),
        ..HostOptions::default()
    };
    let host = match Host::mocked(options.clone(), world.clone()) {
        // It is compiled each time, then.
        Err(HostError::Cache { .. }) => Host::mocked(HostOptions { cache_dir: None, ..options }, world.clone()),
        made => made,
    }?;
    let as_kind = |kind| host.plugin(&bytes, PluginSpec { kind, ..spec.clone() }).map(|plugin| (plugin, kind));
    let loaded = match as_kind(SubscriptionKind::Handler) {
        // Its exports are looked at once it is compiled; the second time, the compiled code is at hand.
        Err(as_handler @ PluginError::WrongWorld { .. }) => match as_kind(SubscriptionKind::Publisher) {
            Err(PluginError::WrongWorld { .. }) => Err(as_handler),
            other => other,
        },
        other => other,
    };
    loaded.with_context(|| format!("{} cannot run", file.display()))
}

/// A plugin, and the world that it is tried in.
struct Trial {
    plugin: Arc<Plugin>,
    kind: SubscriptionKind,
    world: Arc<World>,
    attempt: Attempt,
    /// Whether what a message reads has changed by the time that it is done.
    conflict: bool,
}

impl Trial {
    /// Runs messages in one call, and again where the engine would.
    async fn run(&self, messages: &[Message]) -> Result<CallReport> {
        let calls: Vec<Call> = messages.iter().map(|message| self.call(message)).collect();
        let mut runs = 1;
        let mut done = self.plugin.invoke(&calls).await;
        if self.conflict && done.iter().any(|it| self.world.overtake(&it.effects)) {
            runs += 1;
            done = self.plugin.invoke(&calls).await;
        }
        for invocation in done.iter().filter(|it| it.result.is_ok()) {
            self.world.commit(&invocation.effects);
        }
        let (log, http) = report::seen(self.world.take_seen());
        let first = done.first().context("the sandbox answered for no message")?;
        Ok(CallReport {
            messages: messages.iter().zip(&done).map(|(it, done)| MessageReport::new(it, &done.result)).collect(),
            runs,
            effects: (self.kind == SubscriptionKind::Handler).then(|| EffectsReport::new(&first.effects)),
            log,
            http,
            sandbox_ms: done.iter().map(|it| it.used.elapsed).sum::<Duration>().as_secs_f64() * 1000.0,
            memory_peak_bytes: first.used.memory_peak_bytes,
        })
    }

    fn call(&self, message: &Message) -> Call {
        Call {
            message: Arc::new(message.clone()),
            attempt: self.attempt,
            state: self.world.clone(),
            interrupt: Interrupt::default(),
        }
    }
}
