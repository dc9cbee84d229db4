//! Commits outcomes in groups: while one commit is under way, the next group forms.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use laneway_core::{
    ErrorText, Name, PluginDigest, Reason, SettleReport, Settlement, StateConflict, Store, StoreError, Verdict,
};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, error, info};

use crate::active::Active;
use crate::begin::Begins;
use crate::lanes::Item;
use crate::leases::Leases;
use crate::options::EngineOptions;
use crate::outage::Outage;
use crate::slot::settlement;
use crate::stats::Stats;
use crate::verdict::rule;
use crate::versions::Choice;

/// First and longest wait before a commit is tried again on a database that is out of reach.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Wait before an outcome that the database does not take, while it takes others, is tried again.
const PUT_BACK: Duration = Duration::from_secs(2);
/// Most bytes that one commit writes, unless a single outcome writes more.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes waiting to be written, over which nothing is claimed.
const UNSETTLED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An ended attempt that waits for its commit.
pub(crate) struct Outcome {
    work: Arc<Active>,
    item: Item,
    settlement: Settlement,
    /// The overlay's era that it read and wrote state in, if it did.
    era: Option<u64>,
    /// What the attempt ran on, if there was one.
    ran_on: Option<Choice>,
    /// Whether the database did not take it before.
    was_put_back: bool,
}

impl Outcome {
    pub fn new(work: &Arc<Active>, item: Item, settlement: Settlement, era: Option<u64>) -> Self {
        Self { work: work.clone(), item, settlement, era, ran_on: None, was_put_back: false }
    }

    /// That of an attempt.
    pub fn of_attempt(
        work: &Arc<Active>,
        item: Item,
        settlement: Settlement,
        era: Option<u64>,
        choice: &Choice,
    ) -> Self {
        Self { ran_on: Some(choice.clone()), ..Self::new(work, item, settlement, era) }
    }

    /// Bytes that it writes, about.
    fn bytes(&self) -> usize {
        let writes = self.settlement.writes.iter().map(|write| write.value.as_ref().map_or(0, |value| value.len()));
        let emits = self.settlement.emits.iter().map(|message| message.payload.len());
        writes.chain(emits).sum()
    }

    fn is_stale(&self) -> bool {
        self.era.is_some_and(|era| self.work.overlay.era() != era)
    }
}

/// The queue of outcomes, and the task that commits them.
pub(crate) struct Settler {
    store: Arc<dyn Store>,
    pub leases: Arc<Leases>,
    pub begins: Begins,
    pub stats: Arc<Stats>,
    queue: Mutex<Vec<Outcome>>,
    wake: Notify,
    /// Deliveries claimed whose outcome is not yet in the queue.
    in_hand: AtomicUsize,
    /// Outcomes in the queue or in the commit under way.
    unsettled: AtomicUsize,
    /// Bytes that these write.
    unsettled_bytes: AtomicUsize,
    /// Whether the database takes no outcomes at present.
    outage: Outage,
    /// Whether it does not take some of them.
    refusals: Outage,
    closed: AtomicBool,
    group_max: usize,
    group_ready: usize,
    linger: Duration,
}

