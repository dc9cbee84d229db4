//! The file as it is written, and its checks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Span, SpanRelativeTo};
use laneway_core::{
    BreakerPolicy, MessageId, Name, Ordering, Priority, RetryPolicy, RetrySchedule, Subscription, SubscriptionKind,
    THROTTLE_MAX_DEFAULT, TopicPattern,
};
use laneway_host::{Grants, Limits, PluginSpec, PublicKeys};
use laneway_store::Storage;
use serde::{Deserialize, Deserializer};

use super::schedules::{CleanupBlock, ScheduleBlock, Schedules};
use super::secrets::SecretSource;
use super::{Config, PluginSource, SubscriptionConfig};
use crate::compiler::CompileLimits;

/// The commented file with every key: what `laneway config` prints.
pub const REFERENCE: &str = include_str!("reference.toml");

/// Shortest lease and timeout: below it, renewal is a race against the scheduler.
const LEASE_MIN: Duration = Duration::from_millis(100);
/// Shortest limit of the pauses that a destination asks for: with less, claims and hand-backs would go round in a circle.
const THROTTLE_MAX_MIN: Duration = Duration::from_millis(100);
/// Most messages that one node runs at once for one subscription.
const CONCURRENCY_MAX: u32 = 1024;
/// Most deliveries that one claim takes.
const CLAIM_BATCH_MAX: u32 = 4096;
/// Largest share of the backfill lane: the primary one is to come first.
const BACKFILL_SHARE_MAX: f64 = 0.9;
/// Lowest and highest limit of a rate, in messages a second.
const RATE_MIN: f64 = 0.001;
const RATE_MAX: f64 = 1_000_000.0;
/// Most deliveries that a cluster can be held to.
const CLUSTER_CONCURRENCY_MAX: u32 = 1_000_000;
/// Random digits of a node's name that nobody gave.
const NODE_DIGITS: usize = 6;
/// Most bytes that one message can be let bring into the host's memory.
const OUTPUT_BYTES_MAX: u64 = 1 << 30;
/// Most bytes that a payload may have: what the databases' rows and the sandbox can carry with ease.
pub const PAYLOAD_BYTES_MAX: u32 = 64 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    storage: StorageBlock,
    #[serde(default)]
    node: NodeBlock,
    #[serde(default)]
    limits: LimitsBlock,
    #[serde(default)]
    sandbox: SandboxBlock,
    #[serde(default)]
    secrets: BTreeMap<Name, SecretSource>,
    #[serde(default)]
    plugins: PluginsBlock,
    #[serde(default, rename = "subscription")]
    subscriptions: Vec<SubscriptionBlock>,
    #[serde(default, rename = "schedule")]
    schedules: Vec<ScheduleBlock>,
    #[serde(default)]
    cleanup: CleanupBlock,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StorageBlock {
    url: String,
}

