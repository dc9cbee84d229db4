//! `laneway plugin remove`: a component leaves the database.

use anyhow::{Result, bail};
use laneway_core::{Name, PluginVersion};
use laneway_engine::ALIVE_FOR;

use crate::Shared;
use crate::{config, output};

#[derive(clap::Args)]
pub struct Args {
    /// NAME@VERSION
    plugin: PluginVersion,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    // Where no node lives, nobody else calls what has drained retired.
    store.report(&Name::parse("cli")?, &[], ALIVE_FOR).await?;
    if !store.remove_plugin(&args.plugin).await? {
        bail!("{} is not stored; `laneway plugin list` shows what is", args.plugin);
    }
    if shared.json {
        return output::json(&args.plugin);
    }
    output::line(&format!("Removed {}.", args.plugin))
}
