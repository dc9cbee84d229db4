//! Behaviours 43 and 47: schedules while the database fails, and of two nodes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use laneway_core::{
    Cleanup, CleanupPolicy, CronExpression, Effects, Missed, Name, NewMessage, Schedule, ScheduleAction,
    ScheduleRunView, Store, Topic,
};
use laneway_engine::{Engine, EngineOptions, Sweep, Sweeps, Work};
use laneway_testing::faults::{Fault, FaultyStore, Operation};
use laneway_testing::postgres::Cluster;
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

/// A schedule that fires at seconds of one kind, and writes a message each time.
fn at_seconds(cron: &str) -> Schedule {
    let topic = Topic::parse("work.item").unwrap();
    let action = ScheduleAction::Enqueue(NewMessage::new(topic, "{}"));
    Schedule { cron: CronExpression::parse(cron).unwrap(), ..every_second(action) }
}

async fn while_a_schedule_is_changed_node_by_node_only_the_new_times_fire(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    let (even, odd) = ("0-58/2 * * * * *", "1-59/2 * * * * *");
    let runs = async || rig.store.schedule_runs(&name(), 1000).await.unwrap();
    let is_odd = |run: &ScheduleRunView| run.fire_at.as_second() % 2 == 1;
    let old = [start(&rig.store, at_seconds(even)), start(&rig.other_store().await, at_seconds(even))];
    assert!(comes(async || runs().await.len() >= 2).await);
    assert!(!runs().await.iter().any(is_odd));
    // The first of three nodes has the new times.
    let new = start(&rig.other_store().await, at_seconds(odd));
    assert!(comes(async || runs().await.iter().any(is_odd)).await);
    let changed = rig.store.schedule_position(&name()).await.unwrap().unwrap().since;
    let [one, two] = old;
    one.drain().await;
    // One that does not have them yet starts anew.
    let again = start(&rig.other_store().await, at_seconds(even));
    let fired = runs().await.len();
    assert!(comes(async || runs().await.len() >= fired + 3).await);
    let position = rig.store.schedule_position(&name()).await.unwrap().unwrap();
    assert_eq!(position.since, changed, "nobody took the change back");
    let even_after = runs().await.iter().filter(|run| run.fire_at > changed && !is_odd(run)).count();
    assert_eq!(even_after, 0, "{:?}", runs().await);

    // The change is taken back: the last node that has it ends.
    new.drain().await;
    assert!(comes(async || runs().await.first().is_some_and(|run| !is_odd(run))).await, "nobody runs it any more");
    again.drain().await;
    two.drain().await;
    let runs = runs().await;
    assert_eq!(rig.store.status().await.unwrap().messages, runs.len() as u64, "each time has one message");
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
    assert!(details[0].contains("rows a second come, and it removed"), "{details:?}");
    let deleted = |detail: &String| detail.split(' ').next().unwrap().parse::<u64>().unwrap();
    assert_eq!(details.iter().map(deleted).sum::<u64>(), 500, "{details:?}");
}

/// A rig whose server nobody else uses, as another test would be load.
async fn lone_rig(on: On) -> (Rig, Option<Cluster>) {
    match on {
        On::Sqlite => (Rig::new(on, &[subscription("s")]).await, None),
        On::Postgres => {
            let cluster = Cluster::start().unwrap().expect("there is a server");
            cluster.create_database("lone").unwrap();
            (Rig::at(&cluster.url("lone"), &[subscription("s")]).await, Some(cluster))
        }
    }
}

async fn a_sweep_goes_faster_where_nobody_else_writes_and_slower_at_once_where_somebody_does(on: On) {
    let (rig, cluster) = lone_rig(on).await;
    rig.enqueue(3000).await;
    let other = rig.other_store().await;
    let before = rig.store.now().await.unwrap() + Duration::from_secs(1);
    // Nothing is settled, so that it goes on for as many steps as there are rows.
    let work = Work::Clean { what: Cleanup::Messages, before };
    for writer in [&rig.store, &other] {
        let mut sweep = Sweep::new(work.clone(), 1);
        assert_eq!(sweep.step(&*rig.store).await.unwrap(), Some(0));
        assert!(!sweep.is_alone(), "nothing is known yet");
        while !sweep.is_alone() {
            assert!(sweep.step(&*rig.store).await.unwrap().is_some(), "it is never alone");
        }
        let began = Instant::now();
        for _ in 0..100 {
            sweep.step(&*rig.store).await.unwrap();
        }
        assert!(sweep.is_alone(), "its own steps are no load");
        let alone = began.elapsed();
        for number in 0..10 {
            writer.enqueue(&[crate::rig::message(number)]).await.unwrap();
            sweep.step(&*rig.store).await.unwrap();
        }
        assert!(!sweep.is_alone(), "after ten messages");
        let began = Instant::now();
        for _ in 0..100 {
            sweep.step(&*rig.store).await.unwrap();
        }
        assert!(began.elapsed() > alone, "{:?} beside others, {alone:?} alone", began.elapsed());
    }
    drop((rig, other, cluster));
}

