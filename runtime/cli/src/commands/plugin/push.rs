//! `laneway plugin push`: a component goes into the database.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use laneway_core::{NewPlugin, PluginDigest, PluginVersion};
use laneway_host::{Inspection, Manifest};
use serde::Serialize;

use super::signature;
use crate::Shared;
use crate::config::{self, Config};
use crate::loader::check_signature;
use crate::{exit, output};

#[derive(clap::Args)]
pub struct Args {
    /// The component
    file: PathBuf,
    /// Name and version of a component without a manifest
    #[arg(long = "as", value_name = "NAME@VERSION")]
    named: Option<PluginVersion>,
    /// Its signature in minisign's format [default: FILE.minisig, if it is there]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

#[derive(Serialize)]
struct Pushed {
    #[serde(flatten)]
    plugin: PluginVersion,
    digest: PluginDigest,
    bytes: usize,
    /// Whether it was not there before.
    new: bool,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let component = std::fs::read(&args.file).with_context(|| format!("failed to read {}", args.file.display()))?;
    let new = prepare(&args.file, component, args.named, args.signature.as_deref())?;
    if shared.config.exists() {
        let config = Config::load(&shared.config, shared.storage.as_ref())?;
        check_signature(config.trusted_keys.as_ref(), &new.component, new.signature.as_deref())
            .with_context(|| format!("{} is not trusted", args.file.display()))?;
    }
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let (plugin, digest, bytes) = (new.plugin.clone(), new.digest.clone(), new.component.len());
    let is_new = store.push_plugin(&new).await?;
    if shared.json {
        return output::json(&Pushed { plugin, digest, bytes, new: is_new });
    }
    match is_new {
        true => output::line(&format!("Pushed {plugin}, {bytes} bytes, digest {digest}.")),
        false => output::line(&format!("{plugin} is stored already.")),
    }
}

/// What is to be stored of a component: it must be one, and have a name.
pub fn prepare(
    file: &Path,
    component: Vec<u8>,
    named: Option<PluginVersion>,
    signature: Option<&Path>,
) -> Result<NewPlugin> {
    let inspected = Inspection::of(&component).with_context(|| file.display().to_string())?;
    let manifest = Manifest::read(&component).with_context(|| file.display().to_string())?;
    let declared = manifest
        .as_ref()
        .map(|manifest| PluginVersion::new(manifest.name.clone(), &manifest.version))
        .transpose()?;
    let plugin = match (declared, named) {
        (Some(declared), Some(named)) if declared != named => {
            return Err(exit::usage(&format!("the component's manifest says {declared}; leave out --as {named}")));
        }
        (Some(plugin), _) | (None, Some(plugin)) => plugin,
        (None, None) => {
            let text = format!(
                "{} has no manifest: say --as NAME@VERSION, or put one in with `laneway plugin pack`",
                file.display()
            );
            return Err(exit::usage(&text));
        }
    };
    let signature = match signature {
        Some(path) => Some(signature::read(path)?),
        None => signature::beside(file)?,
    };
    let manifest = manifest.map(|manifest| serde_json::to_string(&manifest)).transpose()?;
    Ok(NewPlugin { plugin, digest: inspected.digest, component: component.into(), manifest, signature })
}
