//! Plugins as the database keeps them: components by name and version, and which of them is deployed.
//!
//! A deployment is one version of a plugin, put to work for all subscriptions that name the plugin. Its history only grows:
//! to go back to an older version is a new deployment of that version.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{InvalidName, Invoker, Name, PluginDigest, StoreError};

/// Longest version, in bytes.
const VERSION_BYTES_MAX: usize = 64;

/// A plugin's name and version, written `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PluginVersion {
    /// The plugin's name.
    pub name: Name,
    /// Its version: 1 to 64 of `0-9 A-Z a-z . + -`.
    pub version: Arc<str>,
}

/// A text that is no `name@version`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPluginVersion {
    /// It has no `@`.
    #[error("`{0}` names no version; write it like `enrich@1.2.0`")]
    NoVersion(String),
    /// The name is not well formed.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The version is not well formed.
    #[error("version `{0}` is not well formed; 1 to 64 of 0-9 A-Z a-z . + - are allowed")]
    Version(String),
}

impl PluginVersion {
    /// Checks a version.
    ///
    /// # Errors
    /// [`InvalidPluginVersion::Version`].
    pub fn new(name: Name, version: &str) -> Result<Self, InvalidPluginVersion> {
        let accepts = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-');
        if version.is_empty() || version.len() > VERSION_BYTES_MAX || !version.bytes().all(accepts) {
            return Err(InvalidPluginVersion::Version(version.to_owned()));
        }
        Ok(Self { name, version: version.into() })
    }
}

impl fmt::Display for PluginVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

impl FromStr for PluginVersion {
    type Err = InvalidPluginVersion;

    fn from_str(text: &str) -> Result<Self, InvalidPluginVersion> {
        let (name, version) =
            text.split_once('@').ok_or_else(|| InvalidPluginVersion::NoVersion(text.to_owned()))?;
        Self::new(Name::parse(name)?, version)
    }
}

/// A component to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPlugin {
    /// What it is called.
    pub plugin: PluginVersion,
    /// SHA-256 of the component.
    pub digest: PluginDigest,
    /// The component.
    pub component: Bytes,
    /// What it asks for, as JSON.
    pub manifest: Option<String>,
    /// Its signature, in minisign's format.
    pub signature: Option<String>,
}

/// A component as the database holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPlugin {
    /// What it is called.
    pub plugin: PluginVersion,
    /// SHA-256 of the component, as it was when it was stored.
    pub digest: PluginDigest,
    /// The component.
    pub component: Bytes,
    /// Its signature, in minisign's format.
    pub signature: Option<String>,
}

/// A component at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PluginView {
    /// What it is called.
    #[serde(flatten)]
    pub plugin: PluginVersion,
    /// SHA-256 of the component.
    pub digest: PluginDigest,
    /// Size of the component, in bytes.
    pub bytes: u64,
    /// Whether it has a signature. Nobody has looked whose.
    pub signed: bool,
    /// What it asks for, as JSON.
    pub manifest: Option<String>,
    /// When it was stored.
    pub pushed_at: Timestamp,
}

/// Where a deployment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeploymentState {
    /// Announced; who deploys it checks it.
    Staged,
    /// It was checked, and the nodes get it ready.
    Validated,
    /// It gets a share of the messages.
    Canary,
    /// It gets the messages.
    Active,
    /// It gets no new messages; some may be in work.
    Draining,
    /// Nothing of it is in work any more.
    Retired,
    /// It never got a message.
    Failed,
}

impl DeploymentState {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Staged, Self::Validated, Self::Canary, Self::Active, Self::Draining, Self::Retired, Self::Failed];

    /// The state's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Validated => "validated",
            Self::Canary => "canary",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Retired => "retired",
            Self::Failed => "failed",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// The states that a deployment can come from to this one.
    #[must_use]
    pub fn predecessors(self) -> &'static [Self] {
        match self {
            Self::Staged => &[],
            Self::Validated => &[Self::Staged],
            Self::Canary => &[Self::Validated],
            Self::Active => &[Self::Validated, Self::Canary],
            Self::Draining => &[Self::Canary, Self::Active],
            Self::Retired => &[Self::Draining],
            Self::Failed => &[Self::Staged, Self::Validated],
        }
    }
}

/// What decides which messages a canary gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CanaryBy {
    /// Each message by itself.
    #[default]
    Message,
    /// Its key: all messages of one key, or none. Those without a key go by themselves.
    Key,
}

/// A version's trial with a share of the messages. It gets first attempts only, so that what fails there is tried again on
/// the active version.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// Its share, above 0 and up to 1.
    pub share: f64,
    /// What decides which messages it gets.
    pub by: CanaryBy,
    /// How long the trial takes.
    pub window: Duration,
    /// Attempts that it takes to judge.
    pub attempts_min: u64,
    /// How much larger the part of its attempts that fail may be than the active version's: from 0 to 1.
    pub failures_over_max: f64,
    /// How many times the active version's mean time of an attempt its own may be.
    pub slower_max: f64,
    /// Whether it becomes active after the window, if it has held.
    pub promote: bool,
}

