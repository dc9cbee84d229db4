//! Random histories against a model: enqueue, claim, settle, lost answers, expiry, crashes, in any order. At the
//! end each message is settled exactly once for each subscription, no effect happened twice, and none is missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laneway_core::{
    Batch, ClaimRequest, Delivery, ErrorText, Held, Lane, LeaseToken, MessageId, NewMessage, Priority, Reason,
    SettleReport, Settlement, StateEntry, Store, SubscriptionId, Topic, Verdict,
};
use laneway_testing::{Random, seed};

use crate::fixture::*;
use crate::sql::Sql;

/// How long one run goes on before it is drained.
const RUN: Duration = Duration::from_secs(3);

/// The same, until it has had all of `WANTED`.
const RUN_MAX: Duration = Duration::from_secs(60);

/// Without these, a run shows too little.
const WANTED: [&str; 7] = ["claimed", "begun", "settled", "lost", "conflicts", "settled again", "time passed"];

/// Subscriptions by name and pattern; messages have the topics `t.a` and `t.b`.
const SUBSCRIPTIONS: [(&str, &str); 3] = [("all", "t.>"), ("a", "t.a"), ("b", "*.b")];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Completed,
    Dead,
}

/// What one subscription is owed for one message.
#[derive(Debug, Default)]
struct Owed {
    /// The last lease; `None` since it was handed back.
    token: Option<LeaseToken>,
    /// Whether the lease may have expired.
    expired: bool,
    /// Attempts counted, and the one of the last lease.
    attempts: u32,
    /// Leases that ended with it unsettled since an answer was last counted.
    lost: u32,
    /// Whether it has begun under the last lease.
    begun: bool,
    end: Option<End>,
}

type Key = (SubscriptionId, String);

#[derive(Default)]
struct Model {
    owed: HashMap<Key, Owed>,
    /// Number that the chain of state has reached.
    chain: u64,
}

struct Node {
    store: Arc<dyn Store>,
    hand: Vec<(SubscriptionId, LeaseToken, Delivery)>,
    /// The chain as this node last saw it; may be old.
    seen: Option<Option<StateEntry>>,
}

struct Run<'f> {
    fixture: &'f Fixture,
    sql: Sql,
    random: Random,
    model: Model,
    nodes: Vec<Node>,
    subscriptions: Vec<SubscriptionId>,
    written: Vec<String>,
    /// Statistics, so that a run which tests nothing is seen.
    tally: HashMap<&'static str, u64>,
}

