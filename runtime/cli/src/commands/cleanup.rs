//! Removing what is over its retention: shared by `laneway messages cleanup` and `laneway idempotency cleanup`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use laneway_core::{Cleanup, Kept, Store};
use laneway_engine::{Sweep, Work, said_of_kept};
use serde::Serialize;

use crate::Shared;
use crate::config::Config;
use crate::config::schedules::{BATCH_SIZE, BATCH_SIZE_MAX};
use crate::{config, output};

/// Retention, if nothing else is said.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(clap::Args)]
pub struct BatchArgs {
    /// Rows in one transaction at most
    #[arg(long, value_name = "N", default_value_t = BATCH_SIZE, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=i64::from(BATCH_SIZE_MAX)))]
    pub batch_size: u32,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(clap::Args)]
pub struct Args {
    /// Remove what is older than this; default: the configuration's retention, or 168
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    retention_hours: Option<u32>,
    #[command(flatten)]
    batch: BatchArgs,
}

/// What was done, or would be.
#[derive(Serialize)]
struct Cleaned {
    before: Timestamp,
    dry_run: bool,
    deleted: u64,
    /// What is old enough and stays, as something of the application's holds it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<Kept>,
}

pub async fn run(shared: &Shared, what: Cleanup, args: &Args) -> Result<()> {
    let store = config::storage(shared.storage.as_ref(), &shared.config)?.open().await?;
    let retention = match args.retention_hours {
        Some(hours) => Duration::from_secs(u64::from(hours) * 3600),
        None => match configured(shared, what)? {
            Configured::Kept(retention) => retention,
            Configured::TurnedOff if shared.json => {
                let before = Timestamp::UNIX_EPOCH;
                let dry_run = args.batch.dry_run;
                return output::json(&Cleaned { before, dry_run, deleted: 0, kept: Vec::new() });
            }
            Configured::TurnedOff => {
                return output::line(&format!(
                    "The configuration keeps {} for ever; --retention-hours says otherwise.",
                    many(what)
                ));
            }
        },
    };
    let before = cutoff(store.now().await?, retention)?;
    let (deleted, kept) = match args.batch.dry_run {
        true => (store.cleanable(what, before).await?, Vec::new()),
        false => sweep_all(&*store, Work::Clean { what, before }, args.batch.batch_size, "deleted").await?,
    };
    if shared.json {
        return output::json(&Cleaned { before, dry_run: args.batch.dry_run, deleted, kept });
    }
    output::line(&said(what, deleted, args.batch.dry_run))?;
    said_of_kept(&kept).map_or(Ok(()), |kept| output::line(&format!("{kept}.")))
}

fn many(what: Cleanup) -> &'static str {
    match what {
        Cleanup::Messages => "messages",
        Cleanup::Markers => "idempotency markers",
        Cleanup::DeadLetters => "dead letters",
        Cleanup::ScheduleRuns => "schedule runs",
    }
}

/// What a cleanup did, in words.
pub fn said(what: Cleanup, deleted: u64, dry_run: bool) -> String {
    let many = many(what);
    let one = many.trim_end_matches('s');
    match (deleted, dry_run) {
        (0, _) => format!("No {many} to clean up."),
        (_, true) => format!("Would delete {deleted} {one}(s)."),
        (_, false) => format!("Deleted {deleted} {one}(s)."),
    }
}

/// What the configuration says of a cleanup.
enum Configured {
    Kept(Duration),
    TurnedOff,
}

/// Without a configuration, its default.
fn configured(shared: &Shared, what: Cleanup) -> Result<Configured> {
    if !shared.config.exists() {
        return Ok(Configured::Kept(RETENTION));
    }
    let config = Config::load(&shared.config, shared.storage.as_ref())?;
    Ok(match config.schedules.cleanup(what) {
        Some(policy) => Configured::Kept(policy.retention),
        None => Configured::TurnedOff,
    })
}

/// The time that is `retention` before `now`.
pub fn cutoff(now: Timestamp, retention: Duration) -> Result<Timestamp> {
    let retention = SignedDuration::try_from(retention).context("retention")?;
    Ok(now.checked_sub(retention).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH))
}

/// Works to the end, and says on a terminal how far it is. Answers the rows changed.
pub async fn sweep(store: &dyn Store, work: Work, batch_size: u32, done: &str) -> Result<u64> {
    Ok(sweep_all(store, work, batch_size, done).await?.0)
}

/// The same, and answers also which rows the application does not let go.
pub async fn sweep_all(store: &dyn Store, work: Work, batch_size: u32, done: &str) -> Result<(u64, Vec<Kept>)> {
    let mut sweep = Sweep::new(work, batch_size);
    let mut stderr = std::io::stderr();
    let shows = stderr.is_terminal();
    let result = loop {
        match sweep.step(store).await {
            Ok(Some(_)) if shows => {
                // A line that is not shown harms nothing.
                let _ = write!(stderr, "\r{} {done}", sweep.changed()).and_then(|()| stderr.flush());
            }
            Ok(Some(_)) => {}
            Ok(None) => break Ok((sweep.changed(), sweep.kept())),
            Err(error) => break Err(error),
        }
    };
    if shows {
        let _ = write!(stderr, "\r{:30}\r", "");
    }
    result.with_context(|| {
        format!("stopped after {} were {done}; the same command goes on from there", sweep.changed())
    })
}
