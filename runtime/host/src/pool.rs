//! Who may have an instance. Each subscription has some that no other can take; the others are in common, and nobody takes
//! so many of them that the next one finds none.
//!
//! So a subscription whose messages all hang (a receiver that never answers) holds up itself alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use laneway_core::Name;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Instances for checks of a configuration whose subscription has all of its own in use: what is to replace a plugin that
/// hangs must not wait for it.
const CHECKS: usize = 2;

/// How many instances there are, and whose they are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Of each subscription, for itself alone.
    own: BTreeMap<Name, usize>,
    common: usize,
}

impl Plan {
    /// With so many at once, where each subscription can use as many as its `concurrency`.
    ///
    /// Where all can have what they can use, it is theirs. Else half of all is divided, evenly up to what each can use,
    /// and at least one for each; for that, there may be more than `max` in all.
    pub(crate) fn new(max: u32, concurrency: &BTreeMap<Name, u32>) -> Self {
        let (max, count) = (max as usize, concurrency.len());
        let wanted: usize = concurrency.values().map(|&wants| wants.max(1) as usize).sum();
        let in_common = max / 2;
        let total = max.max(count + in_common);
        let mut left = if wanted <= total { wanted } else { total - in_common };
        let mut ascending: Vec<(&Name, usize)> =
            concurrency.iter().map(|(name, &wants)| (name, wants.max(1) as usize)).collect();
        ascending.sort_by_key(|&(_, wants)| wants);
        let mut own = BTreeMap::new();
        for (place, (name, wants)) in ascending.into_iter().enumerate() {
            // Who can use less than an even part leaves the rest of it to the others.
            let part = wants.min(left / (count - place));
            left -= part;
            own.insert(name.clone(), part);
        }
        let taken: usize = own.values().sum();
        let common = if wanted <= total { max.saturating_sub(taken) } else { total - taken };
        Self { own, common }
    }

    /// Instances that can exist at once.
    pub(crate) fn instances(&self) -> u32 {
        let all = self.own.values().sum::<usize>() + self.common + CHECKS;
        u32::try_from(all).unwrap_or(u32::MAX)
    }
}

/// What a subscription has for itself, whatever the version of its plugin.
pub(crate) struct Share {
    place: usize,
    own: Arc<Semaphore>,
    /// Calls of this subscription that wait for an instance.
    waiting: AtomicUsize,
}

impl Share {
    fn new(place: usize, own: usize) -> Arc<Self> {
        let own = Arc::new(Semaphore::new(own.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { place, own, waiting: AtomicUsize::new(0) })
    }
}

/// Leave to have one instance. Given back when it is dropped.
pub(crate) enum Permit {
    /// One of the subscription's own, or of those for checks.
    Own { _permit: OwnedSemaphorePermit },
    /// One of those in common.
    Common { _permit: CommonPermit },
}

impl Permit {
    fn is_common(&self) -> bool {
        matches!(self, Self::Common { .. })
    }
}

/// The instances of all plugins.
pub(crate) struct Pool {
    shares: BTreeMap<Name, Arc<Share>>,
    /// Of subscriptions that were not named when the pool was made: nothing of their own.
    unnamed: Arc<Share>,
    commons: Mutex<Commons>,
    checks: Arc<Semaphore>,
    /// Calls of all subscriptions that wait.
    waiting: AtomicUsize,
}

/// The instances in common.
struct Commons {
    free: usize,
    /// Whether nobody is named: then there is nobody to leave something for.
    is_for_all: bool,
    /// By a share's place.
    takers: Vec<Taker>,
    /// Places of shares that wait, the one that was served last at the end.
    queue: VecDeque<usize>,
    tickets: u64,
}

#[derive(Default)]
struct Taker {
    used: usize,
    waiting: VecDeque<(u64, oneshot::Sender<CommonPermit>)>,
}

impl Commons {
    /// Takes one for a share, as long as more are left than it has: however many are stuck, there is one for the next.
    fn take(&mut self, place: usize) -> bool {
        let taker = &mut self.takers[place];
        let may = self.free > 0 && (self.is_for_all || taker.used < self.free);
        if may {
            taker.used += 1;
            self.free -= 1;
        }
        may
    }

