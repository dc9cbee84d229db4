//! The host: one engine, one ticker, one pool of instances for all plugins of the process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use laneway_core::Name;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker};

use crate::bindings::AnyPlugin;
use crate::cache::Cache;
use crate::compiler::CompilerProcess;
use crate::error::{HostError, PluginError};
use crate::http::Network;
use crate::mock::Mock;
use crate::plugin::{Plugin, PluginSpec};
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
    /// Default 256.
    pub instances_max: u32,
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
    plain: Linker<Session>,
    with_http: Linker<Session>,
    instances: Arc<Semaphore>,
    /// Calls that wait for an instance.
    waiting: AtomicUsize,
    plugins: Mutex<Vec<Weak<Plugin>>>,
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
        let engine = engine::new(&options).map_err(failed)?;
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
            instances: Arc::new(Semaphore::new(options.instances_max as usize)),
            options,
            engine,
            ticker,
            cache,
            network: Arc::new(mock.clone().map_or_else(Network::default, Network::mocked)),
            mock,
            compiling: Mutex::new(()),
            plain,
            with_http,
            waiting: AtomicUsize::new(0),
            plugins: Mutex::new(Vec::new()),
        }))
    }

    /// Checks and compiles a component. Compiling takes seconds of processor time for a large one: call this where
    /// blocking is allowed. Its configuration is not checked yet; [`Plugin::validate`] does that.
    ///
    /// # Errors
    /// [`PluginError`] says why the component is not accepted.
    pub fn plugin(self: &Arc<Self>, bytes: &[u8], spec: PluginSpec) -> Result<Arc<Plugin>, PluginError> {
        let plugin = Arc::new(Plugin::load(Arc::clone(self), bytes, spec)?);
        let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        plugins.retain(|known| known.strong_count() > 0);
        plugins.push(Arc::downgrade(&plugin));
        Ok(plugin)
    }

    pub(crate) fn linker(&self, http: bool) -> &Linker<Session> {
        if http { &self.with_http } else { &self.plain }
    }

    /// Leave to make one more instance. Waits for one if all are in use, and takes back those that are only
    /// kept for reuse, now and as long as it waits.
    pub(crate) async fn instance_permit(&self, bounds: &Bounds) -> Result<OwnedSemaphorePermit, Ended> {
        if let Ok(permit) = Arc::clone(&self.instances).try_acquire_owned() {
            return Ok(permit);
        }
        // Before what is kept is dropped: an instance that is done from here on is not kept.
        let _waiting = Waiting::count(&self.waiting);
        let plugins: Vec<Weak<Plugin>> = self.plugins.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for plugin in plugins.iter().filter_map(Weak::upgrade) {
            plugin.drop_idle();
        }
        match bounds.wait(Arc::clone(&self.instances).acquire_owned()).await? {
            Ok(permit) => Ok(permit),
            // The semaphore is never closed; were it, no instance could be had.
            Err(_) => Err(Ended::Interrupted),
        }
    }

    /// Whether a call waits for an instance. Asked under the lock of what a plugin keeps, the answer holds until that
    /// is given up: who waits counts itself first, and takes that lock then.
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}

/// A call that waits for an instance, for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn count(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
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
