//! What both databases refuse about plugins, in the same words, and the times that both go by.

use std::time::Duration;

use laneway_core::{Name, PluginVersion, StoreError};
use serde_json::Value;

/// How long after it was replaced a version may be called retired: by then every node has heard of it.
pub(crate) const RETIRE_AFTER: Duration = Duration::from_secs(2);
/// For how long what a node said of a deployment is kept, if it says no more.
pub(crate) const NODE_REPORTS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Of a push of other bytes under a name and version that are there.
pub(crate) fn other_bytes(plugin: &PluginVersion, found: &str) -> String {
    format!("{plugin} is there already, with other bytes (digest {found}); a version never changes: give a new one")
}

/// Of a push of other bytes than were deployed under a name and version whose component was removed since.
pub(crate) fn was_deployed(plugin: &PluginVersion, found: &str) -> String {
    format!("{plugin} was deployed with other bytes (digest {found}); a version never changes: give a new one")
}

/// Of a push with another signature than the one that is there.
pub(crate) fn other_signature(plugin: &PluginVersion) -> String {
    format!("{plugin} is there already, with another signature; push it as a new version to have it signed anew")
}

/// Of the removal of a component that is at work.
pub(crate) fn still_deployed(plugin: &PluginVersion, state: &str) -> String {
    format!(
        "a deployment of {plugin} is {state}; deploy another version, or end it with `laneway plugin drain {}`, and wait \
         until `laneway plugin status` shows it as retired",
        plugin.name
    )
}

/// Of the deployment of a component that is not there.
pub(crate) fn not_stored(plugin: &PluginVersion) -> String {
    format!(
        "{plugin} is not stored; `laneway plugin push` stores it, and `laneway plugin list` shows what is there"
    )
}

/// The action of the audit rows of [`changed_grants`].
pub(crate) const GRANTS_CHANGED: &str = "grants.change";

/// The detail of an audit row, if grants are other ones than before. All grants are JSON.
pub(crate) fn changed_grants(
    node: &Name,
    subscription: &Name,
    before: Option<&str>,
    now: &str,
) -> Result<Option<Value>, StoreError> {
    let read = |text: &str| {
        serde_json::from_str::<Value>(text).map_err(|error| {
            StoreError::Other(format!("grants of subscription `{subscription}` are no JSON: {error}"))
        })
    };
    let (before, now) = (before.map(read).transpose()?, read(now)?);
    // A subscription that never granted anything has changed nothing.
    let is_news = before.as_ref().map_or(now != serde_json::json!({}), |before| *before != now);
    Ok(is_news
        .then(|| serde_json::json!({ "subscription": subscription, "node": node, "from": before, "to": now })))
}