impl Run<'_> {
    fn tally(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// What the run should have had, and has not.
    fn missing(&self) -> Option<&'static str> {
        WANTED.into_iter().find(|what| !self.tally.contains_key(what))
    }

    fn matching(&self, topic: &str) -> Vec<SubscriptionId> {
        let topic = Topic::parse(topic).unwrap();
        let matches = |pattern: &str| laneway_core::TopicPattern::parse(pattern).unwrap().matches(&topic);
        self.subscriptions
            .iter()
            .zip(SUBSCRIPTIONS)
            .filter(|(_, (_, pattern))| matches(pattern))
            .map(|(id, _)| *id)
            .collect()
    }

    fn random_message(&mut self) -> NewMessage {
        let id = format!("m{}", self.written.len());
        NewMessage {
            topic: Topic::parse(if self.random.chance(0.5) { "t.a" } else { "t.b" }).unwrap(),
            priority: Priority(*self.random.pick(&[-100, -1, 0, 0, 0, 50, 100])),
            delay: self.random.chance(0.1).then_some(HOUR),
            ..message(&id)
        }
    }

    fn was_written(&mut self, message: &NewMessage) {
        self.written.push(message.id.to_string());
        for subscription in self.matching(message.topic.as_str()) {
            self.model.owed.insert((subscription, message.id.to_string()), Owed::default());
        }
    }

    async fn enqueue(&mut self) {
        let mut messages = Vec::new();
        for _ in 0..=self.random.below(6) {
            let message = self.random_message();
            self.was_written(&message);
            messages.push(message);
        }
        let old = self.written.len() - messages.len();
        let again = (old > 0 && self.random.chance(0.3)).then(|| message(&self.written[self.random.below(old)]));
        messages.extend(again.clone());
        let node = self.random.below(self.nodes.len());
        let answers = self.nodes[node].store.enqueue(&messages).await.unwrap();
        for (position, answer) in answers.iter().enumerate() {
            assert_eq!(answer.duplicate, again.is_some() && position == answers.len() - 1, "{answer:?}");
        }
        self.tally("enqueued");
    }

    async fn claim(&mut self) {
        let subscription = *self.random.pick(&self.subscriptions);
        let lane = *self.random.pick(&Lane::ALL);
        let limit = 1 + self.random.below(8) as u32;
        let node = self.random.below(self.nodes.len());
        let request = ClaimRequest {
            subscription,
            lane,
            limit,
            lease: HOUR,
            check_markers: true,
            ordered: false,
            in_work_max: None,
        };
        let Some(batch) = self.nodes[node].store.claim(request).await.unwrap() else { return };
        self.take(&batch);
        self.nodes[node]
            .hand
            .extend(batch.deliveries.into_iter().map(|delivery| (subscription, batch.token, delivery)));
        self.tally("claimed");
    }

    /// Holds a batch against the model.
    fn take(&mut self, batch: &Batch) {
        let order: Vec<Priority> = batch.deliveries.iter().map(|delivery| delivery.message.priority).collect();
        assert!(order.is_sorted_by(|a, b| a >= b), "{order:?}");
        for delivery in &batch.deliveries {
            let key = (batch.subscription, delivery.message.id.to_string());
            let owed = self.model.owed.get_mut(&key).unwrap_or_else(|| panic!("{key:?} is not owed"));
            assert_eq!(owed.end, None, "{key:?} was settled already");
            assert!(owed.token.is_none() || owed.expired, "{key:?} is leased to another");
            if owed.token.is_some() {
                // Its lease has ended; the attempt counts if it had begun.
                owed.lost += 1;
                owed.attempts -= u32::from(!owed.begun);
            }
            assert_eq!((delivery.attempt, delivery.lost), (owed.attempts + 1, owed.lost), "{key:?}");
            assert!(!delivery.processed, "{key:?}");
            (owed.token, owed.expired, owed.attempts) = (Some(batch.token), false, delivery.attempt);
            owed.begun = false;
        }
    }

    async fn settle(&mut self) {
        let node = self.random.below(self.nodes.len());
        let mut hand = std::mem::take(&mut self.nodes[node].hand);
        if hand.is_empty() {
            return;
        }
        self.random.shuffle(&mut hand);
        let group = hand.split_off(hand.len() - 1 - self.random.below(hand.len().min(10)));
        self.nodes[node].hand = hand;
        self.settle_group(node, group).await;
    }

    async fn settle_group(&mut self, node: usize, held: Vec<(SubscriptionId, LeaseToken, Delivery)>) {
        let store = Arc::clone(&self.nodes[node].store);
        let mut chain = match self.nodes[node].seen.take() {
            Some(seen) if self.random.chance(0.7) => seen,
            _ => store.state(&namespace(), "chain").await.unwrap(),
        };
        let mut links = 0;
        let mut group = Vec::new();
        for (subscription, token, delivery) in &held {
            let mut settlement = Settlement {
                subscription: *subscription,
                delivery: delivery.id,
                token: *token,
                message: delivery.message.id.clone(),
                key: None,
                verdict: self.random_verdict(),
                reads: vec![],
                writes: vec![],
                adds: vec![],
                emits: vec![],
                metadata: None,
            };
            if matches!(settlement.verdict, Verdict::Complete { .. }) {
                settlement.adds.push(add(&format!("{subscription}/{}", delivery.message.id), 1));
                if self.random.chance(0.3) {
                    let number = chain
                        .as_ref()
                        .map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse::<u64>().unwrap());
                    let version = self.random.next() as i64;
                    settlement.reads.push(read("chain", chain.as_ref().map(|entry| entry.version)));
                    let link = write("chain", Some(&(number + 1).to_string()), version);
                    chain = Some(StateEntry { value: link.value.clone().unwrap(), version: link.version });
                    settlement.writes.push(link);
                    links += 1;
                }
                if self.random.chance(0.1) {
                    let mut child = self.random_message();
                    // By its cause: emitted again after a conflict it is the same message.
                    child.id =
                        MessageId::parse(&format!("child-of-{}-{subscription}", delivery.message.id)).unwrap();
                    if child.id.as_str().len() < 60 {
                        settlement.emits.push(child);
                    }
                }
            }
            group.push(settlement);
        }
        let report = store.settle(&group).await.unwrap();
        if self.random.chance(0.2) {
            // The answer was lost, and the node tries again: nothing of what happened may happen twice.
            self.tally("settled again");
            let again = store.settle(&group).await.unwrap();
            match (&report, again) {
                (SettleReport::Committed { .. }, SettleReport::Committed { lost, duplicates }) => {
                    assert_eq!(lost.len() + duplicates.len(), group.len(), "settled twice");
                }
                (SettleReport::Committed { .. }, SettleReport::Conflict(_)) => {}
                (SettleReport::Conflict(first), SettleReport::Conflict(second)) => assert_eq!(*first, second),
                (SettleReport::Conflict(_), committed) => panic!("a conflict went away: {committed:?}"),
            }
        }
        match report {
            SettleReport::Committed { lost, duplicates } => {
                assert_eq!(duplicates, Vec::<usize>::new(), "only a replay makes duplicates");
                for (position, settlement) in group.iter().enumerate() {
                    self.happened(settlement, lost.contains(&position));
                }
                self.model.chain += links;
                self.nodes[node].seen = Some(chain);
                self.tally("settled");
            }
            SettleReport::Conflict(conflict) => {
                assert!(conflict.duplicates.is_empty(), "{conflict:?}");
                assert!(!conflict.lost.is_empty() || !conflict.stale.is_empty());
                for &position in &conflict.lost {
                    self.happened(&group[position], true);
                }
                // What holds still is in hand, to be run again.
                let kept = held.into_iter().enumerate().filter(|(position, _)| !conflict.lost.contains(position));
                self.nodes[node].hand.extend(kept.map(|(_, held)| held));
                self.tally("conflicts");
            }
        }
    }

    fn random_verdict(&mut self) -> Verdict {
        match self.random.below(20) {
            0..12 => Verdict::Complete { mark: true },
            12..15 => Verdict::Retry {
                delay: if self.random.chance(0.5) { HOUR } else { Duration::ZERO },
                counted: self.random.chance(0.5),
                error: None,
            },
            15..17 => Verdict::RELEASE,
            _ => Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("random"), plugin: None },
        }
    }

    /// Holds one answer against the model.
    fn happened(&mut self, settlement: &Settlement, lost: bool) {
        let key = (settlement.subscription, settlement.message.to_string());
        let owed = self.model.owed.get_mut(&key).unwrap();
        let holds = owed.end.is_none() && owed.token == Some(settlement.token);
        if lost {
            assert!(!holds || owed.expired, "{key:?} was refused under its own lease");
            self.tally("lost");
            return;
        }
        assert!(holds, "{key:?} was settled by a stale lease");
        owed.token = None;
        match &settlement.verdict {
            Verdict::Complete { .. } => owed.end = Some(End::Completed),
            Verdict::DeadLetter { .. } => owed.end = Some(End::Dead),
            Verdict::Retry { counted: true, .. } => owed.lost = 0,
            Verdict::Retry { counted: false, .. } => owed.attempts -= 1,
        }
        for child in settlement.emits.clone() {
            if !self.written.contains(&child.id.to_string()) {
                self.was_written(&child);
            }
        }
    }

    /// Some of what a node has in hand begins.
    async fn begin(&mut self) {
        let node = self.random.below(self.nodes.len());
        let mut hand = std::mem::take(&mut self.nodes[node].hand);
        self.random.shuffle(&mut hand);
        let some = &hand[..hand.len().min(5)];
        let asked: Vec<Held> = some
            .iter()
            .map(|(subscription, token, delivery)| Held {
                token: *token,
                subscription: *subscription,
                delivery: delivery.id,
            })
            .collect();
        let lost = self.nodes[node].store.begin(&asked).await.unwrap();
        for (held, (subscription, token, delivery)) in asked.iter().zip(some) {
            let key = (*subscription, delivery.message.id.to_string());
            let owed = self.model.owed.get_mut(&key).unwrap();
            let holds = owed.end.is_none() && owed.token == Some(*token);
            match lost.contains(held) {
                true => assert!(!holds || owed.expired, "{key:?} did not begin under its own lease"),
                false => {
                    assert!(holds, "{key:?} began under a stale lease");
                    owed.begun = true;
                }
            }
        }
        self.nodes[node].hand = hand;
        self.tally("begun");
    }

    /// Half of the leases and delays end.
    async fn time_passes(&mut self) {
        let remainder = self.random.below(2);
        self.sql.make_due(&format!("message_seq % 2 = {remainder}")).await;
        // Which of them had ended by then is the database's to know.
        self.model.owed.values_mut().for_each(|owed| owed.expired = true);
        self.tally("time passed");
    }

    async fn crash(&mut self) {
        let node = self.random.below(self.nodes.len());
        let store = self.fixture.another_node().await;
        self.nodes[node] = Node { store, hand: Vec::new(), seen: None };
        self.tally("crashed");
    }

    /// All that is left is claimed and completed.
    async fn drain(&mut self) {
        for node in 0..self.nodes.len() {
            self.nodes[node].hand.clear();
        }
        self.sql.make_due("1 = 1").await;
        self.model.owed.values_mut().for_each(|owed| owed.expired = true);
        for subscription in self.subscriptions.clone() {
            for lane in Lane::ALL {
                let request = ClaimRequest {
                    subscription,
                    lane,
                    limit: 50,
                    lease: HOUR,
                    check_markers: true,
                    ordered: false,
                    in_work_max: None,
                };
                while let Some(batch) = self.fixture.store.claim(request).await.unwrap() {
                    self.take(&batch);
                    let group: Vec<Settlement> = (0..batch.deliveries.len())
                        .map(|position| {
                            let settlement = complete(&batch, position);
                            Settlement {
                                adds: vec![add(&format!("{subscription}/{}", settlement.message), 1)],
                                ..settlement
                            }
                        })
                        .collect();
                    self.fixture.settle_all(&group).await;
                    group.iter().for_each(|settlement| self.happened(settlement, false));
                }
            }
        }
    }

    async fn check(&mut self) {
        assert_eq!(self.sql.count("owed").await, 0, "something is left");
        assert_eq!(self.sql.count("message").await, self.written.len() as i64);
        let count = |end| self.model.owed.values().filter(|owed| owed.end == Some(end)).count() as i64;
        let (completed, dead) = (count(End::Completed), count(End::Dead));
        assert_eq!(completed + dead, self.model.owed.len() as i64, "something was lost");
        assert_eq!((self.sql.count("marker").await, self.sql.count("dead_letter").await), (completed, dead));
        assert_eq!(
            self.sql.number("select count(*) from @counter where value <> 1").await,
            0,
            "an effect happened twice"
        );
        let mut effects = self.sql.texts("select key from @counter").await;
        let mut wanted: Vec<String> = self
            .model
            .owed
            .iter()
            .filter(|(_, owed)| owed.end == Some(End::Completed))
            .map(|((subscription, id), _)| format!("{subscription}/{id}"))
            .collect();
        effects.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(effects, wanted);
        let chain = self.fixture.state("chain").await.map_or(0, |text| text.parse().unwrap());
        assert_eq!(chain, self.model.chain, "updates of the hot key");
    }
}

conformance! {
    async fn any_history_settles_each_message_once(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&SUBSCRIPTIONS).await;
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(Node { store: fixture.another_node().await, hand: Vec::new(), seen: None });
        }
        let mut run = Run {
            fixture,
            sql: fixture.sql().await,
            random: Random::new(seed()),
            model: Model::default(),
            nodes,
            subscriptions,
            written: Vec::new(),
            tally: HashMap::new(),
        };
        let started = Instant::now();
        while started.elapsed() < RUN || (run.missing().is_some() && started.elapsed() < RUN_MAX) {
            match run.random.below(100) {
                0..20 => run.enqueue().await,
                20..55 => run.claim().await,
                55..60 => run.begin().await,
                60..95 => run.settle().await,
                95..99 => run.time_passes().await,
                _ => run.crash().await,
            }
        }
        run.drain().await;
        run.check().await;
        eprintln!("{} messages, {:?}", run.written.len(), run.tally);
        assert_eq!(run.missing(), None, "the run shows too little");
    }
}
