//! Deliveries in hand that wait for a slot: primary before backfill, each time a slot asks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laneway_core::{Delivery, DeliveryId, ErrorText, Lane, LeaseToken, Message};
use tokio::sync::Notify;

/// A delivery in hand.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub id: DeliveryId,
    pub token: LeaseToken,
    pub lane: Lane,
    pub message: Arc<Message>,
    pub attempt: u32,
    /// Leases that were lost on it.
    pub lost: u32,
    /// The database knows that it begins; asked only of what leases were lost on.
    pub noted: bool,
    pub processed: bool,
    /// Why it cannot be run at all, if so.
    pub unreadable: Option<ErrorText>,
    /// It was run before, in this attempt: state changed under it.
    pub began: bool,
    claimed_at: Instant,
    since_first_attempt: Duration,
}

impl Item {
    pub fn new(delivery: Delivery, token: LeaseToken, claimed_at: Instant) -> Self {
        Self {
            id: delivery.id,
            token,
            lane: delivery.lane,
            message: Arc::new(delivery.message),
            attempt: delivery.attempt,
            lost: delivery.lost,
            noted: false,
            processed: delivery.processed,
            unreadable: delivery.unreadable,
            began: false,
            claimed_at,
            since_first_attempt: delivery.since_first_attempt,
        }
    }

    /// Whether it was certainly never run before, but in this attempt.
    pub fn is_first_attempt(&self) -> bool {
        self.attempt == 1 && self.lost == 0
    }

    /// Time since the start of the first attempt.
    pub fn elapsed(&self) -> Duration {
        self.since_first_attempt + self.claimed_at.elapsed()
    }
}

/// Payload bytes that a batch holds at most, if it is not one message alone: a part of what a guest's memory takes.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// From this attempt on a delivery goes alone, as does one that may have ended its node: what it does to its batch is not
/// to be the others' fault again.
const ALONE_FROM_ATTEMPT: u32 = 3;

/// How many deliveries from the front make a batch of at most `max`.
fn batch_len(queue: &VecDeque<Item>, max: usize) -> usize {
    let mut bytes = 0;
    let fitting = queue.iter().take(max).take_while(|item| {
        bytes += item.message.payload.len();
        bytes <= BATCH_BYTES_MAX && item.attempt < ALONE_FROM_ATTEMPT && item.lost == 0
    });
    fitting.count().max(queue.len().min(max).min(1))
}

#[derive(Default)]
struct Queues {
    primary: VecDeque<Item>,
    backfill: VecDeque<Item>,
    /// Backfill messages that are owed their turn by the lane's share.
    owed: f64,
    /// Slots waiting in [`Lanes::next`].
    idle: usize,
    closed: bool,
}

impl Queues {
    fn lane(&mut self, lane: Lane) -> &mut VecDeque<Item> {
        match lane {
            Lane::Primary => &mut self.primary,
            Lane::Backfill => &mut self.backfill,
        }
    }

    fn len(&self) -> usize {
        self.primary.len() + self.backfill.len()
    }
}

/// Backfill messages that can be owed at most: after a time without any, the lane does not come in a rush.
const OWED_MAX: f64 = 1.0;

/// The buffer between a subscription's relay and its slots.
#[derive(Default)]
pub(crate) struct Lanes {
    /// Part of the messages that backfill gets while primary ones wait.
    backfill_min_share: f64,
    queues: Mutex<Queues>,
    filled: Notify,
    /// Told when there is less than before; the relay waits on it for room.
    pub drained: Notify,
}