    /// Of the shares that wait and may take one, the one that has the fewest; of these, the one that has waited longest.
    fn next(&self) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let used = |place: usize| self.takers[place].used;
        let waits = self.queue.iter().copied();
        waits.filter(|&place| self.is_for_all || used(place) < self.free).min_by_key(|&place| used(place))
    }
}

impl Pool {
    pub(crate) fn new(plan: Plan) -> Arc<Self> {
        let is_for_all = plan.own.is_empty();
        let shares: BTreeMap<Name, Arc<Share>> =
            plan.own.into_iter().enumerate().map(|(place, (name, own))| (name, Share::new(place, own))).collect();
        let unnamed = Share::new(shares.len(), 0);
        let takers = (0..=shares.len()).map(|_| Taker::default()).collect();
        let commons = Commons { free: plan.common, is_for_all, takers, queue: VecDeque::new(), tickets: 0 };
        Arc::new(Self {
            shares,
            unnamed,
            commons: Mutex::new(commons),
            checks: Arc::new(Semaphore::new(CHECKS)),
            waiting: AtomicUsize::new(0),
        })
    }

    /// The share of a subscription.
    pub(crate) fn share(&self, subscription: &Name) -> Arc<Share> {
        Arc::clone(self.shares.get(subscription).unwrap_or(&self.unnamed))
    }

    fn lock(&self) -> MutexGuard<'_, Commons> {
        self.commons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave for one more instance, if it can be had at once. Nobody goes before those who wait: what is given back goes
    /// to them first.
    pub(crate) fn try_take(self: &Arc<Self>, share: &Arc<Share>) -> Option<Permit> {
        if let Ok(permit) = Arc::clone(&share.own).try_acquire_owned() {
            return Some(Permit::Own { _permit: permit });
        }
        let mut commons = self.lock();
        let may = commons.takers[share.place].waiting.is_empty() && commons.take(share.place);
        may.then(|| Permit::Common { _permit: self.common_permit(share) })
    }

    /// Waits for leave, for as long as it takes. The caller counts as waiting.
    pub(crate) async fn take(self: &Arc<Self>, share: &Arc<Share>, _: &Waiting<'_>) -> Permit {
        let own = Arc::clone(&share.own).acquire_owned();
        let mut ticket = self.enqueue(share);
        tokio::select! {
            // The semaphore is never closed; were it, the others would still be there.
            Ok(permit) = own => Permit::Own { _permit: permit },
            permit = ticket.granted() => Permit::Common { _permit: permit },
        }
    }

    /// Leave for a check: as for any other call, or one of those that are there for checks.
    pub(crate) async fn take_for_check(self: &Arc<Self>, share: &Arc<Share>, waiting: &Waiting<'_>) -> Permit {
        tokio::select! {
            biased;
            permit = self.take(share, waiting) => permit,
            Ok(permit) = Arc::clone(&self.checks).acquire_owned() => Permit::Own { _permit: permit },
        }
    }

    /// Takes note of a call that waits, until the answer is dropped.
    pub(crate) fn count_waiting<'a>(&'a self, share: &'a Share) -> Waiting<'a> {
        for waiting in [&self.waiting, &share.waiting] {
            waiting.fetch_add(1, Ordering::SeqCst);
        }
        Waiting([&self.waiting, &share.waiting])
    }

    /// Whether an instance may be kept for reuse: nobody waits who could have its place. Asked under the lock of what a
    /// plugin keeps, the answer holds until that is given up: who waits counts itself first, and takes that lock then.
    pub(crate) fn may_keep(&self, permit: &Permit, share: &Share) -> bool {
        let waiting = if permit.is_common() { &self.waiting } else { &share.waiting };
        waiting.load(Ordering::SeqCst) == 0
    }

    /// Whether somebody of `share` could have the place of an instance that is kept by `keeper`.
    pub(crate) fn could_have(permit: &Permit, keeper: &Arc<Share>, share: &Arc<Share>) -> bool {
        permit.is_common() || Arc::ptr_eq(keeper, share)
    }

    fn common_permit(self: &Arc<Self>, share: &Arc<Share>) -> CommonPermit {
        CommonPermit { pool: Arc::clone(self), place: share.place }
    }

