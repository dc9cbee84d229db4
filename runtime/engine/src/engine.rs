//! The engine of one node: starts its parts, and drains them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use laneway_core::{Interrupt, Invoker, Name, Schedule, Store, Subscription, SubscriptionId, Verdict};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::active::Active;
use crate::destination::Destination;
use crate::leases::Leases;
use crate::options::EngineOptions;
use crate::relay::Relay;
use crate::scheduler;
use crate::settler::{Outcome, Settler};
use crate::slot::{self, settlement};
use crate::stats::Stats;

/// How often a node says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A node that has missed more heartbeats lives no more.
const HEARTBEATS_MISSED_MAX: u32 = 3;
/// Longest wait for interrupted attempts to end, and for the last commit.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// A subscription with the plugin that runs its messages.
pub struct Binding {
    /// The subscription, as declared.
    pub subscription: Subscription,
    /// Its number in the database.
    pub id: SubscriptionId,
    /// What runs its messages.
    pub invoker: Arc<dyn Invoker>,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DrainReport {
    /// Whether everything in hand was settled or handed back; if not, leases end by themselves.
    pub complete: bool,
    /// Whether running attempts had to be interrupted.
    pub interrupted: bool,
}

/// A running engine. Dropping it without [`Engine::drain`] is like a crash: leases end by themselves.
pub struct Engine {
    active: Vec<Arc<Active>>,
    settler: Arc<Settler>,
    stats: Arc<Stats>,
    interrupt: Interrupt,
    draining: watch::Sender<bool>,
    relays: Vec<JoinHandle<()>>,
    slots: Vec<JoinHandle<()>>,
    keepers: Vec<JoinHandle<()>>,
    settling: JoinHandle<()>,
    grace: Duration,
}

impl Engine {
    /// Starts working. Plugins run on the runtime of `sandbox`, all else on the current one, so that guests which
    /// keep every thread busy delay no lease and no commit.
    #[must_use]
    pub fn start(
        store: &Arc<dyn Store>,
        bindings: Vec<Binding>,
        schedules: Vec<Schedule>,
        options: EngineOptions,
        sandbox: &Handle,
    ) -> Self {
        let options = Arc::new(options);
        let stats = Arc::new(Stats::default());
        let leases = Arc::new(Leases::default());
        let settler = Arc::new(Settler::new(store.clone(), leases.clone(), stats.clone(), &options));
        let (draining, watching) = watch::channel(false);
        let interrupt = Interrupt::default();
        let settling = tokio::spawn(settler.clone().run());
        let nodes = Arc::new(AtomicU32::new(1));
        let keepers = vec![
            tokio::spawn(leases.keep(store.clone())),
            tokio::spawn(heartbeat(store.clone(), options.clone(), nodes.clone())),
        ];
        let mut named: HashMap<Name, Arc<Destination>> = HashMap::new();
        let active: Vec<Arc<Active>> = bindings
            .into_iter()
            .map(|binding| {
                let new = || Arc::new(Destination::new(binding.subscription.breaker));
                let destination = match binding.subscription.destination.clone() {
                    Some(name) => named.entry(name).or_insert_with(new).clone(),
                    None => new(),
                };
                Arc::new(Active::new(binding, destination, store.clone()))
            })
            .collect();
        // What claims or begins something, and stops doing so when the drain begins.
        let mut relays: Vec<JoinHandle<()>> = schedules
            .into_iter()
            .map(|schedule| {
                let node = options.node.clone();
                tokio::spawn(scheduler::run(store.clone(), Arc::new(schedule), node, watching.clone()))
            })
            .collect();
        let mut slots = Vec::new();
        for work in &active {
            for _ in 0..work.subscription.concurrency.max(1) {
                slots.push(sandbox.spawn(slot::run(work.clone(), settler.clone(), interrupt.clone())));
            }
            let relay = Relay {
                store: store.clone(),
                work: work.clone(),
                settler: settler.clone(),
                options: options.clone(),
                nodes: nodes.clone(),
                draining: watching.clone(),
                primary_at: None,
                backfill: None,
            };
            relays.push(tokio::spawn(relay.run()));
        }
        info!(node = %options.node, subscriptions = active.len(), "engine started");
        let grace = options.grace;
        Self { active, settler, stats, interrupt, draining, relays, slots, keepers, settling, grace }
    }

    /// The node's counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Stops claiming, hands back what waits, lets running attempts finish within the grace period, interrupts the
    /// rest, and commits every outcome.
    pub async fn drain(self) -> DrainReport {
        let started = Instant::now();
        // No receiver left means that all relays have ended already.
        let _ = self.draining.send(true);
        for work in &self.active {
            for item in work.lanes.close() {
                let release = settlement(work, &item, Verdict::RELEASE);
                self.settler.push(Outcome::new(work, item, release, None));
            }
        }
        for mut relay in self.relays {
            match tokio::time::timeout(self.grace.saturating_sub(started.elapsed()), &mut relay).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "a relay or schedule ended badly"),
                // It waits for a database that does not answer. What it may have claimed ends with its lease.
                Err(_) => relay.abort(),
            }
        }
        let mut interrupted = false;
        while !self.settler.is_idle() {
            if !interrupted && started.elapsed() >= self.grace {
                warn!("grace period is over; interrupting the attempts that still run");
                self.interrupt.set();
                interrupted = true;
            }
            if interrupted && started.elapsed() >= self.grace + LAST_COMMIT {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let complete = self.settler.is_idle();
        self.settler.close();
        if complete {
            for task in self.slots {
                if let Err(error) = task.await {
                    warn!(%error, "a slot ended badly");
                }
            }
            if let Err(error) = self.settling.await {
                warn!(%error, "the settler ended badly");
            }
        } else {
            warn!("not everything could be handed back; the leases will end by themselves");
            self.settling.abort();
            self.slots.iter().for_each(JoinHandle::abort);
        }
        for task in &self.keepers {
            task.abort();
        }
        let stats = self.stats.snapshot();
        info!(
            completed = stats.completed,
            retried = stats.retried,
            dead_lettered = stats.dead_lettered,
            lease_lost = stats.lease_lost,
            "engine stopped"
        );
        DrainReport { complete, interrupted }
    }
}

async fn heartbeat(store: Arc<dyn Store>, options: Arc<EngineOptions>, nodes: Arc<AtomicU32>) {
    loop {
        match store.heartbeat(&options.node, HEARTBEAT * HEARTBEATS_MISSED_MAX).await {
            Ok(alive) => nodes.store(alive, Ordering::Relaxed),
            Err(error) => warn!(%error, "heartbeat failed"),
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}
