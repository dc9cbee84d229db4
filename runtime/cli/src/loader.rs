//! Gets components ready for the configuration's subscriptions: each with its own configuration, grants and limits.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{Invoker, LoadError, Name, OpenPlugin, PluginDigest, PluginLoader, PluginVersion, StoredPlugin};
use laneway_host::{
    Compiled, Host, HostError, HostOptions, Inspection, Manifest, Plugin, PluginError, PluginSpec, PublicKeys,
};
use tracing::{info, warn};

use crate::commands::plugin::signature;
use crate::config::Config;

/// The host, and how each subscription runs its plugin.
pub struct Loader {
    subscribers: Subscribers,
    trusted_keys: Option<PublicKeys>,
}

#[derive(Clone)]
struct Subscribers {
    host: Arc<Host>,
    specs: Arc<HashMap<Name, PluginSpec>>,
}

impl Loader {
    /// Sets up the host that a configuration asks for.
    pub fn new(config: &Config) -> Result<Self> {
        let specs = config.subscriptions.iter().map(|s| s.spec.clone());
        Ok(Self { trusted_keys: config.trusted_keys.clone(), ..Self::of(host(config)?, specs) })
    }

    /// Loads for these alone, and asks for no signatures.
    pub fn of(host: Arc<Host>, specs: impl IntoIterator<Item = PluginSpec>) -> Self {
        let specs = specs.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        Self { subscribers: Subscribers { host, specs: Arc::new(specs) }, trusted_keys: None }
    }

    /// Reads a component from a file, and checks and compiles it.
    pub async fn open_file(&self, path: &Path) -> Result<Arc<Compiled>> {
        let bytes = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
        // Where none is asked for, one that cannot be read is no harm.
        let signature = if self.trusted_keys.is_some() { signature::beside(path)? } else { None };
        self.compiled(bytes.into(), signature.as_deref()).await
    }

    /// Gets a component ready for one subscription.
    pub async fn load(&self, subscription: &Name, component: &Arc<Compiled>) -> Result<Arc<Plugin>> {
        self.subscribers.load(subscription, component).await
    }

    /// Checks the signature of the very bytes that are then run: what is read a second time may be something else.
    async fn compiled(&self, component: Bytes, signature: Option<&str>) -> Result<Arc<Compiled>> {
        check_signature(self.trusted_keys.as_ref(), &component, signature).context("it is not trusted")?;
        let host = self.subscribers.host.clone();
        // Compiling takes long, and a signal is to be heard meanwhile.
        Ok(tokio::task::spawn_blocking(move || host.component(&component)).await??)
    }
}

impl Subscribers {
    async fn load(&self, subscription: &Name, component: &Arc<Compiled>) -> Result<Arc<Plugin>> {
        let spec = self.specs.get(subscription).context("no subscription of the configuration has this name")?;
        let (host, component, spec) = (self.host.clone(), component.clone(), spec.clone());
        let plugin = tokio::task::spawn_blocking(move || host.plugin_of(component, spec)).await??;
        plugin.validate().await?;
        Ok(plugin)
    }
}

#[async_trait]
impl PluginLoader for Loader {
    async fn open(&self, plugin: StoredPlugin) -> Result<Arc<dyn OpenPlugin>, LoadError> {
        let StoredPlugin { plugin, digest, component, signature } = plugin;
        let must_say = self.trusted_keys.is_some();
        let bytes = component.clone();
        let compiled = async {
            tokio::task::spawn_blocking(move || check_name(&plugin, &digest, &bytes, must_say)).await??;
            self.compiled(component, signature.as_deref()).await
        };
        match compiled.await {
            Ok(component) => Ok(Arc::new(Open { component, subscribers: self.subscribers.clone() })),
            Err(error) => Err(load_error(&error)),
        }
    }
}

/// A component of the database's.
struct Open {
    component: Arc<Compiled>,
    subscribers: Subscribers,
}

#[async_trait]
impl OpenPlugin for Open {
    async fn load(&self, subscription: &Name) -> Result<Arc<dyn Invoker>, LoadError> {
        match self.subscribers.load(subscription, &self.component).await {
            Ok(plugin) => Ok(plugin),
            Err(error) => Err(load_error(&error)),
        }
    }
}

fn load_error(error: &anyhow::Error) -> LoadError {
    let text = format!("{error:#}");
    let of_node = error.downcast_ref::<PluginError>().is_some_and(PluginError::is_of_the_node);
    if of_node { LoadError::Unavailable(text) } else { LoadError::Unfit(text) }
}

/// Refuses bytes that are not what they are called in the database. A signature is of bytes alone: only the manifest in
/// them says which plugin and version was signed.
fn check_name(plugin: &PluginVersion, digest: &PluginDigest, component: &[u8], must_say: bool) -> Result<()> {
    let inspected = Inspection::of(component)?;
    ensure!(
        inspected.digest == *digest,
        "the database holds bytes with digest {}, not {digest}; push {plugin} again as a new version",
        inspected.digest
    );
    match Manifest::read(component)? {
        Some(manifest) => {
            let says = PluginVersion::new(manifest.name, &manifest.version)?;
            ensure!(says == *plugin, "its manifest says that it is {says}, and it is stored as {plugin}");
        }
        None => ensure!(
            !must_say,
            "it has no manifest, so that its signature does not say which plugin it is; `laneway plugin pack` puts one \
             in, before it is signed"
        ),
    }
    Ok(())
}

/// Refuses a component without a signature by one of these keys, if there are any.
pub fn check_signature(keys: Option<&PublicKeys>, component: &[u8], signature: Option<&str>) -> Result<()> {
    if let Some(keys) = keys {
        let key = keys.check(component, signature)?;
        info!(%key, "the plugin's signature is trusted");
    }
    Ok(())
}

/// The WebAssembly host that a configuration asks for.
fn host(config: &Config) -> Result<Arc<Host>> {
    let options = HostOptions {
        cache_dir: config.cache_dir.clone(),
        instances_max: config.instances_max,
        concurrency: config.concurrency(),
        memory_bytes_max: config.memory_bytes_max,
        compiler: Some(config.compile_limits.process()?),
        secrets: config.read_secrets()?,
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
