//! `laneway plugin list`: what is stored.

use anyhow::Result;

use crate::Shared;
use crate::{config, output};

pub async fn run(shared: &Shared) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let plugins = store.plugins().await?;
    if shared.json {
        return output::json(&plugins);
    }
    let rows: Vec<_> = plugins
        .iter()
        .map(|stored| {
            [
                stored.plugin.name.to_string(),
                stored.plugin.version.to_string(),
                stored.bytes.to_string(),
                if stored.signed { "yes" } else { "no" }.to_owned(),
                stored.pushed_at.to_string(),
                stored.digest.to_string(),
            ]
        })
        .collect();
    output::table(["PLUGIN", "VERSION", "BYTES", "SIGNED", "PUSHED", "DIGEST"], &rows)
}
