//! Which version of its plugin a subscription runs: the active one, and a canary beside it.
//!
//! An attempt takes its version when it begins, and keeps it.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use laneway_core::{
    Canary, CanaryBy, Failure, Figures, FirstAttempts, Invoker, Message, PluginDigest, Reason, SandboxUse,
};
use tokio::sync::Notify;

/// Reasons that are told apart. Guests make them up, so that there can be any number.
const REASONS_MAX: usize = 32;
/// Stands for all that came after these.
const OTHER_REASONS: &str = "other";

/// One version, as one subscription of this node runs it.
pub(crate) struct Version {
    /// Its deployment; none if the configuration names a file.
    pub deployment: Option<i64>,
    pub invoker: Arc<dyn Invoker>,
    in_flight: AtomicU32,
    tally: Tally,
}

/// What its attempts came to.
#[derive(Default)]
struct Tally {
    attempts: AtomicU64,
    elapsed_nanos: AtomicU64,
    guest_nanos: AtomicU64,
    memory_peak_bytes: AtomicU64,
    first_attempts: AtomicU64,
    first_failed: AtomicU64,
    first_elapsed_nanos: AtomicU64,
    /// Failures are rare: a lock for these does not hold up the others.
    reasons: Mutex<BTreeMap<String, u64>>,
}

impl Version {
    /// A version that a deployment has put to work.
    pub fn deployed(deployment: i64, invoker: Arc<dyn Invoker>) -> Self {
        Self { deployment: Some(deployment), ..Self::fixed(invoker) }
    }

    /// A version that the configuration names, or that was put here by hand.
    pub fn fixed(invoker: Arc<dyn Invoker>) -> Self {
        Self { deployment: None, invoker, in_flight: AtomicU32::new(0), tally: Tally::default() }
    }

    /// Takes note of a call that begins, until the answer is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(self.clone())
    }

    /// SHA-256 of its component.
    pub fn digest(&self) -> PluginDigest {
        self.invoker.digest()
    }

    /// Calls under way; a publisher's batch is one.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Takes note of an attempt that ended with a success, or with this failure. `is_first`: the message was never run
    /// before.
    pub fn ended(&self, is_first: bool, used: &SandboxUse, failure: Option<&Failure>) {
        // What has to run again has not ended.
        if let Some(Failure::Stale) = failure {
            return;
        }
        let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let tally = &self.tally;
        let elapsed = nanos(used.elapsed);
        tally.attempts.fetch_add(1, Ordering::Relaxed);
        tally.elapsed_nanos.fetch_add(elapsed, Ordering::Relaxed);
        tally.guest_nanos.fetch_add(nanos(used.guest), Ordering::Relaxed);
        tally.memory_peak_bytes.fetch_max(used.memory_peak_bytes, Ordering::Relaxed);
        // An attempt that the node's end interrupted says nothing of the version.
        if is_first && !matches!(failure, Some(Failure::Interrupted)) {
            tally.first_attempts.fetch_add(1, Ordering::Relaxed);
            tally.first_failed.fetch_add(u64::from(failure.is_some()), Ordering::Relaxed);
            tally.first_elapsed_nanos.fetch_add(elapsed, Ordering::Relaxed);
        }
        if let Some(reason) = failure.and_then(counted) {
            self.count(reason);
        }
    }

    /// Takes note that a success came to nothing: the database refuses what the attempt asked for.
    pub fn was_refused(&self, is_first: bool) {
        if is_first {
            self.tally.first_failed.fetch_add(1, Ordering::Relaxed);
        }
        self.count(Reason::HOST.as_str());
    }

    fn count(&self, reason: &str) {
        let mut reasons = self.tally.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told_apart = reasons.len() < REASONS_MAX || reasons.contains_key(reason);
        *reasons.entry(if is_told_apart { reason } else { OTHER_REASONS }.to_owned()).or_default() += 1;
    }

    /// What its attempts came to so far.
    pub fn figures(&self) -> Figures {
        let tally = &self.tally;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let reasons = tally.reasons.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Figures {
            attempts: load(&tally.attempts),
            failed: reasons.values().sum(),
            reasons,
            elapsed_nanos: load(&tally.elapsed_nanos),
            guest_nanos: load(&tally.guest_nanos),
            memory_peak_bytes: load(&tally.memory_peak_bytes),
            first: FirstAttempts {
                attempts: load(&tally.first_attempts),
                failed: load(&tally.first_failed),
                elapsed_nanos: load(&tally.first_elapsed_nanos),
            },
        }
    }
}