    fn enqueue(self: &Arc<Self>, share: &Arc<Share>) -> Ticket {
        let (sender, granted) = oneshot::channel();
        let (place, pool) = (share.place, Arc::clone(self));
        let mut commons = self.lock();
        commons.tickets += 1;
        let number = commons.tickets;
        if commons.takers[place].waiting.is_empty() {
            commons.queue.push_back(place);
        }
        commons.takers[place].waiting.push_back((number, sender));
        // One may have come free since the caller looked.
        self.hand_out(commons);
        Ticket { pool, place, number, granted }
    }

    /// Gives what is free to those who wait, as far as they may have it.
    fn hand_out(self: &Arc<Self>, mut commons: MutexGuard<'_, Commons>) {
        let mut unwanted = Vec::new();
        while let Some(place) = commons.next() {
            let Some((_, sender)) = commons.takers[place].waiting.pop_front() else { break };
            commons.take(place);
            commons.queue.retain(|&other| other != place);
            if !commons.takers[place].waiting.is_empty() {
                commons.queue.push_back(place);
            }
            if let Err(permit) = sender.send(CommonPermit { pool: Arc::clone(self), place }) {
                unwanted.push(permit);
            }
        }
        // What nobody took is given back, under the lock again.
        drop(commons);
        drop(unwanted);
    }
}

/// Leave for one of the instances in common.
pub(crate) struct CommonPermit {
    pool: Arc<Pool>,
    place: usize,
}

impl Drop for CommonPermit {
    fn drop(&mut self) {
        let mut commons = self.pool.lock();
        commons.takers[self.place].used -= 1;
        commons.free += 1;
        self.pool.hand_out(commons);
    }
}

/// A place in the queue for what is in common.
struct Ticket {
    pool: Arc<Pool>,
    place: usize,
    number: u64,
    /// Dropped after the place is given up, with what came meanwhile.
    granted: oneshot::Receiver<CommonPermit>,
}

impl Ticket {
    async fn granted(&mut self) -> CommonPermit {
        match (&mut self.granted).await {
            Ok(permit) => permit,
            // The other end stands in the queue for as long as the ticket lives.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut commons = self.pool.lock();
        let waiting = &mut commons.takers[self.place].waiting;
        let before = waiting.len();
        waiting.retain(|&(number, _)| number != self.number);
        if before > 0 && waiting.is_empty() {
            commons.queue.retain(|&place| place != self.place);
        }
    }
}

/// A call that waits for an instance, for as long as it lives.
pub(crate) struct Waiting<'a>([&'a AtomicUsize; 2]);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        for waiting in self.0 {
            waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(number: usize) -> Name {
        Name::parse(&format!("s{number:04}")).unwrap()
    }

    fn plan(max: u32, wants: &[u32]) -> (Vec<usize>, usize) {
        let concurrency = wants.iter().enumerate().map(|(number, &wants)| (name(number), wants)).collect();
        let plan = Plan::new(max, &concurrency);
        (plan.own.into_values().collect(), plan.common)
    }

    #[test]
    fn each_subscription_has_instances_of_its_own_and_half_are_in_common() {
        assert_eq!(plan(256, &[]), (vec![], 256));
        assert_eq!(plan(256, &[8; 3]), (vec![8; 3], 232), "all can have what they can use");
        assert_eq!(plan(256, &[8; 32]), (vec![8; 32], 0));
        assert_eq!(plan(256, &[256, 8]), (vec![120, 8], 128), "the small one has all that it can use");
        assert_eq!(plan(1, &[1, 1]), (vec![1, 1], 0));
        assert_eq!(plan(3, &[3, 3]), (vec![1, 1], 1));
        let (own, common) = plan(256, &[8; 34]);
        assert_eq!((own.iter().sum::<usize>(), common), (128, 128));
        assert!(own.iter().all(|own| (3..=4).contains(own)), "{own:?}");
        assert_eq!(plan(256, &[8; 1000]), (vec![1; 1000], 128), "one for each, and half of the maximum beside");
    }

    fn pool(max: u32, wants: &[u32]) -> (Arc<Pool>, Vec<Arc<Share>>) {
        let concurrency = wants.iter().enumerate().map(|(number, &wants)| (name(number), wants)).collect();
        let pool = Pool::new(Plan::new(max, &concurrency));
        let shares = (0..wants.len()).map(|number| pool.share(&name(number))).collect();
        (pool, shares)
    }

    fn take_all(pool: &Arc<Pool>, share: &Arc<Share>, wants: usize) -> Vec<Permit> {
        (0..wants).map_while(|_| pool.try_take(share)).collect()
    }

