//! A component, checked and compiled: held once, however many subscriptions run it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use laneway_core::{PluginDigest, SubscriptionKind};
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, InstancePre};

use crate::bindings::exports::laneway::plugin::{handler, lifecycle, publisher};
use crate::error::PluginError;
use crate::host::Host;
use crate::manifest::Manifest;
use crate::session::Session;
use crate::{cache, compiler, contract, shape};

/// A component that was checked and compiled, for any number of subscriptions. [`Host::component`] makes it.
pub struct Compiled {
    pub(crate) digest: PluginDigest,
    pub(crate) manifest: Option<Manifest>,
    pub(crate) component: Component,
    /// Made when the first subscription needs it: by kind, and with HTTP or without.
    linked: [OnceLock<Arc<Linked>>; 4],
}

/// A component whose imports are resolved: all that its instances are made from.
pub(crate) struct Linked {
    pub(crate) instances: InstancePre<Session>,
    pub(crate) lifecycle: lifecycle::GuestIndices,
    pub(crate) work: Work,
}

/// Where the plugin's work is exported.
pub(crate) enum Work {
    Handler(handler::GuestIndices),
    Publisher(publisher::GuestIndices),
}

impl Compiled {
    fn new(host: &Host, bytes: &[u8], digest: PluginDigest) -> Result<Self, PluginError> {
        // Before it is compiled, and long before any of it runs.
        let manifest = Manifest::read(bytes)?;
        let component = compile(host, bytes, &digest)?;
        Ok(Self { digest, manifest, component, linked: Default::default() })
    }

    /// The component with its imports resolved.
    pub(crate) fn linked(
        &self,
        host: &Host,
        kind: SubscriptionKind,
        sends_http: bool,
    ) -> Result<Arc<Linked>, PluginError> {
        let place = usize::from(sends_http) + 2 * usize::from(matches!(kind, SubscriptionKind::Publisher));
        if let Some(linked) = self.linked[place].get() {
            return Ok(Arc::clone(linked));
        }
        let linked = Arc::new(self.link(host, kind, sends_http)?);
        // Of two that come at once, both take the first one's.
        Ok(Arc::clone(self.linked[place].get_or_init(|| linked)))
    }

    fn link(&self, host: &Host, kind: SubscriptionKind, sends_http: bool) -> Result<Linked, PluginError> {
        let mismatch = |error: wasmtime::Error| PluginError::Mismatch(format!("{error:#}"));
        let instances = host.linker(sends_http).instantiate_pre(&self.component).map_err(mismatch)?;
        let lifecycle = lifecycle::GuestIndices::new(&instances).map_err(mismatch)?;
        let work = match kind {
            SubscriptionKind::Handler => Work::Handler(handler::GuestIndices::new(&instances).map_err(mismatch)?),
            SubscriptionKind::Publisher => {
                Work::Publisher(publisher::GuestIndices::new(&instances).map_err(mismatch)?)
            }
        };
        Ok(Linked { instances, lifecycle, work })
    }
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// The components that somebody runs, by their digests. What nobody runs any more is not held.
#[derive(Default)]
pub(crate) struct Components(Mutex<HashMap<PluginDigest, Weak<Compiled>>>);

impl Components {
    fn lock(&self) -> MutexGuard<'_, HashMap<PluginDigest, Weak<Compiled>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The component of these bytes: the one that is held, else it is checked and compiled.
    pub(crate) fn get(&self, host: &Host, bytes: &[u8]) -> Result<Arc<Compiled>, PluginError> {
        contract::check_form(bytes, host.options.component_bytes_max)?;
        let digest = PluginDigest::from_hex(&cache::hex(&Sha256::digest(bytes)));
        if let Some(held) = self.lock().get(&digest).and_then(Weak::upgrade) {
            return Ok(held);
        }
        let made = Arc::new(Compiled::new(host, bytes, digest)?);
        let mut held = self.lock();
        // Another call may have made it meanwhile: compiling takes long, and is not done under the lock.
        if let Some(other) = held.get(&made.digest).and_then(Weak::upgrade) {
            return Ok(other);
        }
        held.retain(|_, held| held.strong_count() > 0);
        held.insert(made.digest.clone(), Arc::downgrade(&made));
        Ok(made)
    }
}

fn compile(host: &Host, bytes: &[u8], digest: &PluginDigest) -> Result<Component, PluginError> {
    let cached = || host.cache.as_ref().and_then(|cache| cache.load(&host.engine, digest));
    if let Some(component) = cached() {
        return Ok(component);
    }
    shape::check(bytes)?;
    // One process at a time, so that all together take no more than one may. Whoever had the turn before may have compiled
    // the same, and keeps its turn until that is in the cache.
    let turn = |_: &_| host.compiling.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = host.options.compiler.as_ref().map(turn);
    if taken.is_some()
        && let Some(component) = cached()
    {
        return Ok(component);
    }
    let code = match &host.options.compiler {
        Some(process) => process.compile(bytes)?,
        None => compiler::compile(&host.engine, bytes)?,
    };
    // SAFETY: the code is what `Engine::precompile_component` made right now, in this process or in one that this
    // process started and that nobody else could write to.
    let component = compiler::guarded(|| unsafe { Component::deserialize(&host.engine, &code) })?;
    // Only now: what compiles may still need more than the engine's pool has.
    if let Some(cache) = &host.cache {
        cache.store(digest, &code);
    }
    Ok(component)
}
