//! `laneway plugin drain`: a plugin comes off its work.

use anyhow::Result;
use laneway_core::{DeploymentState, Name, PluginVersion};
use serde::Serialize;

use super::{nothing_at_work, step};
use crate::Shared;
use crate::{config, output};

#[derive(clap::Args)]
pub struct Args {
    /// The plugin
    #[arg(value_parser = Name::parse)]
    plugin: Name,
}

#[derive(Serialize)]
struct Drained {
    /// What was at work.
    draining: Vec<PluginVersion>,
    /// What was about to be.
    withdrawn: Vec<PluginVersion>,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let mut draining = Vec::new();
    let mut withdrawn = Vec::new();
    for deployment in store.deployments(Some(&args.plugin), 0).await? {
        let (to, reason, of) = match deployment.state {
            DeploymentState::Active | DeploymentState::Canary => {
                (DeploymentState::Draining, "drained by hand", &mut draining)
            }
            // Whoever began it may be gone.
            DeploymentState::Staged | DeploymentState::Validated => {
                (DeploymentState::Failed, "withdrawn by hand", &mut withdrawn)
            }
            DeploymentState::Draining | DeploymentState::Retired | DeploymentState::Failed => continue,
        };
        step(&*store, deployment.id, deployment.state, to, Some(reason)).await?;
        of.push(deployment.plugin);
    }
    if draining.is_empty() && withdrawn.is_empty() {
        return Err(nothing_at_work(&args.plugin));
    }
    if shared.json {
        return output::json(&Drained { draining, withdrawn });
    }
    for plugin in withdrawn {
        output::line(&format!("{plugin} is not deployed after all."))?;
    }
    for plugin in draining {
        output::line(&format!("{plugin} gets no more messages; those of its subscriptions wait."))?;
    }
    Ok(())
}
