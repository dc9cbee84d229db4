//! `laneway plugin rollback`: back to the version before, at once.

use anyhow::{Context, Result};
use laneway_core::{Deployment, DeploymentState, Name, NewDeployment, PluginVersion};
use serde::Serialize;

use super::{nothing_at_work, step};
use crate::Shared;
use crate::{config, output};

/// Ended deployments of the plugin among which the version before is looked for.
const ENDED_MAX: u32 = 1000;

#[derive(clap::Args)]
pub struct Args {
    /// The plugin
    #[arg(value_parser = Name::parse)]
    plugin: Name,
}

#[derive(Serialize)]
struct RolledBack {
    /// The version that is out.
    from: PluginVersion,
    /// The version that is active now.
    to: Option<PluginVersion>,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let deployments = store.deployments(Some(&args.plugin), ENDED_MAX).await?;
    let find = |state| deployments.iter().find(|deployment| deployment.state == state);
    let active = find(DeploymentState::Active);
    let rolled_back = match (find(DeploymentState::Canary), active) {
        (Some(canary), active) => {
            let reason = Some("rolled back by hand");
            step(&*store, canary.id, DeploymentState::Canary, DeploymentState::Draining, reason).await?;
            RolledBack { from: canary.plugin.clone(), to: active.map(|active| active.plugin.clone()) }
        }
        (None, Some(active)) => {
            let before = before(&deployments, active).with_context(|| {
                format!(
                    "no other version of `{0}` was active before {1}; `laneway plugin list` shows what can be deployed \
                     with `laneway plugin deploy {0}@VERSION`",
                    args.plugin, active.plugin
                )
            })?;
            // It was checked when it was deployed, and has been at work.
            let to = before.plugin.clone();
            let back_to = Some(before.back_to.unwrap_or(before.id));
            let id = store.stage(&NewDeployment { plugin: to.clone(), canary: None, back_to }).await?;
            let reason = format!("rolled back from {}", active.plugin);
            step(&*store, id, DeploymentState::Staged, DeploymentState::Validated, Some(&reason)).await?;
            step(&*store, id, DeploymentState::Validated, DeploymentState::Active, Some(&reason)).await?;
            RolledBack { from: active.plugin.clone(), to: Some(to) }
        }
        (None, None) => return Err(nothing_at_work(&args.plugin)),
    };
    if shared.json {
        return output::json(&rolled_back);
    }
    let RolledBack { from, to } = rolled_back;
    match to {
        Some(to) => output::line(&format!("{from} is out; {to} is active.")),
        None => output::line(&format!("{from} is out; no version is active.")),
    }
}

/// The version that was active before, of those that came before it.
fn before<'a>(deployments: &'a [Deployment], active: &Deployment) -> Option<&'a Deployment> {
    // The latest first. Going back twice must not go forward: what was rolled back from is newer than what it went to.
    let origin = active.back_to.unwrap_or(active.id);
    deployments.iter().find(|other| other.id < origin && other.was_active && other.digest != active.digest)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use laneway_core::PluginDigest;

    use super::*;

    /// Deployments from versions in the order in which they were active, each with what it went back to.
    fn before_the_last(history: &[(i64, Option<i64>)]) -> Option<i64> {
        let deployment = |(place, &(version, back_to)): (usize, &(i64, Option<i64>))| Deployment {
            id: i64::try_from(place).unwrap() + 1,
            plugin: format!("w@{version}").parse().unwrap(),
            digest: PluginDigest::from_hex(&version.to_string()),
            state: DeploymentState::Retired,
            canary: None,
            reason: None,
            was_active: true,
            back_to,
            staged_at: Timestamp::UNIX_EPOCH,
            changed_at: Timestamp::UNIX_EPOCH,
            in_state_for: std::time::Duration::ZERO,
        };
        let mut deployments: Vec<Deployment> = history.iter().enumerate().map(deployment).collect();
        deployments.reverse();
        before(&deployments, &deployments[0]).map(|before| before.plugin.version.parse().unwrap())
    }

    #[test]
    fn each_rollback_goes_further_back() {
        assert_eq!(before_the_last(&[(1, None)]), None);
        assert_eq!(before_the_last(&[(1, None), (2, None), (3, None)]), Some(2));
        assert_eq!(before_the_last(&[(1, None), (2, None), (3, None), (2, Some(2))]), Some(1));
        assert_eq!(before_the_last(&[(1, None), (2, None), (3, None), (2, Some(2)), (1, Some(1))]), None);
        // Deployed once more, it is a new version like any other.
        assert_eq!(before_the_last(&[(1, None), (2, None), (1, None)]), Some(2));
        assert_eq!(before_the_last(&[(1, None), (2, None), (1, Some(1)), (3, None)]), Some(1));
        // The same again is no other version.
        assert_eq!(before_the_last(&[(1, None), (1, None)]), None);
    }
}
