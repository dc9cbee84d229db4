//! `laneway plugin status`: which versions are at work, and what became of their attempts.

use anyhow::Result;
use laneway_core::{Deployment, Figures, Name, NodeReportView, Readiness};
use laneway_engine::ALIVE_FOR;
use serde::Serialize;

use crate::Shared;
use crate::{config, output};

#[derive(clap::Args)]
pub struct Args {
    /// Only of this plugin
    #[arg(value_parser = Name::parse)]
    plugin: Option<Name>,
    /// Show this many deployments that have ended too
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000))]
    ended: u32,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    deployment: Deployment,
    /// Calls under way, on all living nodes; a publisher's batch is one.
    in_flight: u64,
    /// What attempts came to, on all nodes since each took the version up.
    figures: Figures,
    /// What each node says.
    nodes: Vec<NodeReportView>,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let deployments = store.deployments(args.plugin.as_ref(), args.ended).await?;
    let ids: Vec<i64> = deployments.iter().map(|deployment| deployment.id).collect();
    let reports = store.reports(&ids, ALIVE_FOR).await?;
    let rows: Vec<Row> = deployments.into_iter().map(|deployment| row(deployment, &reports)).collect();
    if shared.json {
        return output::json(&rows);
    }
    let cells: Vec<_> = rows.iter().map(cells).collect();
    output::table(
        [
            "DEPLOYMENT",
            "PLUGIN",
            "VERSION",
            "STATE",
            "SINCE",
            "NODES",
            "IN FLIGHT",
            "ATTEMPTS",
            "FAILED",
            "MEAN",
            "REASON",
        ],
        &cells,
    )
}

fn row(deployment: Deployment, reports: &[NodeReportView]) -> Row {
    let nodes: Vec<_> = reports.iter().filter(|view| view.report.deployment == deployment.id).cloned().collect();
    let mut figures = Figures::default();
    nodes.iter().for_each(|view| figures.add(&view.report.figures));
    let in_flight = nodes.iter().filter(|view| view.alive).map(|view| u64::from(view.report.in_flight)).sum();
    Row { deployment, in_flight, figures, nodes }
}

fn cells(row: &Row) -> [String; 11] {
    let Row { deployment, in_flight, figures, nodes } = row;
    let alive = nodes.iter().filter(|view| view.alive);
    let (ready, failed): (Vec<_>, Vec<_>) = alive.partition(|view| view.report.readiness == Readiness::Ready);
    let state = match &deployment.canary {
        Some(canary) if deployment.state == laneway_core::DeploymentState::Canary => {
            format!("canary, {} %", canary.share * 100.0)
        }
        _ => deployment.state.as_str().to_owned(),
    };
    let failures = failed.iter().filter_map(|view| {
        view.report.error.as_ref().map(|error| format!("node `{}` cannot run it: {error}", view.node))
    });
    let reasons: Vec<String> = deployment.reason.clone().into_iter().chain(failures).collect();
    [
        deployment.id.to_string(),
        deployment.plugin.name.to_string(),
        deployment.plugin.version.to_string(),
        state,
        deployment.changed_at.to_string(),
        if failed.is_empty() {
            ready.len().to_string()
        } else {
            format!("{}, {} failed", ready.len(), failed.len())
        },
        in_flight.to_string(),
        figures.attempts.to_string(),
        figures.failed.to_string(),
        format!("{:.1?}", figures.mean()),
        reasons.join("; "),
    ]
}
