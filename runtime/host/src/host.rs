//! The host: one engine, one ticker, one pool of instances for all plugins of the process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use laneway_core::Name;
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker};

use crate::bindings::AnyPlugin;
use crate::cache::Cache;
use crate::compiled::{Compiled, Components};
use crate::compiler::CompilerProcess;
use crate::error::{HostError, PluginError};
use crate::http::Network;
use crate::mock::Mock;
use crate::plugin::{Plugin, PluginSpec};
use crate::pool::{Permit, Plan, Pool, Share};
use crate::secret::Secret;
use crate::session::Session;
use crate::ticker::Ticker;
use crate::wait::{Bounds, Ended};
use crate::{engine, http, wasi};

/// Settings of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOptions {
    /// Where compiled code is kept between runs; only this user may read it. `None` (default) compiles at each
    /// start.
    pub cache_dir: Option<PathBuf>,
    /// Instances that exist at once, those kept for reuse included; further calls wait for one. 1 to 10,000.
    /// Default 256. There are more if each subscription of `concurrency` could not have one otherwise, and half as many
    /// beside.
    pub instances_max: u32,
    /// Calls that each subscription makes at once. Each has instances that no other can take: as many as that, if all
    /// together are no more than there can be; else an even part of half of these, and one at least. Default none: then
    /// all have all in common.
    pub concurrency: BTreeMap<Name, u32>,
    /// Largest guest memory that any plugin may be configured with, in bytes. Default 64 MiB, at most 4 GiB.
    pub memory_bytes_max: usize,
    /// Largest component that is accepted, in bytes. Default 64 MiB.
    pub component_bytes_max: usize,
    /// Compiles components in a process of its own, one after the other, under limits of time and memory. `None`
    /// (default) compiles in this process, with no limit but what a component's shape is estimated to take.
    pub compiler: Option<CompilerProcess>,
    /// Secrets that requests of plugins may carry, by name. Default none.
    pub secrets: BTreeMap<Name, Secret>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            cache_dir: None,
            instances_max: 256,
            concurrency: BTreeMap::new(),
            memory_bytes_max: 64 << 20,
            component_bytes_max: 64 << 20,
            compiler: None,
            secrets: BTreeMap::new(),
        }
    }
}

/// Runs plugins. One for a process.
pub struct Host {
    pub(crate) options: HostOptions,
    pub(crate) engine: Engine,
    pub(crate) ticker: Ticker,
    pub(crate) cache: Option<Cache>,
    pub(crate) network: Arc<Network>,
    pub(crate) mock: Option<Arc<dyn Mock>>,
    /// Held while a process compiles.
    pub(crate) compiling: Mutex<()>,
    components: Components,
    plain: Linker<Session>,
    with_http: Linker<Session>,
    pub(crate) pool: Arc<Pool>,
    /// Those that keep instances for reuse.
    keepers: Mutex<Vec<Weak<Plugin>>>,
}

impl Host {
    /// Sets up the engine. Takes address space for its pool of instances (some 16 GiB an instance, nearly none of it
    /// memory); without that it makes each instance by itself, which takes longer.
    ///
    /// # Errors
    /// [`HostError`] if an option is out of range, or the engine or the cache cannot be set up.
    pub fn new(options: HostOptions) -> Result<Arc<Self>, HostError> {
        Self::with(options, None)
    }

