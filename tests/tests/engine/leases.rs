//! Leases as the engine keeps and loses them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use laneway_core::{ClaimRequest, Effects, Held, Lane, RetryPolicy, Store, Subscription};
use laneway_testing::faults::{Fault, FaultyStore, Operation};

use crate::rig::{Gate, On, Play, Rig, comes, count_up, options, play, subscription};

/// A claim of whatever is due of the rig's subscription.
fn request(rig: &Rig, limit: u32, lease: Duration) -> ClaimRequest {
    ClaimRequest {
        subscription: rig.id(),
        lane: Lane::Primary,
        limit,
        lease,
        check_markers: true,
        ordered: false,
        in_work_max: None,
    }
}

async fn leases_of_running_and_waiting_messages_are_renewed(on: On) {
    let lease = Duration::from_secs(6);
    let rig = Rig::new(on, &[Subscription { lease, concurrency: 1, ..subscription("s") }]).await;
    rig.enqueue(4).await;
    let gate = Gate::closed();
    let closed = gate.clone();
    let standing = play(move |_| {
        let closed = closed.clone();
        async move {
            closed.pass().await;
            Ok(Effects::default())
        }
    });
    let counted = Arc::new(FaultyStore::new(rig.store.clone()));
    let store: Arc<dyn Store> = counted.clone();
    let running = rig.start_on(&store, &standing, options());
    // One runs, three wait behind it.
    running.wait_for("the claims", |stats| stats.claimed == 4).await;
    let rival = rig.start_on(&rig.other_store().await, &standing, options());
    let started = Instant::now();
    let renewed = comes(async || counted.calls(Operation::Renew) >= 4 && started.elapsed() > lease * 3 / 2).await;
    assert!(renewed, "{} renewals", counted.calls(Operation::Renew));
    gate.open();
    rig.wait_until_empty().await;
    let runs = (running.runs.load(Ordering::SeqCst), rival.runs.load(Ordering::SeqCst));
    assert_eq!(runs, (4, 0), "a delivery was taken from a living node");
    assert_eq!(running.drained().await.lease_lost + rival.drained().await.lease_lost, 0);
}

/// A node is cut off from its database while a plugin runs, and another takes over its delivery. The first outcome
/// must be dropped and counted, and the second one be the only one that has an effect, which is returned as text.
async fn a_lost_lease_is_counted(effect: Play, told: impl AsyncFn(&Rig) -> String) -> String {
    let rig = Rig::new(On::Sqlite, &[Subscription { lease: Duration::from_secs(3), ..subscription("s") }]).await;
    rig.enqueue(1).await;
    let (gates, reached) = ([Gate::closed(), Gate::closed()], [Gate::closed(), Gate::closed()]);
    let standing = {
        let (gates, reached) = (gates.clone(), reached.clone());
        play(move |call| {
            // Neither counts, as the first was not noted; the second may be a duplicate of it.
            assert_eq!(call.attempt.number, 1);
            let attempt = usize::from(call.attempt.maybe_duplicate);
            let (effect, gate, reached) = (effect.clone(), gates[attempt].clone(), reached[attempt].clone());
            async move {
                let effects = effect(call).await;
                reached.open();
                gate.pass().await;
                effects
            }
        })
    };
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    let store: Arc<dyn Store> = faulty.clone();
    let loser = rig.start_on(&store, &standing, options());
    reached[0].pass().await;
    faulty.cut();
    // Nobody is to take it over once more.
    let rig = rig.with_lease(Duration::from_secs(3600));
    let winner = rig.start_on(&rig.other_store().await, &standing, options());
    reached[1].pass().await;
    faulty.restore();
    let before = told(&rig).await;
    gates[0].open();
    loser.wait_for("the first outcome to be dropped", |stats| stats.lease_lost > 0).await;
    let mut sql = rig.sqlite().await;
    let markers: i64 = sqlx::query_scalar("SELECT count(*) FROM laneway_marker").fetch_one(&mut sql).await.unwrap();
    assert_eq!((markers, told(&rig).await), (0, before), "the dropped outcome left something");
    gates[1].open();
    rig.wait_until_empty().await;

    let (lost, won) = (loser.drained().await, winner.drained().await);
    assert_eq!((lost.claimed, lost.lease_lost, lost.completed), (1, 1, 0), "{lost:?}");
    assert_eq!((won.claimed, won.lease_lost, won.completed), (1, 0, 1), "{won:?}");
    assert!(rig.dead_letters().await.is_empty());
    told(&rig).await
}

#[tokio::test]
async fn an_outcome_whose_lease_was_lost_is_counted_and_has_no_effect() {
    let adding = play(|_| async { Ok(Effects { adds: vec![("n".into(), 1)], ..Effects::default() }) });
    let sum = async |rig: &Rig| rig.store.counter(&subscription("s").name, "n").await.unwrap().to_string();
    assert_eq!(a_lost_lease_is_counted(adding, sum).await, "1");
}

#[tokio::test]
async fn an_outcome_that_writes_state_and_whose_lease_was_lost_is_counted_and_has_no_effect() {
    let value = async |rig: &Rig| rig.state("n").await.unwrap_or_default();
    assert_eq!(a_lost_lease_is_counted(count_up("n"), value).await, "1");
}

