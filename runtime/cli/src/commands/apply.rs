//! `laneway apply`: the configuration's subscriptions become the database's.

use anyhow::Result;
use serde::Serialize;

use crate::Shared;
use crate::config::Config;
use crate::output;

#[derive(Serialize)]
struct Applied {
    revision: i64,
    changed: bool,
    subscriptions: Vec<String>,
}

pub async fn run(shared: &Shared) -> Result<()> {
    let config = Config::load(&shared.config, shared.storage.as_ref())?;
    let store = config.storage.open().await?;
    let before = store.topology().await?.map(|topology| topology.revision);
    let topology = store.apply(&config.topology()).await?;
    let applied = Applied {
        revision: topology.revision,
        changed: before != Some(topology.revision),
        subscriptions: topology.subscriptions.iter().map(|(name, _)| name.to_string()).collect(),
    };
    if shared.json {
        return output::json(&applied);
    }
    if applied.changed {
        output::line(&format!(
            "Applied topology revision {} with {} subscription(s).",
            applied.revision,
            applied.subscriptions.len()
        ))
    } else {
        output::line(&format!("Topology revision {} is active already.", applied.revision))
    }
}
