//! Leases as the engine keeps and loses them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use laneway_core::{ClaimRequest, Effects, Lane, Store, Subscription};
use laneway_testing::faults::{FaultyStore, Operation};

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
            let attempt = call.attempt.number as usize - 1;
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

async fn a_message_whose_nodes_all_end_goes_to_the_dead_letters(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(1).await;
    for attempt in 1..=3 {
        let request = request(&rig, 1, Duration::from_millis(20));
        let claimed = comes(async || rig.store.claim(request).await.unwrap().is_some()).await;
        assert!(claimed, "attempt {attempt}");
    }
    let running = rig.start(&play(|_| async { Ok(Effects::default()) }));
    rig.wait_until_empty().await;
    assert_eq!(rig.dead_letters().await[0].reason, "lease_expired");
    assert_eq!(running.runs.load(Ordering::SeqCst), 0);
    running.engine.drain().await;
}

on_both!(
    leases_of_running_and_waiting_messages_are_renewed,
    a_node_that_vanishes_is_recovered_when_its_lease_ends,
    a_message_whose_nodes_all_end_goes_to_the_dead_letters,
);
