//! One component as one subscription runs it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use laneway_core::{Failure, Name, PluginDigest, SubscriptionKind};
use wasmtime::component::Component;

use crate::compiled::{Compiled, Linked};
use crate::error::PluginError;
use crate::grant::{Allowed, Grants};
use crate::host::Host;
use crate::http::{Access, Clients};
use crate::instance::Live;
use crate::limits::Limits;
use crate::pool::{Pool, Share};
use crate::secret::Placeholders;
use crate::session::Facts;
use crate::{contract, engine, outcome};

/// How a subscription runs a component.
#[derive(Debug, Clone)]
pub struct PluginSpec {
    /// The subscription's name, for log lines.
    pub name: Name,
    /// What the component is to be.
    pub kind: SubscriptionKind,
    /// What the plugin reads as its configuration. `{secret:NAME}` in a value stands for a secret of the host's: the
    /// plugin reads a placeholder, which the host replaces in the headers of its requests.
    pub config: BTreeMap<String, String>,
    /// What it may reach.
    pub grants: Grants,
    /// What one attempt may use.
    pub limits: Limits,
    /// Whether an instance serves one message after another, and keeps what it has in memory. Otherwise each
    /// message gets a fresh one. So does a message that fails in one that has served others, if that may be for what
    /// those have left behind, and nothing was sent.
    pub reuse: bool,
    /// Largest body that the plugin may emit, in bytes: what the outbox accepts.
    pub payload_bytes_max: u64,
}

/// A component that was accepted, ready to run. Implements [`laneway_core::Invoker`].
pub struct Plugin {
    pub(crate) host: Arc<Host>,
    pub(crate) facts: Arc<Facts>,
    /// Held for as long as somebody runs it.
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) linked: Arc<Linked>,
    pub(crate) share: Arc<Share>,
    pub(crate) reuse: bool,
    idle: Mutex<Vec<Live>>,
}

impl Plugin {
    pub(crate) fn new(host: Arc<Host>, compiled: Arc<Compiled>, spec: PluginSpec) -> Result<Self, PluginError> {
        let (component, manifest) = (&compiled.component, compiled.manifest.clone());
        let allowed = match host.mock {
            // HTTP not unless it needs it: a plugin that cannot reach out fails in other ways than one that can.
            Some(_) => {
                let sends_http = contract::imports_http(&host.engine, component);
                Allowed::anything(spec.name.clone(), manifest, sends_http)
            }
            None => Allowed::new(spec.name.clone(), spec.grants, manifest, &spec.config)?,
        };
        let sends_http = allowed.sends_http();
        contract::check(&host.engine, component, spec.kind, sends_http)?;
        check_limits(&host, component, &spec.limits)?;
        let mut config = spec.config;
        let placeholders = match host.mock {
            // There are no secrets, and no request that could carry one.
            Some(_) => Arc::default(),
            None => Arc::new(Placeholders::fill(&mut config, &host.options.secrets, &allowed)?),
        };
        if sends_http.is_ok() {
            host.network.prepare(allowed.http_grants())?;
        }
        let allowed = Arc::new(allowed);
        let linked = compiled.linked(&host, spec.kind, sends_http.is_ok())?;
        let http = sends_http.is_ok().then(|| {
            Arc::new(Access {
                name: spec.name.clone(),
                digest: compiled.digest.clone(),
                allowed: Arc::clone(&allowed),
                placeholders: Arc::clone(&placeholders),
                clients: Clients::new(Arc::clone(&host.network), spec.limits.http_connections_max),
                limits: spec.limits.clone(),
            })
        });
        let facts = Facts {
            name: spec.name,
            digest: compiled.digest.clone(),
            kind: spec.kind,
            config,
            limits: spec.limits,
            payload_bytes_max: spec.payload_bytes_max,
            allowed,
            placeholders,
            http,
            mock: host.mock.clone(),
        };
        let share = host.pool.share(&facts.name);
        let (facts, idle) = (Arc::new(facts), Mutex::new(Vec::new()));
        Ok(Self { host, facts, compiled, linked, share, reuse: spec.reuse, idle })
    }

    /// SHA-256 of the component.
    #[must_use]
    pub fn digest(&self) -> &PluginDigest {
        &self.compiled.digest
    }

    /// The component that it runs, which others may run too.
    #[must_use]
    pub fn component(&self) -> &Arc<Compiled> {
        &self.compiled
    }

    /// Lets the plugin check its configuration, as is done once at deploy. Also finds types that differ from the
    /// contract, which show only in an instance.
    ///
    /// # Errors
    /// [`PluginError::Invalid`] with what the plugin says, [`PluginError::Mismatch`], or
    /// [`PluginError::Validate`] if it traps or takes too long.
    pub async fn validate(&self) -> Result<(), PluginError> {
        match self.check_config().await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errors)) => {
                let errors = errors
                    .iter()
                    .map(|error| outcome::one_line(&self.facts.placeholders.hide(error)).to_string())
                    .collect();
                Err(PluginError::Invalid { errors })
            }
            Err(Failure::Retry { reason, error } | Failure::Misconfigured { reason, error }) => {
                Err(PluginError::Validate { reason, error })
            }
            Err(Failure::Throttled { error, .. }) => Err(PluginError::Busy { error }),
            Err(other) => Err(PluginError::Mismatch(format!("{other:?}"))),
        }
    }

    /// An instance that is kept for reuse.
    pub(crate) fn take_idle(&self) -> Option<Live> {
        if !self.reuse {
            return None;
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps an instance that ended its call well, unless another call waits for its place, or its calls have left so much
    /// behind that the next one could fail for it.
    pub(crate) fn keep(&self, mut live: Live) {
        if !self.reuse || live.served >= self.facts.limits.reuse_max || !live.has_room() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.facts.limits.idle_max && self.host.pool.may_keep(&live.permit, &self.share) {
            idle.push(live);
        }
    }

    /// Gives up what is kept for reuse and could be another's, who waits.
    pub(crate) fn drop_idle(&self, waits: &Arc<Share>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: Vec<Live> =
            idle.extract_if(.., |live| Pool::could_have(&live.permit, &self.share, waits)).collect();
        // Outside the lock: taking instances down takes a while.
        drop(idle);
        drop(wanted);
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin")
            .field("name", &self.facts.name)
            .field("digest", &self.compiled.digest)
            .finish_non_exhaustive()
    }
}

fn check_limits(host: &Host, component: &Component, limits: &Limits) -> Result<(), PluginError> {
    let check = |what, needs: u64, limit, max: usize| {
        let max = max as u64;
        if needs > max { Err(PluginError::Limit { what, needs, limit, max }) } else { Ok(()) }
    };
    check(
        "the memory of the plugin's limits",
        limits.memory_bytes_max as u64,
        "the host's `memory_bytes_max`",
        host.options.memory_bytes_max,
    )?;
    check(
        "the table size of the plugin's limits",
        limits.table_elements_max as u64,
        "the host",
        engine::TABLE_ELEMENTS_MAX,
    )?;
    let Some(needs) = component.resources_required() else { return Ok(()) };
    let memory = needs.max_initial_memory_size.unwrap_or(0).saturating_mul(64 << 10);
    check("the memory that the component starts with", memory, "`memory_bytes_max`", limits.memory_bytes_max)?;
    let table = needs.max_initial_table_size.unwrap_or(0);
    check("the table that the component starts with", table, "`table_elements_max`", limits.table_elements_max)
}