impl Settler {
    pub fn new(store: Arc<dyn Store>, leases: Arc<Leases>, stats: Arc<Stats>, options: &EngineOptions) -> Self {
        Self {
            begins: Begins::new(store.clone()),
            store,
            leases,
            stats,
            queue: Mutex::default(),
            wake: Notify::new(),
            in_hand: AtomicUsize::new(0),
            unsettled: AtomicUsize::new(0),
            unsettled_bytes: AtomicUsize::new(0),
            outage: Outage::new("outcomes could not be committed"),
            refusals: Outage::new("an outcome could not be committed"),
            closed: AtomicBool::new(false),
            group_max: options.settle_group_max.max(1),
            group_ready: options.settle_group_ready.clamp(1, options.settle_group_max.max(1)),
            linger: options.settle_linger,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Outcome>> {
        // Each critical section leaves the queue whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of deliveries that will end in [`Settler::push`] or [`Settler::dropped`].
    pub fn expect(&self, deliveries: usize) {
        self.in_hand.fetch_add(deliveries, Ordering::AcqRel);
    }

    /// Queues the outcome of one delivery.
    pub fn push(&self, outcome: Outcome) {
        self.unsettled.fetch_add(1, Ordering::AcqRel);
        self.unsettled_bytes.fetch_add(outcome.bytes(), Ordering::AcqRel);
        let waiting = {
            let mut queue = self.lock();
            queue.push(outcome);
            queue.len()
        };
        let last = self.in_hand.fetch_sub(1, Ordering::AcqRel) == 1;
        if last || waiting == 1 || waiting == self.group_ready {
            self.wake.notify_one();
        }
    }

    /// A delivery ended without an outcome.
    pub fn dropped(&self) {
        if self.in_hand.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.wake.notify_one();
        }
    }

    /// Whether nothing is in hand or waiting for a commit.
    pub fn is_idle(&self) -> bool {
        self.in_hand.load(Ordering::Acquire) == 0 && self.unsettled.load(Ordering::Acquire) == 0
    }

    /// Ends [`Settler::run`] once the queue is empty.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Commits groups until closed.
    pub async fn run(self: Arc<Self>) {
        while self.wait_for_group().await {
            let (mut group, bytes) = self.take_group();
            let size = group.len();
            self.commit(&mut group).await;
            self.unsettled.fetch_sub(size, Ordering::AcqRel);
            self.unsettled_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
    }

    /// The oldest outcomes that one commit can carry, at least one, and the bytes that they write.
    fn take_group(&self) -> (Vec<Outcome>, usize) {
        let mut queue = self.lock();
        let (mut take, mut bytes) = (0, 0);
        for outcome in queue.iter().take(self.group_max) {
            let more = outcome.bytes();
            if take > 0 && bytes + more > GROUP_BYTES_MAX {
                break;
            }
            take += 1;
            bytes += more;
        }
        (queue.drain(..take).collect(), bytes)
    }

    /// Whether the database takes no outcomes. Then nothing is claimed either: the outcomes come first.
    pub fn is_waiting_for_database(&self) -> bool {
        self.outage.is_on()
    }

    /// Whether so much waits to be written that nothing should be added.
    pub fn is_heavy(&self) -> bool {
        self.unsettled_bytes.load(Ordering::Acquire) > UNSETTLED_BYTES_MAX
    }

    /// `false` when closed and empty.
    async fn wait_for_group(&self) -> bool {
        while self.lock().is_empty() {
            if self.closed.load(Ordering::Acquire) {
                return false;
            }
            self.wake.notified().await;
        }
        // A commit for a handful costs as much as one for hundreds: wait a moment while more are coming.
        let deadline = Instant::now() + self.linger;
        while self.lock().len() < self.group_ready
            && self.in_hand.load(Ordering::Acquire) > 0
            && !self.closed.load(Ordering::Acquire)
        {
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        true
    }

    /// Commits a group, in parts if need be, until each outcome is committed, dropped or sent to run again.
    async fn commit(self: &Arc<Self>, group: &mut Vec<Outcome>) {
        let mut backoff = BACKOFF.0;
        let mut part = usize::MAX;
        while !group.is_empty() {
            self.rerun_stale(group);
            let size = part.min(group.len());
            let mut outcomes: Vec<Outcome> = group.drain(..size).collect();
            if outcomes.is_empty() {
                return;
            }
            let settlements: Vec<Settlement> = outcomes.iter_mut().map(Outcome::lend).collect();
            let report = self.store.settle(&settlements).await;
            for (outcome, settlement) in outcomes.iter_mut().zip(settlements) {
                outcome.settlement = settlement;
            }
            match report {
                Ok(SettleReport::Committed { lost, duplicates }) => {
                    self.outage.over();
                    Stats::add(&self.stats.groups, 1);
                    self.committed(outcomes, &lost, &duplicates);
                    part = usize::MAX;
                    backoff = BACKOFF.0;
                }
                Ok(SettleReport::Conflict(conflict)) => {
                    self.outage.over();
                    self.conflicted(&mut outcomes, &conflict);
                    group.splice(0..0, outcomes);
                }
                Err(error) if error.is_transient() => {
                    self.outage.failed(&error, self.unsettled.load(Ordering::Acquire));
                    group.splice(0..0, outcomes);
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
                Err(error) if outcomes.len() > 1 => {
                    self.outage.over();
                    debug!(%error, outcomes = outcomes.len(), "a group was refused; looking for the outcome at fault");
                    part = outcomes.len().div_ceil(2);
                    group.splice(0..0, outcomes);
                }
                Err(error) => {
                    self.outage.over();
                    if let Some(outcome) = outcomes.pop().and_then(|outcome| self.refused(outcome, &error)) {
                        group.insert(0, outcome);
                    }
                    part = usize::MAX;
                }
            }
        }
    }

    /// Puts an outcome back into the queue after a while. It is held under its lease meanwhile, and holds up no others.
    fn put_back(self: &Arc<Self>, mut outcome: Outcome, error: &StoreError) {
        outcome.was_put_back = true;
        // All outcomes may meet the same, one by one.
        if self.refusals.is_to_be_said(std::time::Instant::now()) {
            error!(
                message = %outcome.item.message.id, subscription = %outcome.work.subscription.name, %error,
                "an outcome cannot be committed; it is kept, and tried again until the database takes it"
            );
        }
        self.unsettled.fetch_add(1, Ordering::AcqRel);
        self.unsettled_bytes.fetch_add(outcome.bytes(), Ordering::AcqRel);
        let settler = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PUT_BACK).await;
            settler.lock().push(outcome);
            settler.wake.notify_one();
        });
    }

    fn committed(&self, outcomes: Vec<Outcome>, lost: &[usize], duplicates: &[usize]) {
        let stats = &self.stats;
        let lost: HashSet<usize> = lost.iter().copied().collect();
        if outcomes.iter().any(|outcome| outcome.was_put_back) {
            self.refusals.over();
        }
        if !lost.is_empty() {
            info!(outcomes = lost.len(), "leases were lost; these outcomes are dropped");
        }
        Stats::add(&stats.lease_lost, lost.len());
        Stats::add(&stats.duplicates, duplicates.len());
        self.leases.remove(outcomes.iter().map(|outcome| (outcome.item.token, outcome.item.id)));
        let mut last: Option<Arc<Active>> = None;
        for (position, outcome) in outcomes.into_iter().enumerate() {
            let Outcome { work, settlement, era, .. } = outcome;
            if let Some(era) = era {
                work.overlay.committed(era, settlement.writes.iter());
            }
            if !lost.contains(&position) {
                match settlement.verdict {
                    Verdict::Complete { .. } => Stats::add(&stats.completed, 1),
                    Verdict::DeadLetter { .. } => Stats::add(&stats.dead_lettered, 1),
                    Verdict::Retry { counted: false, .. } => {
                        Stats::add(&stats.released, 1);
                        work.rescheduled.notify_one();
                    }
                    Verdict::Retry { .. } => {
                        Stats::add(&stats.retried, 1);
                        work.rescheduled.notify_one();
                    }
                }
            }
            if last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &work)) {
                work.lanes.drained.notify_one();
                last = Some(work);
            }
        }
    }