async fn a_node_that_vanishes_is_recovered_when_its_lease_ends(on: On) {
    // Much longer than the lease that is lost: a node must not wait for a lease of its own length.
    let long = Subscription { lease: Duration::from_secs(3600), ..subscription("s") };
    let rig = Rig::new(on, &[long]).await;
    rig.enqueue(100).await;
    // A claim whose node never comes back.
    let lease = Duration::from_millis(500);
    let claimed = rig.store.claim(request(&rig, 60, lease)).await.unwrap();
    assert_eq!(claimed.unwrap().deliveries.len(), 60);
    let started = Instant::now();
    let running = rig.start(&count_up("n"));
    rig.wait_until_empty().await;
    // A poll is a tenth of a second; the rest is for a machine that is busy with other things.
    assert!(started.elapsed() < lease + Duration::from_secs(10), "took {:?}", started.elapsed());
    assert_eq!(rig.state("n").await.as_deref(), Some("100"));
    running.engine.drain().await;
}

/// What nodes claim that end one after the other, each after slots began these of it.
async fn lose(rig: &Rig, limit: u32, begins: &[&[usize]]) {
    for begins in begins {
        let request = request(rig, limit, Duration::from_millis(20));
        let mut claimed = None;
        let came = comes(async || {
            claimed = rig.store.claim(request).await.unwrap();
            claimed.is_some()
        })
        .await;
        assert!(came, "nothing was due");
        let batch = claimed.unwrap();
        let begun: Vec<Held> = begins
            .iter()
            .map(|&position| Held {
                token: batch.token,
                subscription: batch.subscription,
                delivery: batch.deliveries[position].id,
            })
            .collect();
        assert_eq!(rig.store.begin(&begun).await.unwrap(), []);
    }
}

async fn a_message_whose_nodes_all_end_goes_to_the_dead_letters(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(1).await;
    // The first that it ended had no word that it was this one.
    lose(&rig, 1, &[&[], &[0], &[0], &[0]]).await;
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    rig.wait_until_empty().await;
    let dead = &rig.dead_letters().await[0];
    assert_eq!((dead.reason.as_str(), dead.attempts), ("lease_expired", 3));
    assert!(dead.error.starts_with("3 of 3 attempts are used up: 4 leases ended"), "{}", dead.error);
    assert_eq!(running.runs.load(Ordering::SeqCst), 0);
    running.engine.drain().await;
}

async fn what_ended_nodes_only_had_in_hand_is_run(on: On) {
    let retry = RetryPolicy { max_attempts: 1, ..subscription("s").retry };
    let rig = Rig::new(on, &[Subscription { retry, ..subscription("s") }]).await;
    rig.enqueue(20).await;
    // Only the first of them was ever begun; with one attempt allowed it is not begun again.
    lose(&rig, 20, &[&[], &[0], &[], &[]]).await;
    let told = Arc::new(AtomicUsize::new(0));
    let standing = {
        let told = told.clone();
        play(move |call| {
            told.fetch_add(usize::from(call.attempt.number == 1 && call.attempt.maybe_duplicate), Ordering::SeqCst);
            async { Ok(Effects::default()) }
        })
    };
    let running = rig.start(&standing);
    rig.wait_until_empty().await;
    assert_eq!((running.runs.load(Ordering::SeqCst), told.load(Ordering::SeqCst)), (19, 19));
    assert_eq!(rig.dead_letters().await.len(), 1);
    running.engine.drain().await;
}

async fn only_what_lost_its_lease_is_noted_before_it_runs(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(10).await;
    lose(&rig, 10, &[&[]]).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    // One that cannot be noted does not run; it is tried again.
    faulty.script(Operation::Begin, Fault::Before);
    faulty.script(Operation::Begin, Fault::After);
    faulty.script(Operation::Begin, Fault::Broken);
    let store: Arc<dyn Store> = faulty.clone();
    let running = rig.start_on(&store, &count_up("n"), options());
    rig.wait_until_empty().await;
    let noted = faulty.calls(Operation::Begin);
    assert!(noted > 3, "{noted}");
    rig.enqueue(50).await;
    rig.wait_until_empty().await;
    assert_eq!(faulty.calls(Operation::Begin), noted, "a message that was never lost pays nothing");
    assert_eq!(rig.state("n").await.as_deref(), Some("60"));
    let stats = running.drained().await;
    assert!((3..=30).contains(&stats.released) && stats.lease_lost == 0, "{stats:?}");
    assert!(rig.dead_letters().await.is_empty());
}

#[tokio::test]
async fn what_is_lost_before_it_is_noted_does_not_run() {
    let rig = Rig::new(On::Sqlite, &[Subscription { lease: Duration::from_secs(3600), ..subscription("s") }]).await;
    rig.enqueue(1).await;
    lose(&rig, 1, &[&[]]).await;
    let faulty = Arc::new(FaultyStore::new(rig.store.clone()));
    faulty.script(Operation::Begin, Fault::Delay(Duration::from_secs(5)));
    let store: Arc<dyn Store> = faulty.clone();
    let running = rig.start_on(&store, &count_up("n"), options());
    assert!(comes(async || faulty.calls(Operation::Begin) == 1).await);
    let mut sql = rig.sqlite().await;
    let taken = "UPDATE laneway_delivery SET lease_token = lease_token - 1";
    assert_eq!(sqlx::query(taken).execute(&mut sql).await.unwrap().rows_affected(), 1);
    running.wait_for("the loss to be seen", |stats| stats.lease_lost == 1).await;
    assert_eq!(running.runs.load(Ordering::SeqCst), 0);
    assert_eq!(running.drained().await.lease_lost, 1);
}

on_both!(
    leases_of_running_and_waiting_messages_are_renewed,
    a_node_that_vanishes_is_recovered_when_its_lease_ends,
    a_message_whose_nodes_all_end_goes_to_the_dead_letters,
    what_ended_nodes_only_had_in_hand_is_run,
    only_what_lost_its_lease_is_noted_before_it_runs,
);
