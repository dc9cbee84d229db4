//! Deliveries in hand that wait for a slot: primary before backfill, each time a slot asks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use laneway_core::{Delivery, DeliveryId, Lane, LeaseToken, Message};
use tokio::sync::Notify;

/// A delivery in hand.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub id: DeliveryId,
    pub token: LeaseToken,
    pub lane: Lane,
    pub message: Arc<Message>,
    pub attempt: u32,
    pub processed: bool,
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
            processed: delivery.processed,
            began: false,
            claimed_at,
            since_first_attempt: delivery.since_first_attempt,
        }
    }

    /// Time since the start of the first attempt.
    pub fn elapsed(&self) -> Duration {
        self.since_first_attempt + self.claimed_at.elapsed()
    }
}

/// Payload bytes that a batch holds at most, if it is not one message alone: a part of what a guest's memory takes.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// From this attempt on a delivery goes alone: what it does to its batch is not to be the others' fault again.
const ALONE_FROM_ATTEMPT: u32 = 3;

/// How many deliveries from the front make a batch of at most `max`.
fn batch_len(queue: &VecDeque<Item>, max: usize) -> usize {
    let mut bytes = 0;
    let fitting = queue.iter().take(max).take_while(|item| {
        bytes += item.message.payload.len();
        bytes <= BATCH_BYTES_MAX && item.attempt < ALONE_FROM_ATTEMPT
    });
    fitting.count().max(queue.len().min(max).min(1))
}

#[derive(Default)]
struct Queues {
    primary: VecDeque<Item>,
    backfill: VecDeque<Item>,
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

/// The buffer between a subscription's relay and its slots.
#[derive(Default)]
pub(crate) struct Lanes {
    queues: Mutex<Queues>,
    filled: Notify,
    /// Told when there is less than before; the relay waits on it for room.
    pub drained: Notify,
}

impl Lanes {
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
    /// that has failed before. `false` when the buffer is closed.
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
                let lane = if queues.primary.is_empty() { Lane::Backfill } else { Lane::Primary };
                let queue = queues.lane(lane);
                let take = batch_len(queue, max);
                into.extend(queue.drain(..take));
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