/// A version that is to be put to work.
#[derive(Debug, Clone, PartialEq)]
pub struct NewDeployment {
    /// Which one.
    pub plugin: PluginVersion,
    /// How it is tried first, if it is.
    pub canary: Option<Canary>,
    /// The deployment to which it goes back, if it does: the one with which the version came to work at first.
    pub back_to: Option<i64>,
}

/// A version that was, is or is to be at work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Deployment {
    /// In the order in which they were staged.
    pub id: i64,
    /// Which version.
    #[serde(flatten)]
    pub plugin: PluginVersion,
    /// SHA-256 of the component.
    pub digest: PluginDigest,
    /// Where it stands.
    pub state: DeploymentState,
    /// How it is tried first, if it is.
    pub canary: Option<Canary>,
    /// Why it came to this state, if anyone said so.
    pub reason: Option<String>,
    /// Whether it has ever been active.
    pub was_active: bool,
    /// The deployment to which it went back, if it did.
    pub back_to: Option<i64>,
    /// When it was staged.
    pub staged_at: Timestamp,
    /// When it came to this state.
    pub changed_at: Timestamp,
    /// For how long it has been in it, by the database's clock.
    #[serde(skip)]
    pub in_state_for: Duration,
}

/// What attempts came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Attempts that ended.
    pub attempts: u64,
    /// Those that failed, be it by an answer of the plugin's or by the host.
    pub failed: u64,
    /// Those that failed, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u64>,
    /// Time in the sandbox in all, waiting included, in nanoseconds.
    pub elapsed_nanos: u64,
    /// Of this, processor time of guest and host functions, in nanoseconds.
    pub guest_nanos: u64,
    /// Most memory that one instance has held, in bytes.
    pub memory_peak_bytes: u64,
    /// First attempts alone.
    #[serde(default)]
    pub first: FirstAttempts,
}

/// What first attempts came to. A version on trial gets no others, so by these it is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstAttempts {
    /// Those that ended.
    pub attempts: u64,
    /// Those that did not succeed, the throttled ones included.
    pub failed: u64,
    /// Time in the sandbox in all, waiting included, in nanoseconds.
    pub elapsed_nanos: u64,
}

impl FirstAttempts {
    /// The part of the attempts that failed; 0 of none.
    #[must_use]
    pub fn failure_rate(&self) -> f64 {
        if self.attempts == 0 { 0.0 } else { self.failed as f64 / self.attempts as f64 }
    }

    /// Mean time of an attempt; zero of none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.elapsed_nanos.checked_div(self.attempts).unwrap_or_default())
    }
}

impl Figures {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.failed += other.failed;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        self.elapsed_nanos = self.elapsed_nanos.saturating_add(other.elapsed_nanos);
        self.guest_nanos = self.guest_nanos.saturating_add(other.guest_nanos);
        self.memory_peak_bytes = self.memory_peak_bytes.max(other.memory_peak_bytes);
        self.first.attempts += other.first.attempts;
        self.first.failed += other.first.failed;
        self.first.elapsed_nanos = self.first.elapsed_nanos.saturating_add(other.first.elapsed_nanos);
    }

    /// What came to these since others were taken. The memory's peak is that of all.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut reasons = self.reasons.clone();
        for (reason, count) in &before.reasons {
            if let Some(now) = reasons.get_mut(reason) {
                *now = now.saturating_sub(*count);
            }
        }
        reasons.retain(|_, count| *count > 0);
        Self {
            attempts: self.attempts.saturating_sub(before.attempts),
            failed: self.failed.saturating_sub(before.failed),
            reasons,
            elapsed_nanos: self.elapsed_nanos.saturating_sub(before.elapsed_nanos),
            guest_nanos: self.guest_nanos.saturating_sub(before.guest_nanos),
            memory_peak_bytes: self.memory_peak_bytes,
            first: FirstAttempts {
                attempts: self.first.attempts.saturating_sub(before.first.attempts),
                failed: self.first.failed.saturating_sub(before.first.failed),
                elapsed_nanos: self.first.elapsed_nanos.saturating_sub(before.first.elapsed_nanos),
            },
        }
    }

    /// Mean time of an attempt; zero of none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.elapsed_nanos.checked_div(self.attempts).unwrap_or_default())
    }
}

/// Whether a node can run a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// It is ready, or none of the node's subscriptions needs it.
    Ready,
    /// It cannot.
    Failed,
}

/// What one node says of one deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Which deployment.
    pub deployment: i64,
    /// Whether the node can run it.
    pub readiness: Readiness,
    /// Why it cannot.
    pub error: Option<String>,
    /// Whether messages come to it on this node.
    pub current: bool,
    /// Calls under way; a publisher's batch is one.
    pub in_flight: u32,
    /// What its attempts came to since the node took it up.
    pub figures: Figures,
    /// What those of the active version came to meanwhile, while this one is on trial.
    pub beside: Option<Figures>,
}

