//! Many workers on two nodes with short leases, calls that fail and answers that get lost. Nothing here is scripted
//! but the odds; what must hold is that each message has its effect exactly once for each subscription.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laneway_core::{ClaimRequest, Lane, NewMessage, Priority, Settlement, Store, SubscriptionId, Verdict};
use laneway_testing::faults::{FaultyStore, Odds, Operation};
use laneway_testing::{Random, seed};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::fixture::*;

const MESSAGES: usize = 300;
const LEASE: Duration = Duration::from_millis(60);

/// Claims, dawdles and settles until told to stop.
async fn work(store: Arc<FaultyStore>, subscription: SubscriptionId, mut random: Random, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let lane = *random.pick(&Lane::ALL);
        let limit = 1 + random.below(12) as u32;
        let request = ClaimRequest {
            subscription,
            lane,
            limit,
            lease: LEASE,
            check_markers: random.chance(0.5),
            ordered: false,
            in_work_max: None,
        };
        // A claim whose answer is lost leaves leases that nobody knows of: they expire.
        let Ok(Some(batch)) = store.claim(request).await else {
            sleep(Duration::from_millis(2)).await;
            continue;
        };
        if random.chance(0.2) {
            // Slower than the lease, or dead.
            sleep(LEASE + Duration::from_millis(random.below(30) as u64)).await;
            if random.chance(0.5) {
                continue;
            }
        }
        let group: Vec<Settlement> = (0..batch.deliveries.len())
            .map(|position| match random.below(10) {
                0 => settlement(&batch, position, Verdict::RELEASE),
                1 => settlement(
                    &batch,
                    position,
                    Verdict::Retry {
                        delay: Duration::from_millis(random.below(20) as u64),
                        counted: true,
                        error: None,
                    },
                ),
                _ => {
                    let settlement = complete(&batch, position);
                    let effect = format!("{subscription}/{}", settlement.message);
                    Settlement { adds: vec![add(&effect, 1), add("all", 1)], ..settlement }
                }
            })
            .collect();
        settle_surely(&*store, &group).await;
    }
}

conformance! {
    async fn faults_and_races_leave_each_effect_exactly_once(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.>")]).await;
        let mut random = Random::new(seed());
        let odds = Odds { before: 0.05, after: 0.1, delay: 0.1, delay_max: LEASE };
        let mut nodes = Vec::new();
        for store in [Arc::clone(&fixture.store), fixture.another_node().await] {
            let faulty =
                FaultyStore::random(store, random.next(), odds).only(&[Operation::Claim, Operation::Settle]);
            nodes.push(Arc::new(faulty));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = JoinSet::new();
        for worker in 0..8 {
            let subscription = subscriptions[worker % 2];
            workers.spawn(work(Arc::clone(&nodes[worker / 4]), subscription, random.fork(), Arc::clone(&stop)));
        }
        for part in 0..10 {
            let messages: Vec<NewMessage> = (0..MESSAGES / 10)
                .map(|number| NewMessage {
                    priority: Priority(*random.pick(&[-100, 0, 100])),
                    ..message(&format!("m{}", part * MESSAGES / 10 + number))
                })
                .collect();
            fixture.enqueue(&messages).await;
            sleep(Duration::from_millis(30)).await;
        }
        let drained = fixture.drained_within(Duration::from_secs(180)).await;
        stop.store(true, Ordering::SeqCst);
        workers.join_all().await;
        assert!(drained, "some deliveries are never settled");
        assert!(nodes.iter().all(|node| node.injected() > 0), "no fault was injected");
        assert_eq!(fixture.counter("all").await, 2 * MESSAGES as i64);
        let mut sql = fixture.sql().await;
        assert_eq!(
            sql.number("select count(*) from @counter where key <> 'all' and value = 1").await,
            2 * MESSAGES as i64
        );
        assert_eq!(sql.count("marker").await, 2 * MESSAGES as i64);
    }
}