/// The reason of a failure that is the plugin's, as far as one can tell.
fn counted(failure: &Failure) -> Option<&str> {
    match failure {
        Failure::Retry { reason, .. }
        | Failure::Reject { reason, .. }
        | Failure::UnknownOutcome { reason, .. }
        | Failure::Misconfigured { reason, .. } => Some(reason.as_str()),
        // The destination asks for time, the node stops, another message was faster.
        Failure::Throttled { .. } | Failure::Interrupted | Failure::Stale => None,
    }
}

/// A call under way on a version.
pub(crate) struct InFlight(Arc<Version>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A version on trial.
#[derive(Clone)]
pub(crate) struct Trial {
    pub version: Arc<Version>,
    pub canary: Canary,
    /// What the active version's attempts had come to when it began.
    pub before: Figures,
}

/// What gets messages now.
#[derive(Clone, Default)]
pub(crate) struct Current {
    pub active: Option<Arc<Version>>,
    pub trial: Option<Trial>,
}

/// A version that was chosen for an attempt.
#[derive(Clone)]
pub(crate) struct Choice {
    pub version: Arc<Version>,
    /// Whether it is on trial: what fails is tried again on the active one.
    pub on_trial: bool,
}

/// The versions of one subscription.
#[derive(Default)]
pub(crate) struct Versions {
    current: RwLock<Arc<Current>>,
    /// Told when there is an active version after there was none.
    pub arrived: Notify,
}

impl Versions {
    /// One version for good, until it is swapped.
    pub fn fixed(invoker: Arc<dyn Invoker>) -> Self {
        let versions = Self::default();
        versions.set(Current { active: Some(Arc::new(Version::fixed(invoker))), trial: None });
        versions
    }

    /// What gets messages now.
    pub fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is something to run messages on.
    pub fn is_ready(&self) -> bool {
        self.current().active.is_some()
    }

    /// Swaps: attempts that begin from here on run on the new versions.
    pub fn set(&self, next: Current) {
        let has_active = next.active.is_some();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        if has_active {
            self.arrived.notify_one();
        }
    }

    /// The version for an attempt; none if nothing is deployed. A canary gets first attempts only, and none that is the last
    /// one, so that whatever it does to a message, the active version has its turn. What it may have ended its node by it
    /// does not get again.
    pub fn choose(&self, message: &Message, is_first: bool, attempts_max: u32) -> Option<Choice> {
        let current = self.current();
        if let Some(trial) = &current.trial
            && is_first
            && attempts_max > 1
            && is_chosen(&trial.canary, message)
        {
            return Some(Choice { version: trial.version.clone(), on_trial: true });
        }
        current.active.clone().map(|version| Choice { version, on_trial: false })
    }
}

/// Whether a message is of the canary's share. The same on all nodes, and for each try.
fn is_chosen(canary: &Canary, message: &Message) -> bool {
    let key = message.key.as_deref().filter(|_| canary.by == CanaryBy::Key);
    let mut hasher = Fnv::default();
    key.unwrap_or(message.id.as_str()).hash(&mut hasher);
    // The upper 53 bits, as a number from 0 to below 1.
    let place = (mix(hasher.finish()) >> 11) as f64 / (1u64 << 53) as f64;
    place < canary.share
}

/// FNV-1a: the standard library's own hash differs from process to process.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The finaliser of MurmurHash3: FNV's upper bits hardly differ between ids that differ at their end.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use laneway_core::{Call, Invocation, MessageId, Priority, Topic};

    use super::*;

    struct Nothing;

    #[async_trait]
    impl Invoker for Nothing {
        fn digest(&self) -> PluginDigest {
            PluginDigest::from_hex("played")
        }

        async fn invoke(&self, _: &[Call]) -> Vec<Invocation> {
            Vec::new()
        }
    }

    fn version(deployment: i64) -> Arc<Version> {
        Arc::new(Version { deployment: Some(deployment), ..Version::fixed(Arc::new(Nothing)) })
    }

    fn canary(share: f64, by: CanaryBy) -> Canary {
        let window = Duration::from_secs(60);
        Canary { share, by, window, attempts_min: 10, failures_over_max: 0.05, slower_max: 2.0, promote: true }
    }

    fn message(id: usize, key: Option<&str>) -> Message {
        Message {
            id: MessageId::parse(&format!("m-{id}")).unwrap(),
            topic: Topic::parse("t").unwrap(),
            key: key.map(Into::into),
            priority: Priority::NORMAL,
            payload: Vec::new().into(),
            content_type: "text/plain".into(),
            headers: Vec::new(),
            tenant: None,
        }
    }

    #[test]
    fn a_canary_gets_its_share_of_first_attempts_and_no_others() {
        let versions = Versions::default();
        assert!(versions.choose(&message(1, None), true, 5).is_none());
        let trial = |by| Trial { version: version(2), canary: canary(0.1, by), before: Figures::default() };
        versions.set(Current { active: Some(version(1)), trial: Some(trial(CanaryBy::Message)) });
        let on_trial = |id, key, is_first, max| versions.choose(&message(id, key), is_first, max).unwrap().on_trial;
        let share = (0..10_000).filter(|&id| on_trial(id, None, true, 5)).count();
        assert!((850..1150).contains(&share), "{share} of 10,000");
        assert_eq!(
            (0..10_000).filter(|&id| on_trial(id, None, false, 5) || on_trial(id, None, true, 1)).count(),
            0
        );
        versions.set(Current { active: Some(version(1)), trial: Some(trial(CanaryBy::Key)) });
        for key in 0..100 {
            let key = format!("key-{key}");
            let first = versions.choose(&message(0, Some(&key)), true, 5).unwrap().on_trial;
            assert!(
                (1..10).all(|id| versions.choose(&message(id, Some(&key)), true, 5).unwrap().on_trial == first)
            );
        }
    }

    #[test]
    fn of_any_number_of_reasons_some_are_told_apart() {
        let version = version(1);
        let error = laneway_core::ErrorText::new("as played");
        for number in 0..1000 {
            let failure = Failure::Retry { reason: Reason::of_guest(&format!("E{number}")), error: error.clone() };
            version.ended(true, &SandboxUse::default(), Some(&failure));
        }
        let figures = version.figures();
        assert_eq!((figures.failed, figures.reasons.len()), (1000, REASONS_MAX + 1));
        assert_eq!(figures.reasons[OTHER_REASONS], 1000 - REASONS_MAX as u64);
    }

    #[test]
    fn first_attempts_are_counted_apart_and_what_runs_again_once() {
        let version = version(1);
        let used = SandboxUse { elapsed: Duration::from_micros(10), ..SandboxUse::default() };
        let throttled = Failure::Throttled { after: None, error: laneway_core::ErrorText::new("later") };
        for (is_first, failure) in [
            (true, None),
            (true, Some(&throttled)),
            (true, Some(&Failure::Stale)),
            (true, Some(&Failure::Interrupted)),
            (false, None),
        ] {
            version.ended(is_first, &used, failure);
        }
        let figures = version.figures();
        assert_eq!((figures.attempts, figures.failed), (4, 0));
        let first = FirstAttempts { attempts: 2, failed: 1, elapsed_nanos: 20_000 };
        assert_eq!(figures.first, first);
        version.was_refused(true);
        assert_eq!((version.figures().failed, version.figures().first.failed), (1, 2));
    }

    #[test]
    fn an_attempt_keeps_the_version_that_it_began_with() {
        let versions = Versions::default();
        versions.set(Current { active: Some(version(1)), trial: None });
        let first = versions.choose(&message(1, None), true, 5).unwrap().version;
        let in_flight = first.begin();
        versions.set(Current { active: Some(version(2)), trial: None });
        assert_eq!(first.in_flight(), 1);
        drop(in_flight);
        assert_eq!(first.in_flight(), 0);
        assert_eq!(versions.choose(&message(1, None), true, 5).unwrap().version.deployment, Some(2));
    }
}
