//! `laneway status`: everything at a glance.

use anyhow::Result;

use crate::Shared;
use crate::{config, output};

pub async fn run(shared: &Shared) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let status = store.status().await?;
    if shared.json {
        return output::json(&status);
    }
    let mut rows = Vec::new();
    for subscription in &status.subscriptions {
        for lane in &subscription.lanes {
            let counted = |count: u64| format!("{count}{}", if lane.more { "+" } else { "" });
            rows.push([
                subscription.name.to_string(),
                if subscription.active {
                    subscription.kind.clone()
                } else {
                    format!("{} (off)", subscription.kind)
                },
                subscription.pattern.clone(),
                lane.lane.as_str().to_owned(),
                counted(lane.due),
                counted(lane.parked),
                lane.leased.to_string(),
                counted(lane.delayed),
                lane.oldest_due_seconds.map_or_else(|| "-".to_owned(), |age| format!("{age:.1} s")),
                subscription.dead_letters.to_string(),
            ]);
        }
    }
    output::table(
        ["SUBSCRIPTION", "KIND", "TOPIC", "LANE", "DUE", "PARKED", "LEASED", "DELAYED", "OLDEST", "DEAD"],
        &rows,
    )?;
    output::line("")?;
    output::line(&format!(
        "{} message(s), {} of them matched no subscription; topology revision {}",
        status.messages,
        status.unrouted,
        status.topology_revision.map_or_else(|| "none".to_owned(), |revision| revision.to_string())
    ))?;
    if status.never_routed > 0 {
        output::line(&format!(
            "{} message(s) were never routed: triggers did not fire when they were written; see `laneway doctor`",
            status.never_routed
        ))?;
    }
    for node in &status.nodes {
        let place = node.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
        output::line(&format!("node {}{place} was last seen at {}", node.name, node.seen_at))?;
    }
    Ok(())
}
