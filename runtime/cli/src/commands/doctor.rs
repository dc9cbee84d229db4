//! `laneway doctor`: what is wrong with the database, and what helps.

use anyhow::Result;
use laneway_core::{Finding, Store, Trouble};
use laneway_engine::Work;
use serde::Serialize;

use super::cleanup::sweep;
use crate::Shared;
use crate::config::schedules::BATCH_SIZE;
use crate::{config, exit, output};

#[derive(clap::Args)]
pub struct Args {
    /// Mend what can be mended
    #[arg(long)]
    fix: bool,
}

/// What was mended.
#[derive(Serialize)]
struct Mended {
    trouble: Trouble,
    count: u64,
}

/// What was done, and what is wrong now.
#[derive(Serialize)]
struct Examined {
    mended: Vec<Mended>,
    findings: Vec<Told>,
}

/// A finding with what helps.
#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    finding: Finding,
    remedy: &'static str,
}

pub async fn run(shared: &Shared, args: Args) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let mut findings = store.examine().await?;
    let mut mended = Vec::new();
    if args.fix && !findings.is_empty() {
        mended = mend(&*store, &findings).await?;
        findings = store.examine().await?;
    }
    let wrong = findings.len();
    if shared.json {
        let findings =
            findings.into_iter().map(|finding| Told { remedy: finding.trouble.remedy(), finding }).collect();
        output::json(&Examined { mended, findings })?;
    } else {
        for Mended { trouble, count } in &mended {
            output::line(&said(*trouble, *count))?;
        }
        for Finding { trouble, detail, .. } in &findings {
            output::line(&format!("{}; {}", output::escaped(detail), trouble.remedy()))?;
        }
        if findings.is_empty() {
            output::line("Nothing is wrong.")?;
        }
    }
    match wrong {
        0 => Ok(()),
        _ => Err(exit::Wrong(wrong).into()),
    }
}

/// Mends what was found, one kind after the other: messages can be numbered and routed only when the triggers and the
/// sequences are right.
async fn mend(store: &dyn Store, findings: &[Finding]) -> Result<Vec<Mended>> {
    let mut mended = Vec::new();
    for trouble in Trouble::MENDABLE {
        if findings.iter().any(|finding| finding.trouble == trouble) {
            let count = sweep(store, Work::Mend(trouble), BATCH_SIZE, "mended").await?;
            mended.push(Mended { trouble, count });
        }
    }
    Ok(mended)
}

fn said(trouble: Trouble, count: u64) -> String {
    match trouble {
        Trouble::LateSequence => format!("Set {count} sequence(s)."),
        Trouble::OrphanDelivery => format!("Removed {count} delivery(s) without a message."),
        Trouble::DisabledTrigger => format!("Switched {count} trigger(s) on."),
        Trouble::NeverRouted => format!("Routed {count} message(s)."),
        Trouble::OtherHistory | Trouble::AlwaysRestoring => format!("Mended {count}."),
    }
}