impl Lanes {
    /// Lanes of which backfill gets at least this part, from 0 to below 1.
    pub fn new(backfill_min_share: f64) -> Self {
        Self { backfill_min_share, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Each critical section leaves the queues whole, so a panic elsewhere cannot have broken them.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deliveries waiting in a lane.
    pub fn waiting(&self, lane: Lane) -> usize {
        self.lock().lane(lane).len()
    }

    /// Adds deliveries at the back. After [`Lanes::close`] they come back to the caller.
    pub fn push(&self, lane: Lane, items: Vec<Item>) -> Vec<Item> {
        let mut queues = self.lock();
        if queues.closed {
            return items;
        }
        let wake = items.len().min(queues.idle);
        queues.lane(lane).extend(items);
        drop(queues);
        for _ in 0..wake {
            self.filled.notify_one();
        }
        Vec::new()
    }

    /// Puts deliveries back at the front, in their order: they are to run again. After [`Lanes::close`] they come back
    /// to the caller.
    pub fn push_front(&self, items: Vec<Item>) -> Vec<Item> {
        let mut queues = self.lock();
        if queues.closed {
            return items;
        }
        let wake = items.len().min(queues.idle);
        for item in items.into_iter().rev() {
            queues.lane(item.lane).push_front(item);
        }
        drop(queues);
        for _ in 0..wake {
            self.filled.notify_one();
        }
        Vec::new()
    }

    /// Takes all that waits, such as to hand it back.
    pub fn take_all(&self) -> Vec<Item> {
        let mut queues = self.lock();
        let mut items: Vec<Item> = queues.primary.drain(..).collect();
        items.extend(queues.backfill.drain(..));
        items
    }

    /// Ends the buffer: slots end, and what waits is returned.
    pub fn close(&self) -> Vec<Item> {
        self.lock().closed = true;
        self.filled.notify_waiters();
        self.drained.notify_one();
        self.take_all()
    }

    /// Waits for work and moves up to `max` deliveries of one lane into `into`: fewer if they are large, and one alone
    /// that has failed before, or may have ended its node. `false` when the buffer is closed.
    pub async fn next(&self, max: usize, low_water: usize, into: &mut Vec<Item>) -> bool {
        loop {
            // Registered before the look, so that a push between look and wait is not missed.
            let filled = self.filled.notified();
            tokio::pin!(filled);
            filled.as_mut().enable();
            {
                let mut queues = self.lock();
                if queues.closed {
                    return false;
                }
                let before = queues.len();
                let contended = !queues.primary.is_empty() && !queues.backfill.is_empty();
                let lane = match contended {
                    true if queues.owed >= 1.0 => Lane::Backfill,
                    true => Lane::Primary,
                    false if queues.primary.is_empty() => Lane::Backfill,
                    false => Lane::Primary,
                };
                let queue = queues.lane(lane);
                let take = batch_len(queue, max);
                into.extend(queue.drain(..take));
                if contended {
                    let share = self.backfill_min_share;
                    queues.owed += match lane {
                        Lane::Primary => take as f64 * share / (1.0 - share),
                        Lane::Backfill => -(take as f64),
                    };
                    queues.owed = queues.owed.min(OWED_MAX.max(max as f64));
                }
                if take > 0 {
                    let after = queues.len();
                    drop(queues);
                    // Once on the way down, and again at the end: the relay need not hear of each message.
                    if (before > low_water && after <= low_water) || after == 0 {
                        self.drained.notify_one();
                    }
                    return true;
                }
                queues.idle += 1;
            }
            filled.await;
            self.lock().idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use laneway_core::{MessageId, Priority, Topic};

    use super::*;

    fn items(lane: Lane, count: i64) -> Vec<Item> {
        let message = Message {
            id: MessageId::parse("m").unwrap(),
            topic: Topic::parse("t").unwrap(),
            key: None,
            priority: Priority::NORMAL,
            payload: "{}".into(),
            content_type: String::new(),
            headers: vec![],
            tenant: None,
        };
        let delivery = |id| Delivery {
            id: DeliveryId(id),
            lane,
            message: message.clone(),
            attempt: 1,
            lost: 0,
            since_first_attempt: Duration::ZERO,
            processed: false,
            unreadable: None,
        };
        (0..count).map(|id| Item::new(delivery(id), LeaseToken(1), Instant::now())).collect()
    }

    /// Of a hundred messages taken while both lanes have enough, the places of those of the backfill lane.
    async fn backfill_of_a_hundred(share: f64) -> Vec<usize> {
        let lanes = Lanes::new(share);
        lanes.push(Lane::Primary, items(Lane::Primary, 200));
        lanes.push(Lane::Backfill, items(Lane::Backfill, 200));
        let mut places = Vec::new();
        for place in 0..100 {
            let mut taken = Vec::new();
            assert!(lanes.next(1, 0, &mut taken).await);
            if taken[0].lane == Lane::Backfill {
                places.push(place);
            }
        }
        places
    }

    #[tokio::test]
    async fn backfill_gets_its_share_evenly_while_primary_messages_wait() {
        assert_eq!(backfill_of_a_hundred(0.0).await, [0; 0]);
        let tenth = backfill_of_a_hundred(0.1).await;
        assert!((9..=10).contains(&tenth.len()), "{tenth:?}");
        assert!(tenth.windows(2).all(|pair| (9..=11).contains(&(pair[1] - pair[0]))), "{tenth:?}");
        assert!((49..=51).contains(&backfill_of_a_hundred(0.5).await.len()));
    }

    #[tokio::test]
    async fn what_may_have_ended_its_node_goes_alone() {
        let lanes = Lanes::new(0.0);
        let mut five = items(Lane::Primary, 5);
        (five[1].lost, five[2].lost) = (1, 2);
        lanes.push(Lane::Primary, five);
        let mut batches = Vec::new();
        while lanes.waiting(Lane::Primary) > 0 {
            let mut batch = Vec::new();
            lanes.next(10, 0, &mut batch).await;
            batches.push(batch.iter().map(|item| item.id.0).collect::<Vec<_>>());
        }
        assert_eq!(batches, [vec![0], vec![1], vec![2], vec![3, 4]]);
    }

    #[tokio::test]
    async fn without_primary_messages_backfill_owes_nothing() {
        let lanes = Lanes::new(0.5);
        lanes.push(Lane::Backfill, items(Lane::Backfill, 50));
        let mut taken = Vec::new();
        for _ in 0..40 {
            lanes.next(1, 0, &mut taken).await;
        }
        lanes.push(Lane::Primary, items(Lane::Primary, 10));
        taken.clear();
        lanes.next(1, 0, &mut taken).await;
        assert_eq!(taken[0].lane, Lane::Primary, "what came alone is not held against the others");
    }
}