impl Default for StorageBlock {
    fn default() -> Self {
        Self { url: "sqlite://laneway.db".to_owned() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeBlock {
    name: Option<Name>,
    #[serde(deserialize_with = "duration")]
    poll_interval: Duration,
    #[serde(deserialize_with = "duration")]
    grace: Duration,
    sandbox_threads: Option<usize>,
}

impl Default for NodeBlock {
    fn default() -> Self {
        Self {
            name: None,
            poll_interval: Duration::from_secs(1),
            grace: Duration::from_secs(20),
            sandbox_threads: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsBlock {
    payload_bytes_max: u32,
}

impl Default for LimitsBlock {
    fn default() -> Self {
        Self { payload_bytes_max: 1024 * 1024 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SandboxBlock {
    cache_dir: Option<PathBuf>,
    instances_max: u32,
    memory_bytes_max: usize,
    #[serde(deserialize_with = "duration")]
    compile_time_max: Duration,
    compile_memory_bytes_max: u64,
}

impl Default for SandboxBlock {
    fn default() -> Self {
        let CompileLimits { time_max, memory_bytes_max } = CompileLimits::default();
        Self {
            cache_dir: None,
            instances_max: 256,
            memory_bytes_max: 64 * 1024 * 1024,
            compile_time_max: time_max,
            compile_memory_bytes_max: memory_bytes_max,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct PluginsBlock {
    require_signatures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscriptionBlock {
    name: Name,
    topic: String,
    handler: Option<PathBuf>,
    publisher: Option<PathBuf>,
    #[serde(default = "default_concurrency")]
    concurrency: u32,
    #[serde(default = "default_claim_batch")]
    claim_batch: u32,
    #[serde(default = "default_publish_batch")]
    publish_batch: u32,
    #[serde(default = "default_lease", deserialize_with = "duration")]
    lease: Duration,
    #[serde(default = "default_lease", deserialize_with = "duration")]
    timeout: Duration,
    #[serde(default)]
    lane_threshold: Priority,
    idempotent: Option<bool>,
    #[serde(default)]
    unknown_outcome: UnknownOutcome,
    #[serde(default)]
    ordering: Ordering,
    #[serde(default)]
    backfill_min_share: f64,
    rate_limit: Option<f64>,
    cluster_concurrency: Option<u32>,
    destination: Option<Name>,
    #[serde(default)]
    breaker: BreakerBlock,
    #[serde(default = "default_throttle_max", deserialize_with = "duration")]
    throttle_max: Duration,
    #[serde(default)]
    reuse: bool,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(default)]
    retry: RetryBlock,
    #[serde(default)]
    grants: Grants,
    #[serde(default)]
    limits: PluginLimitsBlock,
}

fn default_concurrency() -> u32 {
    8
}

fn default_claim_batch() -> u32 {
    512
}

fn default_publish_batch() -> u32 {
    1
}

fn default_throttle_max() -> Duration {
    THROTTLE_MAX_DEFAULT
}

fn default_lease() -> Duration {
    Duration::from_secs(30)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BreakerBlock {
    failures: u32,
    #[serde(deserialize_with = "duration")]
    pause: Duration,
}

impl Default for BreakerBlock {
    fn default() -> Self {
        Self { failures: 0, pause: Duration::from_secs(30) }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum UnknownOutcome {
    #[default]
    Retry,
    Review,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Schedule {
    None,
    Constant,
    Linear,
    Exponential,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RetryBlock {
    schedule: Option<Schedule>,
    #[serde(deserialize_with = "optional_duration")]
    base: Option<Duration>,
    factor: Option<f64>,
    #[serde(deserialize_with = "optional_duration")]
    cap: Option<Duration>,
    jitter: Option<f64>,
    max_attempts: Option<u32>,
    #[serde(deserialize_with = "optional_duration")]
    max_elapsed: Option<Duration>,
}

impl RetryBlock {
    /// The policy; what is not given is that of `defaults`.
    fn over(&self, defaults: &RetryPolicy) -> RetryPolicy {
        RetryPolicy {
            schedule: match self.schedule {
                None => defaults.schedule,
                Some(Schedule::None) => RetrySchedule::None,
                Some(Schedule::Constant) => RetrySchedule::Constant,
                Some(Schedule::Linear) => RetrySchedule::Linear,
                Some(Schedule::Exponential) => RetrySchedule::Exponential,
            },
            base: self.base.unwrap_or(defaults.base),
            factor: self.factor.unwrap_or(defaults.factor),
            cap: self.cap.unwrap_or(defaults.cap),
            jitter: self.jitter.unwrap_or(defaults.jitter),
            max_attempts: self.max_attempts.unwrap_or(defaults.max_attempts),
            max_elapsed: self.max_elapsed.or(defaults.max_elapsed),
        }
    }
}

/// The defaults of the first release. The text of a topology is made with them, so that a longer default makes no other
/// topology of the same file: nodes of both builds work side by side.
fn first_defaults() -> RetryPolicy {
    RetryPolicy { cap: Duration::from_secs(15 * 60), max_attempts: 10, ..RetryPolicy::default() }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct PluginLimitsBlock {
    memory_bytes_max: Option<usize>,
    output_bytes_max: Option<usize>,
    effects_max: Option<usize>,
    effect_bytes_max: Option<usize>,
    log_lines_max: Option<u32>,
    log_line_bytes_max: Option<usize>,
    http_concurrent_max: Option<usize>,
    http_response_bytes_max: Option<u64>,
}

impl PluginLimitsBlock {
    /// These limits; what is not given is as by default.
    fn check(self) -> Result<Limits> {
        let defaults = Limits::default();
        let limits = Limits {
            memory_bytes_max: self.memory_bytes_max.unwrap_or(defaults.memory_bytes_max),
            output_bytes_max: self.output_bytes_max.unwrap_or(defaults.output_bytes_max),
            effects_max: self.effects_max.unwrap_or(defaults.effects_max),
            effect_bytes_max: self.effect_bytes_max.unwrap_or(defaults.effect_bytes_max),
            log_lines_max: self.log_lines_max.unwrap_or(defaults.log_lines_max),
            log_line_bytes_max: self.log_line_bytes_max.unwrap_or(defaults.log_line_bytes_max),
            http_concurrent_max: self.http_concurrent_max.unwrap_or(defaults.http_concurrent_max),
            http_response_bytes_max: self.http_response_bytes_max.unwrap_or(defaults.http_response_bytes_max),
            ..defaults
        };
        // The memory's upper bound is the sandbox's.
        for (key, value, min, max) in [
            ("memory_bytes_max", limits.memory_bytes_max as u64, 1, u64::MAX),
            ("output_bytes_max", limits.output_bytes_max as u64, 1, OUTPUT_BYTES_MAX),
            ("effects_max", limits.effects_max as u64, 0, 100_000),
            ("effect_bytes_max", limits.effect_bytes_max as u64, 0, OUTPUT_BYTES_MAX),
            ("log_lines_max", limits.log_lines_max.into(), 0, 100_000),
            ("log_line_bytes_max", limits.log_line_bytes_max as u64, 1, 1 << 20),
            ("http_concurrent_max", limits.http_concurrent_max as u64, 1, 1024),
            ("http_response_bytes_max", limits.http_response_bytes_max, 0, OUTPUT_BYTES_MAX),
        ] {
            ensure!((min..=max).contains(&value), "limits.{key} is {value}; it must lie between {min} and {max}");
        }
        Ok(limits)
    }
}

/// Reads a duration that is not negative.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(serde::de::Error::custom)
}

fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// Reads a duration of either sign.
pub fn signed_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SignedDuration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_signed_duration(&text).map_err(serde::de::Error::custom)
}

/// Reads "100ms", "30s", "1h 30m", "7d".
fn parse_duration(text: &str) -> Result<Duration> {
    let signed = parse_signed_duration(text)?;
    Duration::try_from(signed).map_err(|_| anyhow::anyhow!("`{text}` is negative; durations start at 0"))
}

/// A duration on the command line.
pub fn duration_argument(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| format!("{error:#}"))
}

fn parse_signed_duration(text: &str) -> Result<SignedDuration> {
    let explain = || format!("`{text}` is no duration; write it like \"100ms\", \"30s\", \"5m\" or \"7d\"");
    let span: Span = text.parse().with_context(explain)?;
    // Days of 24 hours: these are lengths, not dates.
    span.to_duration(SpanRelativeTo::days_are_24_hours()).with_context(explain)
}

impl File {
    /// Checks everything that can be checked without a database or a plugin.
    pub fn check(self, folder: &Path, storage: Option<&Storage>) -> Result<Config> {
        let storage = match storage {
            Some(given) => given.clone(),
            None => resolve(Storage::parse(&self.storage.url).context("storage.url")?, folder),
        };
        ensure!(self.sandbox.instances_max > 0, "sandbox.instances_max is 0; at least 1 instance is needed");
        let compile_limits = CompileLimits {
            time_max: self.sandbox.compile_time_max,
            memory_bytes_max: self.sandbox.compile_memory_bytes_max,
        };
        compile_limits.check()?;
        ensure!(self.node.sandbox_threads != Some(0), "node.sandbox_threads is 0; at least 1 thread is needed");
        ensure!(!self.node.poll_interval.is_zero(), "node.poll_interval is 0; such as \"1s\" is meant");
        ensure!(
            (1..=PAYLOAD_BYTES_MAX).contains(&self.limits.payload_bytes_max),
            "limits.payload_bytes_max is {}; it must lie between 1 and {PAYLOAD_BYTES_MAX}",
            self.limits.payload_bytes_max
        );
        let trusted_keys = match &self.plugins.require_signatures {
            Some(keys) => Some(PublicKeys::parse(keys).context("plugins.require_signatures")?),
            None => None,
        };
        let mut subscriptions = Vec::with_capacity(self.subscriptions.len());
        for block in self.subscriptions {
            let name = block.name.clone();
            ensure!(
                !subscriptions.iter().any(|s: &SubscriptionConfig| s.subscription.name == name),
                "subscription `{name}` is declared twice; names are identities"
            );
            let checked = block
                .check(folder, &self.sandbox, &self.secrets, self.limits.payload_bytes_max)
                .with_context(|| format!("subscription `{name}`"))?;
            subscriptions.push(checked);
        }
        let mut schedules = Schedules::read(self.cleanup, self.schedules, self.limits.payload_bytes_max)?;
        check_destinations(&subscriptions)?;
        schedules.check_markers(&subscriptions)?;
        Ok(Config {
            storage,
            node: self.node.name.map_or_else(default_node, Ok)?,
            poll_interval: self.node.poll_interval,
            grace: self.node.grace,
            sandbox_threads: self.node.sandbox_threads,
            cache_dir_is_set: self.sandbox.cache_dir.is_some(),
            cache_dir: self.sandbox.cache_dir.map(|path| folder.join(path)).or_else(default_cache_dir),
            instances_max: self.sandbox.instances_max,
            memory_bytes_max: self.sandbox.memory_bytes_max,
            compile_limits,
            payload_bytes_max: self.limits.payload_bytes_max,
            secrets: self.secrets.into_iter().map(|(name, source)| (name, source.relative_to(folder))).collect(),
            trusted_keys,
            subscriptions,
            schedules,
        })
    }
}

/// Subscriptions of one destination have one breaker.
fn check_destinations(subscriptions: &[SubscriptionConfig]) -> Result<()> {
    let mut first: BTreeMap<&Name, &Subscription> = BTreeMap::new();
    for SubscriptionConfig { subscription, .. } in subscriptions {
        let Some(destination) = &subscription.destination else { continue };
        let other = first.entry(destination).or_insert(subscription);
        ensure!(
            other.breaker == subscription.breaker,
            "subscriptions `{}` and `{}` have the same destination `{destination}`, and different breakers; write the \
             same `breaker` for both",
            other.name,
            subscription.name
        );
    }
    Ok(())
}

impl SubscriptionBlock {
    fn check(
        self,
        folder: &Path,
        sandbox: &SandboxBlock,
        secrets: &BTreeMap<Name, SecretSource>,
        payload_bytes_max: u32,
    ) -> Result<SubscriptionConfig> {
        let (kind, component) = match (self.handler, self.publisher) {
            (Some(path), None) => (SubscriptionKind::Handler, path),
            (None, Some(path)) => (SubscriptionKind::Publisher, path),
            (None, None) => bail!("neither `handler` nor `publisher` is given; name the component's file"),
            (Some(_), Some(_)) => bail!("both `handler` and `publisher` are given; a subscription has one plugin"),
        };
        let within = |key: &str, value: u32, max: u32| -> Result<()> {
            ensure!((1..=max).contains(&value), "{key} is {value}; it must lie between 1 and {max}");
            Ok(())
        };
        within("concurrency", self.concurrency, CONCURRENCY_MAX)?;
        // More could never run at once, and would only wait for one another.
        ensure!(
            self.concurrency <= sandbox.instances_max,
            "concurrency is {}, over sandbox.instances_max, which is {}; lower the one or raise the other",
            self.concurrency,
            sandbox.instances_max
        );
        within("claim_batch", self.claim_batch, CLAIM_BATCH_MAX)?;
        within("publish_batch", self.publish_batch, CLAIM_BATCH_MAX)?;
        for (key, value) in [("lease", self.lease), ("timeout", self.timeout)] {
            ensure!(value >= LEASE_MIN, "{key} is {value:?}; it must be at least {LEASE_MIN:?}");
        }
        let retry = self.retry.over(&RetryPolicy::default());
        retry.validate().context("retry")?;
        ensure!(
            self.throttle_max >= THROTTLE_MAX_MIN,
            "throttle_max is {:?}; it must be at least {THROTTLE_MAX_MIN:?}",
            self.throttle_max
        );
        ensure!(
            (0.0..=BACKFILL_SHARE_MAX).contains(&self.backfill_min_share),
            "backfill_min_share is {}; it must lie between 0 and {BACKFILL_SHARE_MAX}",
            self.backfill_min_share
        );
        if let Some(rate) = self.rate_limit {
            ensure!(
                (RATE_MIN..=RATE_MAX).contains(&rate),
                "rate_limit is {rate} messages a second; it must lie between {RATE_MIN} and {RATE_MAX}"
            );
        }
        if let Some(concurrency) = self.cluster_concurrency {
            within("cluster_concurrency", concurrency, CLUSTER_CONCURRENCY_MAX)?;
        }
        let breaker = match self.breaker {
            BreakerBlock { failures: 0, .. } => None,
            BreakerBlock { failures, pause } => {
                ensure!(!pause.is_zero(), "breaker.pause is 0; such as \"30s\" is meant");
                Some(BreakerPolicy { failures, pause })
            }
        };
        let limits = self.limits.check()?;
        for name in &self.grants.secrets {
            ensure!(
                secrets.contains_key(name),
                "grants.secrets has `{name}`, which `[secrets]` has not; add there: {name} = {{ env = \"{name}\" }}"
            );
        }
        ensure!(
            limits.memory_bytes_max <= sandbox.memory_bytes_max,
            "limits.memory_bytes_max is {}, over sandbox.memory_bytes_max, which is {}",
            limits.memory_bytes_max,
            sandbox.memory_bytes_max
        );
        let subscription = Subscription {
            name: self.name.clone(),
            pattern: TopicPattern::parse(&self.topic).context("topic")?,
            kind,
            lane_threshold: self.lane_threshold,
            ordering: self.ordering,
            idempotent: self.idempotent.unwrap_or(kind == SubscriptionKind::Handler),
            retry,
            lease: self.lease,
            timeout: self.timeout,
            concurrency: self.concurrency,
            claim_batch: self.claim_batch,
            publish_batch: if kind == SubscriptionKind::Handler { 1 } else { self.publish_batch },
            review_unknown_outcome: matches!(self.unknown_outcome, UnknownOutcome::Review),
            backfill_min_share: self.backfill_min_share,
            rate_limit: self.rate_limit,
            cluster_concurrency: self.cluster_concurrency,
            destination: self.destination,
            breaker,
            throttle_max: self.throttle_max,
        };
        let spec = PluginSpec {
            name: self.name,
            kind,
            config: self.config,
            grants: self.grants,
            limits,
            reuse: self.reuse,
            payload_bytes_max: u64::from(payload_bytes_max),
        };
        let declared_retry = self.retry.over(&first_defaults());
        Ok(SubscriptionConfig { subscription, declared_retry, source: source(component, folder)?, spec })
    }
}

/// What has a folder or ends in `.wasm` is a file; all else is a plugin's name.
fn source(component: PathBuf, folder: &Path) -> Result<PluginSource> {
    let is_file = component.components().count() > 1 || component.extension().is_some_and(|e| e == "wasm");
    if is_file {
        return Ok(PluginSource::File(folder.join(component)));
    }
    let name = component.to_string_lossy();
    let name =
        Name::parse(&name).with_context(|| format!("`{name}` is neither a `.wasm` file nor a plugin's name"))?;
    Ok(PluginSource::Deployed(name))
}

/// A relative SQLite path in the file is relative to the file; one on the command line, to where the user stands.
fn resolve(storage: Storage, folder: &Path) -> Storage {
    match storage {
        Storage::Sqlite(mut options) => {
            options.path = folder.join(options.path);
            Storage::Sqlite(options)
        }
        Storage::Postgres(options) => Storage::Postgres(options),
    }
}

/// A name that no other node has: the numbers of processes, and even the names of hosts, are alike in many containers.
fn default_node() -> Result<Name> {
    let random = MessageId::generate();
    let random = random.as_str().get(random.as_str().len() - NODE_DIGITS..).unwrap_or_default();
    Ok(Name::parse(&format!("{}-{}-{random}", host(), std::process::id()))?)
}

/// This machine's name, as far as it can be part of a node's.
pub fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String =
        host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).collect();
    let host = if host.is_empty() { "node" } else { &host };
    host[..host.len().min(100)].to_owned()
}

/// Where compiled plugins are kept if nothing else is said.
pub fn default_cache_dir() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.map(|base| base.join("laneway"))
}
