//! A slot: runs one message (or one publisher's batch) after the other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use laneway_core::{
    Attempt, Call, CounterAdd, Effects, ErrorText, Failure, Held, Interrupt, Invocation, PluginDigest, Reason,
    SandboxUse, Settlement, Verdict,
};
use tracing::{debug, error, info, warn};

use crate::active::Active;
use crate::begin::Begun;
use crate::lanes::Item;
use crate::overlay::Accepted;
use crate::settler::{Outcome, Settler};
use crate::stats::Stats;
use crate::verdict::{Ruling, on_trial, rule, rule_unstarted};
use crate::versions::{Choice, InFlight, Version};

/// Messages after which a slot lets other tasks of its thread run.
const YIELD_EVERY: u32 = 32;

/// After this long a message is due again whose start could not be noted in the database.
const UNNOTED_DELAY: Duration = Duration::from_secs(1);

/// Runs messages until the subscription's buffer is closed.
pub(crate) async fn run(work: Arc<Active>, settler: Arc<Settler>, interrupt: Interrupt) {
    let batch = work.publish_batch();
    let low_water = work.claim_batch() / 2;
    let mut items = Vec::with_capacity(batch);
    let mut since_yield = 0;
    while work.lanes.next(batch, low_water, &mut items).await {
        attempt(&work, &settler, &interrupt, &mut items).await;
        since_yield += 1;
        if since_yield >= YIELD_EVERY {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
}

async fn attempt(work: &Arc<Active>, settler: &Settler, interrupt: &Interrupt, items: &mut Vec<Item>) {
    // A batch of which a canary has a part takes two rounds, and much may have happened after the first. An attempt that
    // read state which changed under it runs again at once; each round, some attempt has won.
    loop {
        items.retain(|item| !ended_unstarted(work, settler, item));
        note_begins(work, settler, items).await;
        let Some(chosen) = choose(work, settler, items) else { return };
        items.extend(run_on(work, settler, interrupt, chosen).await);
    }
}

/// Notes that those begin which leases were lost on, and takes out what must not run.
async fn note_begins(work: &Arc<Active>, settler: &Settler, items: &mut Vec<Item>) {
    let mut position = 0;
    while let Some(item) = items.get_mut(position) {
        if item.lost == 0 || item.noted {
            position += 1;
            continue;
        }
        let held = Held { token: item.token, subscription: work.id, delivery: item.id };
        match settler.begins.begin(held).await {
            Begun::Noted => {
                item.noted = true;
                position += 1;
                continue;
            }
            Begun::Lost => {
                let item = items.remove(position);
                warn!(message = %item.message.id, subscription = %work.subscription.name, "lease lost before the start");
                Stats::add(&settler.stats.lease_lost, 1);
                settler.leases.remove(std::iter::once((item.token, item.id)));
                settler.dropped();
                work.lanes.drained.notify_one();
            }
            Begun::Failed(error) => {
                let item = items.remove(position);
                warn!(
                    message = %item.message.id,
                    subscription = %work.subscription.name,
                    error,
                    "the start of a message whose lease was lost before could not be noted; it is tried again later"
                );
                let verdict = Verdict::Retry { delay: UNNOTED_DELAY, counted: false, error: None };
                let release = settlement(work, &item, verdict);
                settler.push(Outcome::new(work, item, release, None));
            }
        }
        work.destination.end_try();
    }
}

/// Attempts that run together on one version.
struct Chosen {
    choice: Choice,
    _in_flight: InFlight,
    items: Vec<Item>,
}

/// Takes the items that begin on one version: that of the first.
fn choose(work: &Arc<Active>, settler: &Settler, items: &mut Vec<Item>) -> Option<Chosen> {
    let attempts_max = work.subscription.retry.attempts_max();
    let mut chosen: Option<Chosen> = None;
    let mut others = Vec::new();
    for item in items.drain(..) {
        let Some(choice) = work.versions.choose(&item.message, item.is_first_attempt(), attempts_max) else {
            // The plugin was drained since the claim.
            work.destination.end_try();
            let release = settlement(work, &item, Verdict::RELEASE);
            settler.push(Outcome::new(work, item, release, None));
            continue;
        };
        match &mut chosen {
            // A swap may come in between: then these begin on the version of the first.
            Some(chosen) if chosen.choice.on_trial == choice.on_trial => chosen.items.push(item),
            Some(_) => others.push(item),
            None => chosen = Some(Chosen { _in_flight: choice.version.begin(), choice, items: vec![item] }),
        }
    }
    *items = others;
    chosen
}

/// Runs items, and gives back those that must run again.
async fn run_on(work: &Arc<Active>, settler: &Settler, interrupt: &Interrupt, chosen: Chosen) -> Vec<Item> {
    let Chosen { choice, mut items, _in_flight } = chosen;
    let version = &choice.version;
    let era = work.overlay.era();
    let calls: Vec<Call> = items.iter().map(|item| call(work, interrupt, item)).collect();
    items.iter_mut().for_each(|item| item.began = true);
    let started = Instant::now();
    let invocations = AssertUnwindSafe(version.invoker.invoke(&calls)).catch_unwind().await;
    let invocations = checked(invocations, &calls, version, started);
    work.pace.ran(started.elapsed() / u32::try_from(calls.len()).unwrap_or(1));
    let mut again = Vec::new();
    for (item, invocation) in items.into_iter().zip(invocations) {
        settler.stats.sandbox(invocation.used.elapsed);
        if let Some(item) = finish(work, settler, item, invocation, era, &choice) {
            Stats::add(&settler.stats.reruns, 1);
            again.push(item);
        }
    }
    again
}

/// Whether a delivery is not to be run: lost meanwhile, processed before, or out of attempts.
fn ended_unstarted(work: &Arc<Active>, settler: &Settler, item: &Item) -> bool {
    if !settler.leases.holds(item.token, item.id) {
        warn!(message = %item.message.id, subscription = %work.subscription.name, "lease lost before the start");
        Stats::add(&settler.stats.lease_lost, 1);
        settler.dropped();
        work.destination.end_try();
        return true;
    }
    let verdict = if item.processed {
        debug!(message = %item.message.id, subscription = %work.subscription.name, "processed before");
        Stats::add(&settler.stats.duplicates, 1);
        Verdict::Complete { mark: false }
    } else if let Some(error) = item.unreadable.clone() {
        error!(
            message = %item.message.id,
            subscription = %work.subscription.name,
            %error,
            "a row of the outbox breaks its rules; the delivery is given up"
        );
        Verdict::DeadLetter { reason: Reason::UNREADABLE, error, plugin: None }
    } else if let Some(pause) = work.paused_for() {
        // Claimed before the pause. One that ran and met changed state is not counted either: it has not failed, and with
        // one attempt allowed it would be dead for it.
        Verdict::Retry { delay: pause, counted: false, error: None }
    } else if let Some(verdict) = rule_unstarted(&work.subscription, item.attempt, item.lost) {
        error!(message = %item.message.id, subscription = %work.subscription.name, "attempts used up without an end");
        verdict
    } else {
        return false;
    };
    // If it was the one to tell whether the destination is back, it does not tell.
    work.destination.end_try();
    settler.push(Outcome::new(work, item.clone(), settlement(work, item, verdict), None));
    true
}

fn call(work: &Active, interrupt: &Interrupt, item: &Item) -> Call {
    Call {
        message: item.message.clone(),
        attempt: Attempt {
            number: item.attempt,
            max: work.subscription.retry.attempts_max(),
            lane: item.lane,
            timeout: work.subscription.timeout,
            maybe_duplicate: !item.is_first_attempt() || item.began,
        },
        state: work.overlay.clone(),
        interrupt: interrupt.clone(),
    }
}

type Caught = Result<Vec<Invocation>, Box<dyn std::any::Any + Send>>;

/// Answers for each message even if the invoker broke its word.
fn checked(invocations: Caught, calls: &[Call], version: &Version, started: Instant) -> Vec<Invocation> {
    let wanted = calls.len();
    let why = match invocations {
        Ok(invocations) if invocations.len() == wanted => return invocations,
        Ok(invocations) => format!("{} answers for {wanted} messages", invocations.len()),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            format!("the host panicked: {text}")
        }
    };
    error!(why, "an attempt broke the host; it will be tried again");
    let failed = Invocation {
        result: Err(Failure::Retry { reason: Reason::HOST, error: ErrorText::new(why) }),
        effects: Effects::default(),
        plugin: version.digest(),
        used: SandboxUse { elapsed: started.elapsed(), ..SandboxUse::default() },
    };
    vec![failed; wanted]
}

/// Hands the outcome to the settler; gives the item back if it must run again.
fn finish(
    work: &Arc<Active>,
    settler: &Settler,
    item: Item,
    invocation: Invocation,
    era: u64,
    choice: &Choice,
) -> Option<Item> {
    let Invocation { result, mut effects, plugin, used } = invocation;
    let (attempt, is_first) = (item.attempt, item.is_first_attempt());
    let failure = result.as_ref().err().cloned();
    let mut opened = None;
    let mut is_shared = true;
    let ruling: Ruling = match result {
        Ok(()) => {
            work.answered();
            if work.destination.succeeded() {
                info!(subscription = %work.subscription.name, "an attempt succeeded; all is claimed again");
            }
            Verdict::Complete { mark: work.subscription.idempotent }.into()
        }
        Err(failure) => {
            effects.writes.clear();
            effects.adds.clear();
            effects.emits.clear();
            effects.metadata = None;
            tell(work, &item, &failure, &plugin);
            let failure = if choice.on_trial { on_trial(failure) } else { weigh(work, &item, failure) };
            // What is wrong with one configuration is no matter of the others.
            is_shared = !matches!(failure, Failure::Misconfigured { .. });
            let is_its_own = !is_shared && !work.refusals.misconfigure(&item.message.id);
            opened = match &failure {
                // A canary's failures say nothing of the destination.
                Failure::Retry { .. } | Failure::UnknownOutcome { .. } if !choice.on_trial => {
                    work.destination.failed(Instant::now())
                }
                Failure::Stale => None,
                // Of the destination it says nothing: another one may try.
                _ => {
                    work.destination.end_try();
                    None
                }
            };
            let random = rand::random();
            match rule(&work.subscription, failure, attempt, item.elapsed(), &plugin, random, choice.on_trial) {
                // Others are taken: it waits alone.
                Some(ruling) if is_its_own => Ruling { pause: None, ..ruling },
                Some(ruling) => ruling,
                None => return Some(item),
            }
        }
    };
    if let Some(pause) = opened {
        warn!(subscription = %work.subscription.name, ?pause, "too many attempts failed in a row; claiming pauses");
    }
    if let Some(pause) = ruling.pause.max(opened) {
        if is_shared { &work.destination.pause } else { &work.pause }.begin(pause);
        hand_back(work, settler, pause);
    }
    let mut settlement = settlement(work, &item, ruling.verdict);
    settlement.adds = effects
        .adds
        .drain(..)
        .map(|(key, delta)| CounterAdd { namespace: work.subscription.name.clone(), key, delta })
        .collect();
    settlement.emits = std::mem::take(&mut effects.emits);
    settlement.metadata = effects.metadata.take();
    let outcome = |item, settlement, era| Outcome::of_attempt(work, item, settlement, era, choice);
    if effects.reads.is_empty() && effects.writes.is_empty() {
        settler.push(outcome(item, settlement, None));
        choice.version.ended(is_first, &used, failure.as_ref());
        return None;
    }
    let mut item = Some(item);
    work.overlay.accept(era, &mut effects, |accepted: Accepted| {
        settlement.reads = accepted.reads;
        settlement.writes = accepted.writes;
        if let Some(item) = item.take() {
            settler.push(outcome(item, settlement, Some(era)));
        }
    });
    if item.is_none() {
        choice.version.ended(is_first, &used, failure.as_ref());
    }
    item
}

/// What a failure comes to beside those of other messages.
fn weigh(work: &Active, item: &Item, failure: Failure) -> Failure {
    match failure {
        Failure::Reject { .. } => {
            work.answered();
            failure
        }
        Failure::Throttled { after: None, error } => {
            Failure::Throttled { after: Some(work.destination.back_off(Instant::now())), error }
        }
        Failure::Retry { reason, error }
            if reason == Reason::FORBIDDEN && work.refusals.forbid(&item.message.id) =>
        {
            warn!(
                subscription = %work.subscription.name,
                "nothing is let in; the messages are kept, and some are tried now and then"
            );
            Failure::Misconfigured { reason, error }
        }
        failure => failure,
    }
}

fn tell(work: &Active, item: &Item, failure: &Failure, plugin: &PluginDigest) {
    let (kind, reason, error) = match failure {
        Failure::Interrupted => {
            info!(
                message = %item.message.id,
                subscription = %work.subscription.name,
                plugin = %plugin,
                "attempt interrupted"
            );
            return;
        }
        Failure::Stale => return,
        Failure::Throttled { error, .. } => ("throttled", "", error),
        Failure::Retry { reason, error } => ("retry", reason.as_str(), error),
        Failure::Reject { reason, error } => ("reject", reason.as_str(), error),
        Failure::UnknownOutcome { reason, error } => ("unknown outcome", reason.as_str(), error),
        Failure::Misconfigured { reason, error } => ("misconfigured", reason.as_str(), error),
    };
    warn!(
        message = %item.message.id,
        subscription = %work.subscription.name,
        attempt = item.attempt,
        plugin = %plugin,
        kind,
        reason,
        %error,
        "attempt failed"
    );
}

pub(crate) fn settlement(work: &Active, item: &Item, verdict: Verdict) -> Settlement {
    Settlement {
        subscription: work.id,
        delivery: item.id,
        token: item.token,
        message: item.message.id.clone(),
        key: item.message.key.as_ref().filter(|_| work.subscription.is_ordered()).cloned(),
        verdict,
        reads: Vec::new(),
        writes: Vec::new(),
        adds: Vec::new(),
        emits: Vec::new(),
        metadata: None,
    }
}

/// Hands back what waits for a slot, for after the pause, uncounted.
fn hand_back(work: &Arc<Active>, settler: &Settler, pause: Duration) {
    for item in work.lanes.take_all() {
        work.destination.end_try();
        let release = settlement(work, &item, Verdict::Retry { delay: pause, counted: false, error: None });
        settler.push(Outcome::new(work, item, release, None));
    }
}
