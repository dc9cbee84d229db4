//! Behaviours 43 and 47: schedules while the database fails, and of two nodes.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use laneway_core::{
    Cleanup, CleanupPolicy, CronExpression, Effects, Missed, Name, NewMessage, Schedule, ScheduleAction, Store,
    Topic,
};
use laneway_engine::{Engine, EngineOptions, Sweep, Work};
use laneway_testing::faults::{Fault, FaultyStore, Operation};
use tokio::runtime::Handle;

use crate::rig::{On, Rig, comes, options, play, subscription};

fn every_second(action: ScheduleAction) -> Schedule {
    Schedule {
        name: name(),
        cron: CronExpression::parse("* * * * * *").unwrap(),
        zone: TimeZone::UTC,
        missed: Missed::One,
        action,
    }
}

fn name() -> Name {
    Name::parse("each-second").unwrap()
}

fn cleanup() -> Schedule {
    let policy = CleanupPolicy {
        what: Cleanup::Markers,
        retention: Duration::from_millis(1),
        batch_size: 100,
        budget: Duration::from_secs(10),
    };
    every_second(ScheduleAction::Clean(policy))
}

fn start(store: &Arc<dyn Store>, schedule: Schedule) -> Engine {
    // A drain lets a run come to its end, however long the database takes for it.
    let patient = EngineOptions { grace: Duration::from_secs(60), ..options() };
    Engine::start(store, vec![], vec![schedule], patient, &Handle::current())
}

async fn a_failing_cleanup_is_noted_and_does_not_stop_the_schedule(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    faulty.script(Operation::Clean, Fault::Broken);
    let store: Arc<dyn Store> = faulty.clone();
    let engine = start(&store, cleanup());
    let went_on = comes(async || rig.store.schedule_runs(&name(), 10).await.unwrap().len() >= 3).await;
    assert!(went_on, "the schedule stands still");
    engine.drain().await;
    let mut runs = rig.store.schedule_runs(&name(), 10).await.unwrap();
    runs.reverse();
    assert_eq!(runs[0].outcome.as_deref(), Some("failed"));
    assert!(runs[0].detail.as_deref().is_some_and(|detail| detail.contains("injected")), "{runs:?}");
    assert_eq!(runs[1].outcome.as_deref(), Some("done"));
}

async fn an_outage_delays_a_run_and_its_note_and_loses_neither(on: On) {
    for (operation, fault) in [
        (Operation::BeginRun, Fault::Before),
        (Operation::BeginRun, Fault::After),
        (Operation::Clean, Fault::After),
        (Operation::EndRun, Fault::Before),
        (Operation::EndRun, Fault::After),
    ] {
        let rig = Rig::new(on, &[subscription("s")]).await;
        let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
        faulty.script(operation, fault);
        let store: Arc<dyn Store> = faulty.clone();
        let engine = start(&store, cleanup());
        let noted = async || {
            let runs = rig.store.schedule_runs(&name(), 1000).await.unwrap();
            runs.last().is_some_and(|run| run.outcome.as_deref() == Some("done"))
        };
        assert!(comes(noted).await, "{operation:?} {fault:?}: {:?}", rig.store.schedule_runs(&name(), 10).await);
        assert_eq!(faulty.injected(), 1);
        engine.drain().await;
    }
}

async fn a_message_is_written_once_whatever_becomes_of_the_answer(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    faulty.script(Operation::BeginRun, Fault::After);
    faulty.script(Operation::BeginRun, Fault::Before);
    let store: Arc<dyn Store> = faulty.clone();
    let topic = Topic::parse("work.item").unwrap();
    let engine = start(&store, every_second(ScheduleAction::Enqueue(NewMessage::new(topic, "{}"))));
    assert!(comes(async || rig.store.schedule_runs(&name(), 10).await.unwrap().len() >= 3).await);
    engine.drain().await;
    let runs = rig.store.schedule_runs(&name(), 100).await.unwrap();
    assert!(runs.iter().all(|run| run.outcome.as_deref() == Some("done")), "{runs:?}");
    assert_eq!(rig.store.status().await.unwrap().messages, runs.len() as u64);
}