impl NodeReport {
    /// Whether the node has not done with it: attempts run, or more may begin.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        self.current || self.in_flight > 0
    }
}

/// A [`NodeReport`] with its node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeReportView {
    /// The node.
    pub node: Name,
    /// Whether it lives.
    pub alive: bool,
    /// When it reported.
    pub reported_at: Timestamp,
    /// What it said.
    #[serde(flatten)]
    pub report: NodeReport,
}

/// Plugins and deployments in a database. Each call that changes something is one transaction, and leaves an audit row.
#[async_trait]
pub trait Plugins: Send + Sync + 'static {
    /// Stores a component. Answers `false` if the same one is there already under this name and version;
    /// [`StoreError::Refused`] if that is another one, or was when the version was deployed, or has another signature.
    async fn push_plugin(&self, plugin: &NewPlugin) -> Result<bool, StoreError>;

    /// All components, by name, the newest first.
    async fn plugins(&self) -> Result<Vec<PluginView>, StoreError>;

    /// A component; `Ok(None)` if there is none of this name and version.
    async fn plugin(&self, plugin: &PluginVersion) -> Result<Option<StoredPlugin>, StoreError>;

    /// Removes a component. Answers `false` if there is none; [`StoreError::Refused`] while a deployment of it is under
    /// way.
    async fn remove_plugin(&self, plugin: &PluginVersion) -> Result<bool, StoreError>;

    /// Announces a deployment, and answers its number. [`StoreError::Refused`] if the component is not stored.
    async fn stage(&self, deployment: &NewDeployment) -> Result<i64, StoreError>;

    /// Moves a deployment from the state that the caller has seen to another one, as [`DeploymentState::predecessors`]
    /// allows; answers whether it was in that state. One that becomes active sends the version before it, and any canary, to [`DeploymentState::Draining`]; one
    /// that becomes a canary does so with the canary before it.
    async fn advance(
        &self,
        deployment: i64,
        from: DeploymentState,
        to: DeploymentState,
        reason: Option<&str>,
    ) -> Result<bool, StoreError>;

    /// Deployments of one plugin or of all, the latest first: those under way, which are neither retired nor failed, and up
    /// to `ended` others. Without others, its cost does not grow with their number.
    async fn deployments(&self, plugin: Option<&Name>, ended: u32) -> Result<Vec<Deployment>, StoreError>;

    /// Waits until a deployment may have changed. May wake without cause, and remembers a change that came since the
    /// last call. Callers poll as well: this is only for speed.
    async fn deployments_changed(&self);

    /// Puts down what a node says, in place of what it said before. Deployments that drain, and that are at work on no
    /// living node, are retired by it. `alive_for` is how recent a living node's last heartbeat is.
    async fn report(&self, node: &Name, reports: &[NodeReport], alive_for: Duration) -> Result<(), StoreError>;

    /// What the nodes said last of these deployments.
    async fn reports(&self, deployments: &[i64], alive_for: Duration) -> Result<Vec<NodeReportView>, StoreError>;

    /// Nodes that have been alive within this time.
    async fn nodes_alive(&self, alive_for: Duration) -> Result<Vec<Name>, StoreError>;

    /// Leaves an audit row for each subscription whose grants, as JSON, are not those that were noted last; answers for how
    /// many.
    async fn note_grants(&self, node: &Name, grants: &[(Name, String)]) -> Result<u32, StoreError>;
}

/// A component was not made ready for a subscription: why, in words for its operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It cannot be run here.
    #[error("{0}")]
    Unfit(String),
    /// This node could not try, through no fault of the component's: later it may.
    #[error("{0}")]
    Unavailable(String),
}

/// Makes ready what runs components. Implemented where the subscriptions' configurations, grants and limits are known.
#[async_trait]
pub trait PluginLoader: Send + Sync + 'static {
    /// Compiles the component and checks it: all that needs to be done once, however many subscriptions run it.
    async fn open(&self, plugin: StoredPlugin) -> Result<Arc<dyn OpenPlugin>, LoadError>;
}

/// A component that was compiled and checked, for all subscriptions that run it.
#[async_trait]
pub trait OpenPlugin: Send + Sync + 'static {
    /// Checks the component for one subscription, and lets it check its configuration.
    async fn load(&self, subscription: &Name) -> Result<Arc<dyn Invoker>, LoadError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_checked_where_it_enters() {
        let plugin: PluginVersion = "enrich@1.2.0-rc.1+b7".parse().unwrap();
        assert_eq!(plugin.to_string(), "enrich@1.2.0-rc.1+b7");
        for text in ["enrich", "enrich@", "@1", "en rich@1", "enrich@1 2", "enrich@1@2"] {
            assert!(text.parse::<PluginVersion>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_state_but_the_first_can_be_reached_and_knows_its_name() {
        for state in DeploymentState::ALL {
            assert_eq!(DeploymentState::parse(state.as_str()), Some(state));
            assert_eq!(state.predecessors().is_empty(), state == DeploymentState::Staged);
        }
    }
}