    /// Waits as a call does.
    async fn wait(pool: Arc<Pool>, share: Arc<Share>) -> Permit {
        let waiting = pool.count_waiting(&share);
        pool.take(&share, &waiting).await
    }

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn whoever_is_stuck_leaves_the_next_one_its_part() {
        // One of 256, and one of 8 that comes when that has all that it gets.
        let (pool, shares) = pool(256, &[256, 8]);
        let stuck = take_all(&pool, &shares[0], 256);
        assert_eq!(stuck.len(), 120 + 64, "its own, and half of what is in common");
        assert_eq!(take_all(&pool, &shares[1], 8).len(), 8);
        // 33 of 8, one after the other, and then a last one.
        let (pool, shares) = self::pool(256, &[8; 34]);
        let stuck: Vec<_> = shares[..33].iter().map(|share| take_all(&pool, share, 8)).collect();
        assert!(stuck.iter().all(|permits| permits.len() >= 4), "{:?}", stuck.iter().map(Vec::len).max());
        assert!(take_all(&pool, &shares[33], 8).len() >= 4);
        // Whoever is alone has all that it can use.
        let (pool, shares) = self::pool(256, &[8; 1000]);
        assert_eq!(take_all(&pool, &shares[7], 8).len(), 8);
    }

    #[tokio::test]
    async fn what_comes_free_goes_to_who_waits_and_has_the_fewest() {
        let (pool, shares) = pool(4, &[4, 4, 4]);
        // One of its own each, and two in common.
        let mut first = take_all(&pool, &shares[0], 4);
        let second = take_all(&pool, &shares[1], 4);
        assert_eq!((first.len(), second.len()), (2, 2));
        let mut many: Vec<_> = (0..3).map(|_| tokio::spawn(wait(pool.clone(), shares[0].clone()))).collect();
        settle().await;
        let own = take_all(&pool, &shares[2], 4);
        assert_eq!(own.len(), 1);
        let late = tokio::spawn(wait(pool.clone(), shares[2].clone()));
        settle().await;
        assert!(pool.try_take(&shares[2]).is_none(), "nobody goes before who waits");
        drop(second);
        let late = tokio::time::timeout(Duration::from_secs(5), late).await.unwrap().unwrap();
        settle().await;
        assert_eq!(many.iter().filter(|task| task.is_finished()).count(), 0, "one is not left for the next then");
        drop(late);
        settle().await;
        assert_eq!(many.iter().filter(|task| task.is_finished()).count(), 0);
        // One of its own goes to its own.
        first.retain(Permit::is_common);
        settle().await;
        assert_eq!(many.iter().filter(|task| task.is_finished()).count(), 1);
        drop(first);
        settle().await;
        assert_eq!(many.iter().filter(|task| task.is_finished()).count(), 2);
        many.iter().for_each(tokio::task::JoinHandle::abort);
        many.clear();
        drop(own);
        settle().await;
        let commons = pool.lock();
        assert!(commons.queue.is_empty() && commons.takers.iter().all(|taker| taker.waiting.is_empty()));
        drop(commons);
        assert_eq!(pool.waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn one_that_is_granted_to_a_call_that_has_gone_is_not_lost() {
        let (pool, shares) = pool(2, &[2, 2]);
        let held = take_all(&pool, &shares[0], 2);
        assert_eq!(held.len(), 2);
        let mut ticket = pool.enqueue(&shares[1]);
        drop(held);
        assert!(tokio::time::timeout(Duration::from_millis(10), ticket.granted()).await.is_ok());
        let mut unread = pool.enqueue(&shares[1]);
        assert!(unread.granted.try_recv().is_ok(), "free again");
        let unread = pool.enqueue(&shares[0]);
        drop(unread);
        assert_eq!(pool.lock().free, 1);
    }

    #[tokio::test]
    async fn a_check_has_its_place_beside_calls_that_hang() {
        let (pool, shares) = pool(1, &[1]);
        let held = take_all(&pool, &shares[0], 2);
        assert_eq!(held.len(), 1);
        let waiting = pool.count_waiting(&shares[0]);
        let check = pool.take_for_check(&shares[0], &waiting);
        assert!(tokio::time::timeout(Duration::from_secs(5), check).await.is_ok());
    }
}
