//! Schedules of one node: waits for their times, and runs each that no other node has begun.
//!
//! There is no leader. Every node waits for every time; the database takes the first that begins it. Waiting is by the
//! database's clock, looked at anew from time to time, so that a node whose own clock is wrong comes neither early nor
//! twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use laneway_core::{CleanupPolicy, Name, RunOutcome, Schedule, ScheduleAction, Store, StoreError};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::sweep::{Sweep, Work};

/// Longest wait without a look at the database's clock.
const LOOK: Duration = Duration::from_secs(60);
/// Wait after a failure of the database.
const AGAIN: Duration = Duration::from_secs(1);
/// Tries of a step of a cleanup while the database is out of reach.
const STEP_TRIES: u32 = 5;

/// Runs one schedule until the drain begins.
pub(crate) async fn run(
    store: Arc<dyn Store>,
    schedule: Arc<Schedule>,
    node: Name,
    mut draining: watch::Receiver<bool>,
) {
    let name = &schedule.name;
    let mut declared = false;
    loop {
        // A drain does not cut it short: a run ends between two steps by itself, and says so.
        let wait = match look(&*store, &schedule, &node, &mut declared, &draining).await {
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

/// Runs what is due, and answers how long to wait; `None` if there is no later time.
async fn look(
    store: &dyn Store,
    schedule: &Schedule,
    node: &Name,
    declared: &mut bool,
    draining: &watch::Receiver<bool>,
) -> Result<Option<Duration>, StoreError> {
    if !*declared {
        let rule = schedule.rule();
        if let Some(before) = store.declare_schedule(&schedule.name, &rule).await? {
            let name = &schedule.name;
            warn!(schedule = %name, before, now = rule, "its times have changed; none before is made up for");
        }
        *declared = true;
    }
    let now = store.now().await?;
    let Some(position) = store.schedule_position(&schedule.name).await? else {
        // Someone has emptied the table.
        *declared = false;
        return Ok(Some(AGAIN));
    };
    for time in schedule.due(position.after(), now) {
        begin(store, schedule, time, node, draining).await?;
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
    draining: &watch::Receiver<bool>,
) -> Result<(), StoreError> {
    let name = &schedule.name;
    // The configuration was checked: each name leaves room for a time.
    let message = schedule.message(time).map_err(|error| StoreError::Refused(error.to_string()))?;
    let begun = match store.begin_run(name, time, node, message.as_ref()).await {
        Ok(begun) => begun,
        // It may have been committed all the same: that is seen when it is begun once more.
        Err(error) if error.is_transient() => {
            warn!(schedule = %name, %time, %error, "failed to begin; trying again");
            tokio::time::sleep(AGAIN).await;
            store.begin_run(name, time, node, message.as_ref()).await? || is_ours(store, name, time, node).await?
        }
        // It will fail again, each time: the run is noted, and the schedule goes on.
        Err(error) => {
            warn!(schedule = %name, %time, %error, "schedule failed");
            if store.begin_run(name, time, node, None).await? {
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
        match clean(store, policy, draining).await {
            Ok(detail) => {
                info!(schedule = %name, %time, detail, "cleanup ended");
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

/// Runs a cleanup within its budget. Answers in words what it did, or why it failed.
pub async fn clean(
    store: &dyn Store,
    policy: &CleanupPolicy,
    draining: &watch::Receiver<bool>,
) -> Result<String, String> {
    let began = Instant::now();
    let now = store.now().await.map_err(|error| error.to_string())?;
    let retention = SignedDuration::try_from(policy.retention).unwrap_or(SignedDuration::MAX);
    let before = now.checked_sub(retention).unwrap_or(Timestamp::UNIX_EPOCH).max(Timestamp::UNIX_EPOCH);
    let mut sweep = Sweep::new(Work::Clean { what: policy.what, before }, policy.batch_size);
    let mut tries = 0;
    let rest = loop {
        match sweep.step(store).await {
            Ok(Some(_)) if sweep.is_done() => break "",
            Ok(Some(_)) => tries = 0,
            Ok(None) => break "",
            Err(error) if error.is_transient() && tries < STEP_TRIES => {
                tries += 1;
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(format!("{error}; {} deleted before", sweep.changed())),
        }
        if *draining.borrow() {
            break "; stopped by a drain, the next run goes on";
        }
        if began.elapsed() >= policy.budget {
            break "; its budget of time is used up, the next run goes on";
        }
    };
    Ok(format!("{} deleted{rest}", sweep.changed()))
}
