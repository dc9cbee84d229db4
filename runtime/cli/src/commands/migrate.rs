//! `laneway migrate`: the schema is brought up to date.

use anyhow::Result;
use serde::Serialize;

use crate::Shared;
use crate::{config, output};

#[derive(Serialize)]
struct Done {
    from: i64,
    to: i64,
}

pub async fn run(shared: &Shared) -> Result<()> {
    let storage = config::storage(shared.storage.as_ref(), &shared.config)?;
    let migrated = storage.migrate().await?;
    if shared.json {
        return output::json(&Done { from: migrated.from, to: migrated.to });
    }
    if migrated.from == migrated.to {
        output::line(&format!("Schema version {} is up to date.", migrated.to))
    } else {
        output::line(&format!("Migrated the schema from version {} to {}.", migrated.from, migrated.to))
    }
}
