//! Schedules of one node: waits for their times, and runs each that no other node has begun.
//!
//! There is no leader. Every node waits for every time; the database takes the first that begins it. Where nodes have
//! different times for a schedule, as while a change is rolled out, those run it whose rule the database has declared, and the
//! others stand back. Waiting is by the
//! database's clock, looked at anew from time to time, so that a node whose own clock is wrong comes neither early nor
//! twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use laneway_core::{
    CleanupPolicy, Declared, Kept, Name, RunOutcome, Schedule, ScheduleAction, SchedulePosition, Store, StoreError,
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::arrears;
use crate::engine::ALIVE_FOR;
use crate::sweep::{Sweep, Sweeps, Work};

/// Longest wait without a look at the database's clock.
const LOOK: Duration = Duration::from_secs(60);
/// The same while other nodes run the schedule at other times.
const BEHIND: Duration = Duration::from_secs(5);
/// Wait after a failure of the database.
const AGAIN: Duration = Duration::from_secs(1);
/// Tries of a step of a cleanup while the database is out of reach.
const STEP_TRIES: u32 = 5;

/// Runs one schedule until the drain begins.
pub(crate) async fn run(
    store: Arc<dyn Store>,
    schedule: Arc<Schedule>,
    node: Name,
    sweeps: Sweeps,
    mut draining: watch::Receiver<bool>,
) {
    let name = &schedule.name;
    let mut standing = Standing::default();
    loop {
        // A drain does not cut it short: a run ends between two steps by itself, and says so.
        let wait = match look(&*store, &schedule, &node, &mut standing, &sweeps, &draining).await {
            Ok(Some(wait)) => wait,
            Ok(None) => {
                warn!(schedule = %name, "it has no time any more");
                return;
            }
            Err(error) => {
                warn!(schedule = %name, %error, "failed to look at the schedule");
                AGAIN
            }
        };
        tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What a node knows of whose rule its schedule goes by.
#[derive(Default)]
struct Standing {
    /// Whether it has said by which rule it runs.
    declared: bool,
    /// The rule of others that it stands back for.
    behind: Option<String>,
}

/// Says by which rule this node runs the schedule, where that is not known, or another rule holds. Answers where the
/// schedule stands; `None` if this node must not run it now.
async fn agree(
    store: &dyn Store,
    schedule: &Schedule,
    node: &Name,
    standing: &mut Standing,
) -> Result<Option<SchedulePosition>, StoreError> {
    let (name, rule) = (&schedule.name, schedule.rule());
    if standing.declared
        && let Some(position) = store.schedule_position(name).await?
        && position.rule == rule
    {
        return Ok(Some(position));
    }
    match store.declare_schedule(name, &rule, node, ALIVE_FOR).await? {
        Declared::Ours { before } => {
            if let Some(before) = before {
                warn!(
                    schedule = %name, before, now = rule,
                    "its times have changed; none before is made up for. Nodes with other times stand back from now on, but \
                     for those of a version that does not know how to"
                );
            } else if standing.behind.is_some() {
                info!(schedule = %name, rule, "this node's times hold again");
            }
            *standing = Standing { declared: true, behind: None };
            store.schedule_position(name).await
        }
        Declared::Theirs { rule: theirs, since } => {
            if standing.behind.as_ref() != Some(&theirs) {
                warn!(
                    schedule = %name, ours = rule, theirs, %since,
                    "other nodes run it at other times, which hold: this node stands back until none of them lives; if its \
                     configuration is the newer one, stop the others or give them the same"
                );
            }
            *standing = Standing { declared: true, behind: Some(theirs) };
            Ok(None)
        }
    }
}

/// Runs what is due, and answers how long to wait; `None` if there is no later time.
async fn look(
    store: &dyn Store,
    schedule: &Schedule,
    node: &Name,
    standing: &mut Standing,
    sweeps: &Sweeps,
    draining: &watch::Receiver<bool>,
) -> Result<Option<Duration>, StoreError> {
    let Some(position) = agree(store, schedule, node, standing).await? else {
        // Or someone has emptied the table.
        return Ok(Some(if standing.behind.is_some() { BEHIND } else { AGAIN }));
    };
    let now = store.now().await?;
    for time in schedule.due(position.after(), now) {
        begin(store, schedule, time, node, sweeps, draining).await?;
        if *draining.borrow() {
            return Ok(Some(Duration::ZERO));
        }
    }
    let Some(next) = schedule.next_after(now) else { return Ok(None) };
    Ok(Some(until(now, next).min(LOOK)))
}

fn until(now: Timestamp, next: Timestamp) -> Duration {
    Duration::try_from(next.duration_since(now)).unwrap_or_default()
}

async fn begin(
    store: &dyn Store,
    schedule: &Schedule,
    time: Timestamp,
    node: &Name,
    sweeps: &Sweeps,
    draining: &watch::Receiver<bool>,
) -> Result<(), StoreError> {
    let name = &schedule.name;
    // The configuration was checked: each name leaves room for a time.
    let message = schedule.message(time).map_err(|error| StoreError::Refused(error.to_string()))?;
    let rule = schedule.rule();
    let rule = Some(rule.as_str());
    let begun = match store.begin_run(name, rule, time, node, message.as_ref()).await {
        Ok(begun) => begun,
        // It may have been committed all the same: that is seen when it is begun once more.
        Err(error) if error.is_transient() => {
            warn!(schedule = %name, %time, %error, "failed to begin; trying again");
            tokio::time::sleep(AGAIN).await;
            store.begin_run(name, rule, time, node, message.as_ref()).await?
                || is_ours(store, name, time, node).await?
        }
        // It will fail again, each time: the run is noted, and the schedule goes on.
        Err(error) => {
            warn!(schedule = %name, %time, %error, "schedule failed");
            if store.begin_run(name, rule, time, node, None).await? {
                end(store, name, time, RunOutcome::Failed, &error.to_string(), draining).await;
            }
            return Ok(());
        }
    };
    if !begun {
        return Ok(());
    }
    info!(schedule = %name, %time, "schedule fired");
    if let ScheduleAction::Clean(policy) = &schedule.action {
        let interval = schedule.next_after(time).map(|next| until(time, next));
        match clean(store, policy, interval, sweeps, draining).await {
            Ok(Cleaned { detail, warnings }) => {
                info!(schedule = %name, %time, detail, "cleanup ended");
                for warning in warnings {
                    warn!(schedule = %name, %time, "{warning}");
                }
                end(store, name, time, RunOutcome::Done, &detail, draining).await;
            }
            Err(detail) => {
                warn!(schedule = %name, %time, detail, "cleanup failed");
                end(store, name, time, RunOutcome::Failed, &detail, draining).await;
            }
        }
    }
    Ok(())
}

/// Whether this node has begun the run of a time, and not ended it.
async fn is_ours(store: &dyn Store, name: &Name, time: Timestamp, node: &Name) -> Result<bool, StoreError> {
    let last = store.schedule_runs(name, 1).await?;
    Ok(last.iter().any(|run| run.fire_at == time && run.node == node.as_str() && run.ended_at.is_none()))
}

/// Notes the end of a run, for as long as that takes.
async fn end(
    store: &dyn Store,
    name: &Name,
    time: Timestamp,
    outcome: RunOutcome,
    detail: &str,
    draining: &watch::Receiver<bool>,
) {
    while let Err(error) = store.end_run(name, time, outcome, detail).await {
        warn!(schedule = %name, %time, %error, "failed to note how a run ended");
        if !error.is_transient() || *draining.borrow() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// How a cleanup ended that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// What it did, in words.
    pub detail: String,
    /// What the operator has to know and do.
    pub warnings: Vec<String>,
}

/// Says what the application does not let go, and what to do; `None` if it is nothing.
#[must_use]
pub fn said_of_kept(kept: &[Kept]) -> Option<String> {
    if kept.is_empty() {
        return None;
    }
    let each: Vec<String> = kept.iter().map(|kept| format!("{} by {}", kept.rows, kept.by)).collect();
    Some(format!(
        "{} row(s) that are old enough stay, held {}; they go once nothing of the application's holds them any more",
        kept.iter().map(|kept| kept.rows).sum::<u64>(),
        each.join(", ")
    ))
}

/// Runs a cleanup within its budget. `interval` is the time from this run to the next. Answers what it did, or in words
/// why it failed.
///
/// # Errors
/// If a step fails for good; the steps before it stay.
pub async fn clean(
    store: &dyn Store,
    policy: &CleanupPolicy,
    interval: Option<Duration>,
    sweeps: &Sweeps,
    draining: &watch::Receiver<bool>,
) -> Result<Cleaned, String> {
    let began = Instant::now();
    let now = store.now().await.map_err(|error| error.to_string())?;
    let retention = SignedDuration::try_from(policy.retention).unwrap_or(SignedDuration::MAX);
    let before = now.checked_sub(retention).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH);
    let mut sweep = Sweep::among(sweeps, Work::Clean { what: policy.what, before }, policy.batch_size);
    let mut tries = 0;
    let (rest, used_up) = loop {
        match sweep.step(store).await {
            Ok(Some(_)) if sweep.is_done() => break ("", None),
            Ok(Some(_)) => tries = 0,
            Ok(None) => break ("", None),
            Err(error) if error.is_transient() && tries < STEP_TRIES => {
                tries += 1;
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(format!("{error}; {} deleted before", sweep.changed())),
        }
        if *draining.borrow() {
            break ("; stopped by a drain, the next run goes on", None);
        }
        if began.elapsed() >= policy.budget {
            break ("; its budget of time is used up, the next run goes on", sweep.position());
        }
    };
    let mut warnings = Vec::new();
    if let Some(position) = used_up {
        let (took, removed, budget) = (began.elapsed(), sweep.changed(), policy.budget);
        let run = arrears::Run { removed, took, budget, interval, before };
        // The advice alone is not worth a failure.
        if let Ok(arrears) = store.arrears(policy.what, position).await {
            warnings.push(format!("its budget of time did not suffice: {}", arrears::advice(run, arrears)));
        }
    }
    warnings.extend(said_of_kept(&sweep.kept()));
    let mut detail = format!("{} deleted{rest}", sweep.changed());
    for warning in &warnings {
        detail.push_str("; ");
        detail.push_str(warning);
    }
    Ok(Cleaned { detail, warnings })
}
