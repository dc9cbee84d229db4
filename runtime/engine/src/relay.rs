//! The relay of one subscription: claims what is due, as far as there is room, and sleeps when nothing is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use laneway_core::{Batch, ClaimRequest, Lane, Store, StoreError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, error, warn};

use crate::active::Active;
use crate::lanes::Item;
use crate::options::EngineOptions;
use crate::settler::{Outcome, Settler};
use crate::slot::settlement;
use crate::stats::Stats;

/// First and longest wait after a claim that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longer than any node runs.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Deliveries in hand, settled ones not yet committed included, in units of one claim.
const IN_HAND_CLAIMS_MAX: usize = 4;

/// Backfill deliveries that one claim takes for each slot.
const BACKFILL_A_SLOT: u32 = 8;
/// The same while primary messages come, and then no more are in hand. With 500 of these a second and a million in the
/// backfill lane, their 99th percentile from commit to start is 1.3 to 1.6 times that of an empty lane on PostgreSQL,
/// on two cores; without this limit it is 1.8 times.
const BACKFILL_A_SLOT_BESIDE_PRIMARY: u32 = 4;
/// After this long without a primary message, backfill has the node for itself.
const PRIMARY_LATELY: Duration = Duration::from_secs(1);

pub(crate) struct Relay {
    pub store: Arc<dyn Store>,
    pub work: Arc<Active>,
    pub settler: Arc<Settler>,
    pub options: Arc<EngineOptions>,
    /// Nodes that live, this one included.
    pub nodes: Arc<AtomicU32>,
    pub draining: watch::Receiver<bool>,
    /// When there was last something in the primary lane.
    pub primary_at: Option<Instant>,
    /// A claim of the backfill lane that is under way: primary messages that come meanwhile do not wait for it.
    pub backfill: Option<JoinHandle<Result<bool, StoreError>>>,
    /// Whether something was claimed or put back since the relay last asked when the next delivery is due.
    pub more_may_come: bool,
}

/// What a look at the database came to.
enum Look {
    /// Something was claimed.
    Claimed,
    /// Due deliveries may be left, but there is no room.
    Full,
    /// Nothing is due.
    Empty,
    /// The rate allows nothing for this long.
    Limited(Duration),
}

impl From<bool> for Look {
    fn from(claimed: bool) -> Self {
        if claimed { Self::Claimed } else { Self::Empty }
    }
}