    /// Takes out what stood in the way, and starts a new era where the chain is broken.
    fn conflicted(&self, outcomes: &mut Vec<Outcome>, conflict: &StateConflict) {
        let broken: HashSet<&Name> = conflict.stale.iter().map(|(namespace, _)| namespace).collect();
        for outcome in outcomes.iter() {
            if broken.contains(&outcome.work.subscription.name) && !outcome.is_stale() && outcome.era.is_some() {
                outcome.work.overlay.reset();
            }
        }
        for &position in conflict.duplicates.iter().chain(&conflict.lost) {
            if let Some(outcome) = outcomes.get_mut(position)
                && outcome.settlement.writes_state()
                && !outcome.is_stale()
            {
                outcome.work.overlay.reset();
            }
        }
        for &position in &conflict.duplicates {
            if let Some(outcome) = outcomes.get_mut(position) {
                Stats::add(&self.stats.duplicates, 1);
                outcome.settlement = settlement(&outcome.work, &outcome.item, Verdict::Complete { mark: false });
                outcome.era = None;
            }
        }
        let mut lost: Vec<usize> = conflict.lost.clone();
        lost.sort_unstable_by(|a, b| b.cmp(a));
        lost.dedup();
        for position in lost {
            if position < outcomes.len() {
                let outcome = outcomes.remove(position);
                info!(message = %outcome.item.message.id, "lease lost; the outcome is dropped");
                Stats::add(&self.stats.lease_lost, 1);
                self.leases.remove(std::iter::once((outcome.item.token, outcome.item.id)));
                outcome.work.lanes.drained.notify_one();
            }
        }
    }