async fn of_two_nodes_one_runs_a_cleanups_time(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let engines = [start(&rig.store, cleanup()), start(&rig.other_store().await, cleanup())];
    assert!(comes(async || rig.store.schedule_runs(&name(), 10).await.unwrap().len() >= 4).await);
    for engine in engines {
        engine.drain().await;
    }
    let runs = rig.store.schedule_runs(&name(), 100).await.unwrap();
    assert!(runs.iter().all(|run| run.outcome.as_deref() == Some("done")), "{runs:?}");
    let mut times: Vec<_> = runs.iter().map(|run| run.fire_at).collect();
    times.dedup();
    assert_eq!(times.len(), runs.len());
}

async fn a_sweep_goes_on_where_an_error_stopped_it(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    process(&rig, 500).await;
    let faulty = FaultyStore::new(rig.store.clone());
    let before = rig.store.now().await.unwrap() + Duration::from_secs(1);
    // Steps of the least size, which does not change with the time that they take.
    let mut sweep = Sweep::new(Work::Clean { what: Cleanup::Messages, before }, 50);
    assert_eq!(sweep.step(&faulty).await.unwrap(), Some(50));
    faulty.script(Operation::Clean, Fault::Before);
    faulty.script(Operation::Clean, Fault::After);
    assert!(sweep.step(&faulty).await.is_err() && sweep.step(&faulty).await.is_err());
    while sweep.step(&faulty).await.unwrap().is_some() {}
    assert_eq!(rig.store.status().await.unwrap().messages, 0);
    assert_eq!(sweep.changed(), 450, "the answer to one step was lost, its work was not");
}

/// Messages that were processed, each with its marker.
async fn process(rig: &Rig, count: usize) {
    rig.enqueue(count).await;
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    rig.wait_until_empty().await;
    running.engine.drain().await;
}

fn with_policy(change: impl Fn(&mut CleanupPolicy)) -> Schedule {
    let mut schedule = cleanup();
    if let ScheduleAction::Clean(policy) = &mut schedule.action {
        change(policy);
    }
    schedule
}

async fn what_a_cleanups_budget_leaves_the_next_runs_delete(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    process(&rig, 500).await;
    // One step each time.
    let engine = start(&rig.store, with_policy(|policy| policy.budget = Duration::ZERO));
    let details = async || {
        let runs = rig.store.schedule_runs(&name(), 100).await.unwrap();
        runs.into_iter().rev().filter_map(|run| run.detail).collect::<Vec<_>>()
    };
    assert!(comes(async || details().await.last().is_some_and(|detail| detail == "0 deleted")).await);
    engine.drain().await;
    let details = details().await;
    assert!(details[0].starts_with("100 deleted; its budget"), "{details:?}");
    let deleted = |detail: &String| detail.split(' ').next().unwrap().parse::<u64>().unwrap();
    assert_eq!(details.iter().map(deleted).sum::<u64>(), 500, "{details:?}");
}

async fn a_drain_ends_a_cleanup_between_two_steps(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    process(&rig, 400).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    let store: Arc<dyn Store> = faulty.clone();
    // So small that it takes hundreds of steps, each with a pause after it.
    let engine = start(&store, with_policy(|policy| policy.batch_size = 1));
    assert!(comes(async || faulty.calls(Operation::Clean) >= 3).await);
    let report = engine.drain().await;
    assert!(report.complete, "{report:?}");
    let runs = rig.store.schedule_runs(&name(), 1).await.unwrap();
    let detail = runs[0].detail.as_deref().unwrap();
    assert!(detail.ends_with("stopped by a drain, the next run goes on"), "{detail}");
    let deleted: u64 = detail.split(' ').next().unwrap().parse().unwrap();
    assert!((1..400).contains(&deleted), "{detail}");
}

on_both!(
    what_a_cleanups_budget_leaves_the_next_runs_delete,
    a_drain_ends_a_cleanup_between_two_steps,
    a_failing_cleanup_is_noted_and_does_not_stop_the_schedule,
    an_outage_delays_a_run_and_its_note_and_loses_neither,
    a_message_is_written_once_whatever_becomes_of_the_answer,
    of_two_nodes_one_runs_a_cleanups_time,
    a_sweep_goes_on_where_an_error_stopped_it,
);