impl Relay {
    /// Claims until the node drains.
    pub async fn run(mut self) {
        let mut backoff = BACKOFF.0;
        // The node's first look tells whether anything is there for this subscription.
        self.sleep().await;
        while !*self.draining.borrow() {
            if !self.work.versions.is_ready() {
                self.wait_for_plugin().await;
                continue;
            }
            if let Some(pause) = self.work.paused_for() {
                self.rest(pause).await;
                continue;
            }
            match self.look().await {
                Ok(Look::Claimed) => {
                    backoff = BACKOFF.0;
                    self.more_may_come = true;
                }
                Ok(Look::Full) => {
                    backoff = BACKOFF.0;
                    let work = self.work.clone();
                    // A commit may bring something for the primary lane while backfill fills the other; and what
                    // other nodes took over makes room without a word.
                    tokio::select! {
                        () = work.lanes.drained.notified() => {}
                        () = self.store.woken(work.id) => {}
                        () = tokio::time::sleep(self.options.poll_interval) => {}
                        _ = self.draining.changed() => {}
                    }
                }
                Ok(Look::Limited(wait)) => {
                    backoff = BACKOFF.0;
                    self.rest(wait.min(self.options.poll_interval)).await;
                }
                Ok(Look::Empty) => {
                    backoff = BACKOFF.0;
                    self.sleep().await;
                }
                Err(error) => {
                    if error.is_transient() {
                        warn!(subscription = %self.work.subscription.name, %error, "claim failed; trying again");
                    } else {
                        error!(subscription = %self.work.subscription.name, %error, "claim failed; trying again");
                    }
                    self.rest(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
            }
        }
        if let Some(claim) = self.backfill.take() {
            // What it takes is handed back, as the lanes are closed.
            if let Err(error) = claim.await {
                warn!(%error, "a claim ended badly");
            }
        }
        debug!(subscription = %self.work.subscription.name, "relay ended");
    }

    /// No version of the plugin is deployed: its messages wait.
    async fn wait_for_plugin(&mut self) {
        let work = self.work.clone();
        tokio::select! {
            () = work.versions.arrived.notified() => {}
            _ = self.draining.changed() => {}
        }
    }

    async fn rest(&mut self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            _ = self.draining.changed() => {}
        }
    }

    /// Primary first; backfill only when primary has nothing due, and in smaller bites.
    async fn look(&mut self) -> Result<Look, StoreError> {
        let subscription = &self.work.subscription;
        let limit = self.work.pace.claim_limit(
            subscription.concurrency,
            subscription.claim_batch,
            self.options.prefetch_time,
            self.options.prefetch_bytes,
        );
        // The slots work on one claim while the next is fetched.
        let room = limit as usize;
        let in_hand = self.settler.leases.count(self.work.id);
        if in_hand >= room * IN_HAND_CLAIMS_MAX
            || self.work.lanes.waiting(Lane::Primary) >= room
            || self.settler.is_heavy()
            || self.settler.is_waiting_for_database()
            || self.settler.leases.are_failing()
        {
            return Ok(Look::Full);
        }
        let limit = match self.work.rate.available(Instant::now(), self.nodes.load(Ordering::Relaxed)) {
            Ok(allowed) => limit.min(allowed),
            Err(wait) => return Ok(Look::Limited(wait)),
        };
        let destination = &self.work.destination;
        if destination.is_open() {
            // One message tells whether it is over.
            if in_hand > 0 || !destination.begin_try(Instant::now()) {
                return Ok(Look::Full);
            }
            let claim = async || Ok(self.claim(Lane::Primary, 1).await? || self.claim(Lane::Backfill, 1).await?);
            let claimed = claim().await;
            if !matches!(claimed, Ok(true)) {
                destination.end_try();
            }
            return match claimed {
                Ok(true) => Ok(Look::Full),
                Ok(false) | Err(StoreError::NoRoom) => Ok(Look::Empty),
                Err(error) => Err(error),
            };
        }
        // Something of the backfill lane must be there to get its turn.
        let share_wanted = || match self.work.lanes.waiting(Lane::Backfill) {
            0 if subscription.backfill_min_share > 0.0 => {
                ((f64::from(limit) * subscription.backfill_min_share).ceil() as u32).max(1)
            }
            _ => 0,
        };
        let share = share_wanted();
        let primary = match self.claimer(share).claim(Lane::Primary, limit).await {
            // The cluster has as much in work as it may, but for what is reserved.
            Err(StoreError::NoRoom) if share > 0 => {
                let claimed = self.claim(Lane::Backfill, share).await;
                return if let Err(StoreError::NoRoom) = claimed { Ok(Look::Empty) } else { Ok(claimed?.into()) };
            }
            Err(StoreError::NoRoom) => return Ok(Look::Empty),
            claimed => claimed?,
        };
        if primary {
            // Slots may have taken the last of it meanwhile.
            let share = share_wanted();
            if share > 0 {
                match self.claim(Lane::Backfill, share).await {
                    Ok(_) | Err(StoreError::NoRoom) => {}
                    Err(error) => return Err(error),
                }
            }
            self.primary_at = Some(Instant::now());
            return Ok(Look::Claimed);
        }
        let slots = subscription.concurrency.max(1);
        let bite = match self.primary_at.is_some_and(|at| at.elapsed() < PRIMARY_LATELY) {
            true => {
                // Whatever backfill has in work, the processors and the database are not free for the next primary one.
                let most = slots * BACKFILL_A_SLOT_BESIDE_PRIMARY;
                if in_hand >= most as usize {
                    return Ok(Look::Full);
                }
                limit.min(most)
            }
            false => limit.min(slots * BACKFILL_A_SLOT),
        };
        if self.work.lanes.waiting(Lane::Backfill) >= bite as usize {
            return Ok(Look::Full);
        }
        match self.look_at_backfill(bite).await {
            Err(StoreError::NoRoom) => Ok(Look::Empty),
            looked => looked,
        }
    }

    /// Claims from the backfill lane, unless a commit comes first that may be for the primary one.
    async fn look_at_backfill(&mut self, limit: u32) -> Result<Look, StoreError> {
        let subscription = &self.work.subscription;
        if subscription.rate_limit.is_some() || subscription.cluster_concurrency.is_some() {
            // What one claim takes says what the next may take.
            return Ok(self.claim(Lane::Backfill, limit).await?.into());
        }
        let (claim, was_under_way) = match self.backfill.take() {
            Some(claim) => (claim, true),
            None => (tokio::spawn(self.claimer(0).claim(Lane::Backfill, limit)), false),
        };
        let claim = self.backfill.insert(claim);
        let done = tokio::select! {
            biased;
            done = claim => done,
            () = self.store.woken(self.work.id) => return Ok(Look::Claimed),
        };
        self.backfill = None;
        match done.map_err(|error| StoreError::Other(format!("a claim ended badly: {error}")))?? {
            true => Ok(Look::Claimed),
            // It may have looked before the commit that woke us.
            false if was_under_way => Ok(Look::Claimed),
            false => Ok(Look::Empty),
        }
    }

    async fn claim(&self, lane: Lane, limit: u32) -> Result<bool, StoreError> {
        self.claimer(0).claim(lane, limit).await
    }

    /// Claims; of what the cluster may have in work, `reserved` stay free.
    fn claimer(&self, reserved: u32) -> Claimer {
        Claimer { store: self.store.clone(), work: self.work.clone(), settler: self.settler.clone(), reserved }
    }

    /// Sleeps until something may be due: a commit, a delay that ends, or the node's next look. While nothing happens, it
    /// asks the database nothing.
    async fn sleep(&mut self) {
        let until_due = match std::mem::take(&mut self.more_may_come) {
            true => self.store.next_due(self.work.id).await.unwrap_or_else(|error| {
                debug!(%error, "next due time is not known");
                None
            }),
            false => None,
        };
        let work = self.work.clone();
        // The database's clock may tick coarser than ours: look a moment after the due time, not just before.
        let time = until_due.map_or(FOR_EVER, |due| due + Duration::from_millis(1));
        tokio::select! {
            () = self.store.woken(work.id) => {}
            () = work.due.notified() => {}
            () = tokio::time::sleep(time) => self.more_may_come = true,
            () = work.rescheduled.notified() => self.more_may_come = true,
            // More may be due than may be in work: whatever is settled makes room.
            () = work.lanes.drained.notified(), if work.subscription.cluster_concurrency.is_some() => {}
            _ = self.draining.changed() => {}
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(claim) = self.backfill.take() {
            claim.abort();
        }
    }
}

/// What a claim needs, so that one can be under way by itself.
struct Claimer {
    store: Arc<dyn Store>,
    work: Arc<Active>,
    settler: Arc<Settler>,
    reserved: u32,
}

impl Claimer {
    /// Claims and hands to the slots what there is. Answers whether there was anything.
    async fn claim(self, lane: Lane, limit: u32) -> Result<bool, StoreError> {
        let work = &self.work;
        let request = ClaimRequest {
            subscription: work.id,
            lane,
            limit,
            lease: work.subscription.lease,
            check_markers: work.subscription.idempotent,
            ordered: work.subscription.is_ordered(),
            // One at least: a limit of one is for both lanes.
            in_work_max: work.subscription.cluster_concurrency.map(|max| max.saturating_sub(self.reserved).max(1)),
        };
        let asked_at = Instant::now();
        let Some(Batch { token, deliveries, .. }) = self.store.claim(request).await? else {
            return Ok(false);
        };
        let count = deliveries.len();
        let bytes = deliveries.iter().map(|delivery| delivery.message.payload.len()).sum();
        work.pace.claimed(bytes, count);
        work.rate.take(count);
        Stats::add(&self.settler.stats.claimed, count);
        self.settler.expect(count);
        self.settler.leases.add(work.id, token, work.subscription.lease, asked_at, deliveries.iter().map(|d| d.id));
        let items = deliveries.into_iter().map(|delivery| Item::new(delivery, token, asked_at)).collect();
        for item in work.lanes.push(lane, items) {
            // The node began to drain while the claim was under way: hand it back.
            let release = settlement(work, &item, laneway_core::Verdict::RELEASE);
            self.settler.push(Outcome::new(work, item, release, None));
        }
        Ok(true)
    }
}