    /// Sends outcomes of an era that ended back to their slots.
    fn rerun_stale(&self, group: &mut Vec<Outcome>) {
        if !group.iter().any(Outcome::is_stale) {
            return;
        }
        let mut fresh = Vec::with_capacity(group.len());
        let mut again: Vec<Outcome> = Vec::new();
        for outcome in group.drain(..) {
            if outcome.is_stale() { again.push(outcome) } else { fresh.push(outcome) }
        }
        Stats::add(&self.stats.reruns, again.len());
        for mut run in chunk_by_work(again) {
            let work = run[0].work.clone();
            self.expect(run.len());
            let refused = work.lanes.push_front(run.drain(..).map(|outcome| outcome.item).collect());
            for item in refused {
                // The node is draining: hand it back instead.
                self.dropped();
                fresh.push(Outcome::new(&work, item.clone(), settlement(&work, &item, Verdict::RELEASE), None));
            }
        }
        *group = fresh;
    }

    /// The database refuses one outcome. If that is the outcome's fault, it becomes a failed attempt. If it is the
    /// database's, or the failed attempt is refused as well, it is kept: left to its lease's end it would be run again,
    /// and in the end be a dead letter that blames its nodes.
    fn refused(self: &Arc<Self>, outcome: Outcome, error: &StoreError) -> Option<Outcome> {
        if error.is_of_database() || !matches!(outcome.settlement.verdict, Verdict::Complete { .. }) {
            self.put_back(outcome, error);
            return None;
        }
        let Outcome { work, item, settlement: refused, era, ran_on, was_put_back } = outcome;
        error!(message = %item.message.id, subscription = %work.subscription.name, %error, "outcome refused");
        if era.is_some() && refused.writes_state() {
            work.overlay.reset();
        }
        let failure =
            laneway_core::Failure::Retry { reason: Reason::HOST, error: ErrorText::new(error.to_string()) };
        let digest = ran_on.as_ref().map_or_else(|| PluginDigest::from_hex(""), |choice| choice.version.digest());
        let is_trial = ran_on.as_ref().is_some_and(|choice| choice.on_trial);
        if let Some(choice) = &ran_on {
            choice.version.was_refused(item.is_first_attempt());
        }
        let (attempt, elapsed) = (item.attempt, item.elapsed());
        let ruling = rule(&work.subscription, failure, attempt, elapsed, &digest, rand::random(), is_trial)?;
        let settlement = settlement(&work, &item, ruling.verdict);
        Some(Outcome { work, item, settlement, era: None, ran_on, was_put_back })
    }
}

impl Outcome {
    /// Moves the settlement out for a call to the store; the caller puts it back.
    fn lend(&mut self) -> Settlement {
        let empty = settlement(&self.work, &self.item, Verdict::RELEASE);
        std::mem::replace(&mut self.settlement, empty)
    }
}

fn chunk_by_work(outcomes: Vec<Outcome>) -> Vec<Vec<Outcome>> {
    let mut chunks: Vec<Vec<Outcome>> = Vec::new();
    for outcome in outcomes {
        match chunks.iter_mut().find(|chunk| Arc::ptr_eq(&chunk[0].work, &outcome.work)) {
            Some(chunk) => chunk.push(outcome),
            None => chunks.push(vec![outcome]),
        }
    }
    chunks
}
