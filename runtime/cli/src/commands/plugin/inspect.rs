//! `laneway plugin inspect`: what a component is, without running it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use laneway_core::{Name, PluginDigest};
use laneway_host::{Grants, Inspection, Manifest, PublicKeys};
use serde::Serialize;

use super::{resolve, signature};
use crate::Shared;
use crate::config::{self, Config, PluginSource};
use crate::output;

#[derive(clap::Args)]
pub struct Args {
    /// A component's file, or NAME or NAME@VERSION of a stored one
    plugin: String,
}

#[derive(Serialize)]
struct Inspected {
    digest: PluginDigest,
    bytes: usize,
    /// `handler` or `publisher`.
    kind: &'static str,
    /// Version of the contract that it was built against.
    contract: String,
    imports: Vec<String>,
    exports: Vec<String>,
    manifest: Option<Manifest>,
    /// `no`, `not checked`, `by key ID`, or `not trusted` and why, by the keys of the configuration.
    signed: String,
    /// What the configuration's subscriptions that run it grant.
    granted: Vec<Granted>,
}

#[derive(Serialize)]
struct Granted {
    subscription: Name,
    grants: Grants,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let path = Path::new(&args.plugin);
    // A folder may have the name of a plugin.
    let (component, signature, stored) = if path.is_file() {
        let component = std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
        (component, signature::beside(path)?, None)
    } else {
        let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
        let plugin = resolve(&*store, &args.plugin).await?;
        let Some(stored) = store.plugin(&plugin).await? else {
            bail!("{plugin} is not stored, and there is no such file")
        };
        (stored.component.to_vec(), stored.signature, Some(plugin.name))
    };
    let config = match shared.config.exists() {
        true => Some(Config::load(&shared.config, shared.storage.as_ref())?),
        false => None,
    };
    let keys = config.as_ref().and_then(|config| config.trusted_keys.as_ref());
    let signed = signed(keys, &component, signature.as_deref());
    let Inspection { digest, kind, contract, imports, exports } = Inspection::of(&component)?;
    let manifest = Manifest::read(&component)?;
    let granted = match (config, &stored) {
        (None, _) => Vec::new(),
        (Some(config), Some(name)) => granted(config, None, Some(name)),
        (Some(config), None) => granted(config, Some(path), manifest.as_ref().map(|manifest| &manifest.name)),
    };
    let kind = kind.as_str();
    let inspected =
        Inspected { digest, bytes: component.len(), kind, contract, imports, exports, manifest, signed, granted };
    if shared.json {
        return output::json(&inspected);
    }
    print(&inspected)
}

/// What the signature is worth to a node with this configuration.
fn signed(keys: Option<&PublicKeys>, component: &[u8], signature: Option<&str>) -> String {
    match (keys, signature) {
        (_, None) => "no".to_owned(),
        (None, Some(_)) => "not checked: the configuration has no keys under `require_signatures`".to_owned(),
        (Some(keys), signature) => match keys.check(component, signature) {
            Ok(key) => format!("by key {key}"),
            Err(error) => format!("not trusted: {error}"),
        },
    }
}

/// What the configuration grants to a file, or to what is deployed under a name.
fn granted(config: Config, path: Option<&Path>, name: Option<&Name>) -> Vec<Granted> {
    let file = path.and_then(|path| path.canonicalize().ok());
    let runs = |source: &PluginSource| match source {
        PluginSource::File(other) => file.is_some() && other.canonicalize().ok() == file,
        PluginSource::Deployed(deployed) => name == Some(deployed),
    };
    let found = config.subscriptions.into_iter().filter(|s| runs(&s.source));
    found.map(|s| Granted { subscription: s.subscription.name, grants: s.spec.grants }).collect()
}

fn print(inspected: &Inspected) -> Result<()> {
    let Inspected { digest, bytes, kind, contract, imports, manifest, signed, granted, .. } = inspected;
    // All that comes from the component is escaped: a name in it may have what a terminal obeys.
    output::line(&format!("digest    {digest}"))?;
    output::line(&format!("size      {bytes} bytes"))?;
    output::line(&format!("kind      {kind}, contract {}", output::escaped(contract)))?;
    output::line(&format!("signed    {signed}"))?;
    for (number, import) in imports.iter().enumerate() {
        let head = if number == 0 { "imports   " } else { "          " };
        output::line(&format!("{head}{}", output::escaped(import)))?;
    }
    match manifest {
        Some(manifest) => {
            output::line(&format!("plugin    {}@{}", manifest.name, manifest.version))?;
            output::line(&format!("asks      {}", output::escaped(&serde_json::to_string(&manifest.asks)?)))?;
        }
        None => output::line("plugin    it has no manifest, and asks for whatever is granted")?,
    }
    for Granted { subscription, grants } in granted {
        output::line(&format!("granted   by subscription `{subscription}`: {}", serde_json::to_string(grants)?))?;
    }
    Ok(())
}