    /// A host to try plugins out with: guests run as on any other, and may send HTTP requests to wherever they like, which
    /// `mock` answers; it gets their log lines too.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn mocked(options: HostOptions, mock: Arc<dyn Mock>) -> Result<Arc<Self>, HostError> {
        Self::with(options, Some(mock))
    }

    fn with(options: HostOptions, mock: Option<Arc<dyn Mock>>) -> Result<Arc<Self>, HostError> {
        check_options(&options)?;
        let failed = |error: wasmtime::Error| HostError::Engine(format!("{error:#}"));
        let plan = Plan::new(options.instances_max, &options.concurrency);
        let engine = engine::new(&options, plan.instances()).map_err(failed)?;
        let ticker = Ticker::start(engine.clone()).map_err(HostError::Ticker)?;
        let cache = match &options.cache_dir {
            Some(dir) => {
                Some(Cache::open(dir, &engine).map_err(|source| HostError::Cache { path: dir.clone(), source })?)
            }
            None => None,
        };
        let plain = linker(&engine).map_err(failed)?;
        let mut with_http = linker(&engine).map_err(failed)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut with_http).map_err(failed)?;
        http::link(&mut with_http).map_err(failed)?;
        Ok(Arc::new(Self {
            pool: Pool::new(plan),
            options,
            engine,
            ticker,
            cache,
            network: Arc::new(mock.clone().map_or_else(Network::default, Network::mocked)),
            mock,
            compiling: Mutex::new(()),
            components: Components::default(),
            plain,
            with_http,
            keepers: Mutex::new(Vec::new()),
        }))
    }

    /// Checks and compiles a component. Compiling takes seconds of processor time for a large one: call this where
    /// blocking is allowed. Its configuration is not checked yet; [`Plugin::validate`] does that.
    ///
    /// # Errors
    /// [`PluginError`] says why the component is not accepted.
    pub fn plugin(self: &Arc<Self>, bytes: &[u8], spec: PluginSpec) -> Result<Arc<Plugin>, PluginError> {
        self.plugin_of(self.component(bytes)?, spec)
    }

    /// Checks and compiles a component, for any number of subscriptions that run it. While one of the same bytes is held,
    /// that is the answer. Blocks as [`Self::plugin`] does.
    ///
    /// # Errors
    /// [`PluginError`] says why the component is not accepted, whoever is to run it.
    pub fn component(&self, bytes: &[u8]) -> Result<Arc<Compiled>, PluginError> {
        self.components.get(self, bytes)
    }

    /// Checks whether a component can be run in a certain way. Compiles nothing.
    ///
    /// # Errors
    /// [`PluginError`] says why it cannot.
    pub fn plugin_of(
        self: &Arc<Self>,
        component: Arc<Compiled>,
        spec: PluginSpec,
    ) -> Result<Arc<Plugin>, PluginError> {
        let plugin = Arc::new(Plugin::new(Arc::clone(self), component, spec)?);
        if plugin.reuse {
            let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
            keepers.retain(|known| known.strong_count() > 0);
            keepers.push(Arc::downgrade(&plugin));
        }
        Ok(plugin)
    }

    pub(crate) fn linker(&self, http: bool) -> &Linker<Session> {
        if http { &self.with_http } else { &self.plain }
    }

    /// Leave to make one more instance, for a message or for the check of a configuration. Waits for one if those that
    /// the subscription may have are all in use, and takes back those that are only kept for reuse, now and as long as
    /// it waits.
    pub(crate) async fn permit(
        &self,
        share: &Arc<Share>,
        bounds: &Bounds,
        is_check: bool,
    ) -> Result<Permit, Ended> {
        if let Some(permit) = self.pool.try_take(share) {
            return Ok(permit);
        }
        // Before what is kept is dropped: an instance that is done from here on is not kept.
        let waiting = self.pool.count_waiting(share);
        let keepers: Vec<Weak<Plugin>> = self.keepers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for plugin in keepers.iter().filter_map(Weak::upgrade) {
            plugin.drop_idle(share);
        }
        if is_check {
            return bounds.wait(self.pool.take_for_check(share, &waiting)).await;
        }
        bounds.wait(self.pool.take(share, &waiting)).await
    }
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<Session>> {
    let mut linker = Linker::new(engine);
    AnyPlugin::add_to_linker::<_, HasSelf<Session>>(&mut linker, |session| session)?;
    wasi::link(&mut linker)?;
    Ok(linker)
}

fn check_options(options: &HostOptions) -> Result<(), HostError> {
    if !(1..=10_000).contains(&options.instances_max) {
        let value = options.instances_max.into();
        return Err(HostError::Option { option: "instances_max", value, wants: "from 1 to 10,000" });
    }
    if !(1 << 16..=1 << 32).contains(&(options.memory_bytes_max as u64)) {
        let value = options.memory_bytes_max as u64;
        return Err(HostError::Option { option: "memory_bytes_max", value, wants: "from 64 KiB to 4 GiB" });
    }
    Ok(())
}