async fn two_sweeps_of_one_process_are_no_load_to_one_another(on: On) {
    let (rig, cluster) = lone_rig(on).await;
    process(&rig, 2000).await;
    let before = rig.store.now().await.unwrap() + Duration::from_secs(1);
    let sweeps = Sweeps::default();
    let work = |what| Work::Clean { what, before };
    let mut messages = Sweep::among(&sweeps, work(Cleanup::Messages), 2);
    let mut markers = Sweep::among(&sweeps, work(Cleanup::Markers), 2);
    let mut alone = 0;
    while let (Some(_), Some(_)) = tokio::join!(async { messages.step(&*rig.store).await.unwrap() }, async {
        markers.step(&*rig.store).await.unwrap()
    }) {
        alone += u32::from(messages.is_alone() && markers.is_alone());
    }
    assert!(alone > 500, "{alone} of 1000 steps found nobody else at work");
    drop((rig, cluster));
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
    while_a_schedule_is_changed_node_by_node_only_the_new_times_fire,
    a_sweep_goes_faster_where_nobody_else_writes_and_slower_at_once_where_somebody_does,
    two_sweeps_of_one_process_are_no_load_to_one_another,
    what_a_cleanups_budget_leaves_the_next_runs_delete,
    a_drain_ends_a_cleanup_between_two_steps,
    a_failing_cleanup_is_noted_and_does_not_stop_the_schedule,
    an_outage_delays_a_run_and_its_note_and_loses_neither,
    a_message_is_written_once_whatever_becomes_of_the_answer,
    of_two_nodes_one_runs_a_cleanups_time,
    a_sweep_goes_on_where_an_error_stopped_it,
);

/// Rows a second of steps as they are made beside others, and of a sweep of its own: the first is what all cleanups had
/// before they knew whether anybody else writes.
async fn rates(on: On) -> (f64, f64) {
    let (rig, cluster) = lone_rig(on).await;
    let topic = Topic::parse("nobody.listens").unwrap();
    for _ in 0..300 {
        let messages: Vec<NewMessage> =
            (0..1000).map(|_| NewMessage::new(topic.clone(), vec![b'x'; 200])).collect();
        rig.store.enqueue(&messages).await.unwrap();
    }
    let before = rig.store.now().await.unwrap() + Duration::from_secs(1);
    let (mut rows, mut removed, mut next) = (200, 0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        let step_began = Instant::now();
        let step = rig.store.clean(Cleanup::Messages, before, next, rows).await.unwrap();
        let took = step_began.elapsed();
        removed += step.changed;
        next = step.next.expect("there are enough");
        rows = match took {
            _ if took > Duration::from_millis(1) => rows / 2,
            _ if took < Duration::from_micros(500) => rows * 2,
            _ => rows,
        }
        .clamp(50, 5000);
        tokio::time::sleep((took * 6).max(Duration::from_millis(2))).await;
    }
    let careful = removed as f64 / began.elapsed().as_secs_f64();
    let mut sweep = Sweep::new(Work::Clean { what: Cleanup::Messages, before }, 5000);
    // It looks for a moment before it goes fast, which a whole run does not notice.
    while !sweep.is_alone() {
        sweep.step(&*rig.store).await.unwrap().expect("there are enough");
    }
    let (began, first) = (Instant::now(), sweep.changed());
    while sweep.step(&*rig.store).await.unwrap().is_some() {}
    let alone = (sweep.changed() - first) as f64 / began.elapsed().as_secs_f64();
    drop((rig, cluster));
    (careful, alone)
}

/// A measurement, which wants a machine that does nothing else: only with `LANEWAY_TEST_FULL=1`.
#[tokio::test]
async fn a_cleanup_by_itself_is_twelve_times_as_fast_as_one_beside_others() {
    if std::env::var("LANEWAY_TEST_FULL").as_deref() != Ok("1") {
        return;
    }
    for on in [On::Sqlite, On::Postgres] {
        let (careful, alone) = rates(on).await;
        println!(
            "{on:?}: {careful:.0} rows a second beside others, {alone:.0} alone: {:.1} times",
            alone / careful
        );
        assert!(alone >= 12.0 * careful, "{on:?}: {:.1} times", alone / careful);
    }
}
