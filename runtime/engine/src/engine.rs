//! The engine of one node: starts its parts, and drains them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use laneway_core::{
    Interrupt, Invoker, Name, Node, PluginLoader, Schedule, Store, StoreError, Subscription, SubscriptionId,
    Verdict,
};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::active::Active;
use crate::deployer::{Deployer, Followed};
use crate::destination::Destination;
use crate::health;
use crate::leases::Leases;
use crate::options::EngineOptions;
use crate::poll;
use crate::relay::Relay;
use crate::scheduler;
use crate::settler::{Outcome, Settler};
use crate::slot::{self, settlement};
use crate::stats::Stats;
use crate::sweep::Sweeps;
use crate::versions::{Current, Version};

/// How often a node says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A node that has missed more heartbeats lives no more.
const HEARTBEATS_MISSED_MAX: u32 = 3;
/// For how long a node counts as alive after a heartbeat.
pub const ALIVE_FOR: Duration = Duration::from_secs(HEARTBEAT.as_secs() * HEARTBEATS_MISSED_MAX as u64);
/// Longest wait for interrupted attempts to end, and for the last commit.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// A subscription with the plugin that runs its messages.
pub struct Binding {
    /// The subscription, as declared.
    pub subscription: Subscription,
    /// Its number in the database.
    pub id: SubscriptionId,
    /// What runs its messages.
    pub runs: Runs,
}

/// What runs a subscription's messages.
#[derive(Clone)]
pub enum Runs {
    /// This, until [`Engine::swap`].
    Fixed(Arc<dyn Invoker>),
    /// Whatever version of the plugin is deployed in the database. Messages wait while none is.
    Deployed {
        /// The plugin's name.
        plugin: Name,
        /// What gets its versions ready.
        loader: Arc<dyn PluginLoader>,
    },
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
    store: Arc<dyn Store>,
    /// The id of this process.
    node: Name,
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
    exchanged: watch::Receiver<Option<String>>,
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
        let node = Node::draw(options.node.clone(), options.place.clone());
        let options = Arc::new(options);
        let stats = Arc::new(Stats::default());
        let leases = Arc::new(Leases::default());
        let settler = Arc::new(Settler::new(store.clone(), leases.clone(), stats.clone(), &options));
        let (draining, watching) = watch::channel(false);
        let interrupt = Interrupt::default();
        let settling = tokio::spawn(settler.clone().run());
        let nodes = Arc::new(AtomicU32::new(1));
        let (exchange, exchanged) = watch::channel(None);
        let mut keepers = vec![
            tokio::spawn(leases.keep(store.clone())),
            tokio::spawn(heartbeat(store.clone(), node.clone(), nodes.clone(), exchange)),
            tokio::spawn(health::keep(
                store.clone(),
                bindings.iter().map(|binding| (binding.subscription.name.clone(), binding.id)).collect(),
            )),
        ];
        let mut named: HashMap<Name, Arc<Destination>> = HashMap::new();
        let mut followed: Vec<Followed> = Vec::new();
        let active: Vec<Arc<Active>> = bindings
            .into_iter()
            .map(|binding| {
                let new = || Arc::new(Destination::new(binding.subscription.breaker));
                let destination = match binding.subscription.destination.clone() {
                    Some(name) => named.entry(name).or_insert_with(new).clone(),
                    None => new(),
                };
                let runs = binding.runs.clone();
                let work = Arc::new(Active::new(binding, destination, store.clone()));
                if let Runs::Deployed { plugin, loader } = runs {
                    followed.push(Followed { work: work.clone(), plugin, loader });
                }
                work
            })
            .collect();
        keepers.push(tokio::spawn(poll::run(store.clone(), active.clone(), options.poll_interval)));
        // What claims or begins something, and stops doing so when the drain begins.
        let sweeps = Sweeps::default();
        let mut relays: Vec<JoinHandle<()>> = schedules
            .into_iter()
            .map(|schedule| {
                let (node, sweeps) = (node.id.clone(), sweeps.clone());
                tokio::spawn(scheduler::run(store.clone(), Arc::new(schedule), node, sweeps, watching.clone()))
            })
            .collect();
        // Even with nothing to follow: who deploys waits for every node to say that it is ready.
        let deployer = Deployer::new(store.clone(), node.id.clone(), followed);
        relays.push(tokio::spawn(deployer.run(watching.clone())));
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
                more_may_come: false,
            };
            relays.push(tokio::spawn(relay.run()));
        }
        info!(node = %node.name, id = %node.id, subscriptions = active.len(), "engine started");
        let (store, node, grace) = (store.clone(), node.id, options.grace);
        Self {
            store,
            node,
            active,
            settler,
            stats,
            interrupt,
            draining,
            relays,
            slots,
            keepers,
            settling,
            grace,
            exchanged,
        }
    }

    /// Waits until a heartbeat has found that the database's file was exchanged under this node, and answers that error.
    /// Nothing can be committed from then on, so there is nothing to drain either: what is in hand ends with its leases.
    pub fn exchanged(&self) -> impl Future<Output = StoreError> + use<> {
        let mut exchanged = self.exchanged.clone();
        async move {
            let found = exchanged.wait_for(Option::is_some).await.map(|found| found.clone());
            match found {
                Ok(found) => StoreError::Exchanged(found.unwrap_or_default()),
                // The heart has stopped: the engine drains.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// The node's counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Whether there is a version of the plugin to run a subscription's messages on.
    #[must_use]
    pub fn is_ready(&self, subscription: &Name) -> bool {
        self.active.iter().any(|work| work.subscription.name == *subscription && work.versions.is_ready())
    }

    /// Runs a subscription's messages on something else from now on; what has begun ends where it began. Answers
    /// whether there is such a subscription.
    pub fn swap(&self, subscription: &Name, invoker: Arc<dyn Invoker>) -> bool {
        let found = self.active.iter().find(|work| work.subscription.name == *subscription);
        if let Some(work) = found {
            work.versions.set(Current { active: Some(Arc::new(Version::fixed(invoker))), trial: None });
        }
        found.is_some()
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
        for task in self.keepers {
            task.abort();
            // A heartbeat under way must not come after the end.
            let _ = task.await;
        }
        match tokio::time::timeout(LAST_COMMIT, self.store.sign_off(&self.node)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the node could not sign off; it counts as alive for a while"),
            Err(_) => debug!("the node could not sign off in time; it counts as alive for a while"),
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

async fn heartbeat(
    store: Arc<dyn Store>,
    node: Node,
    nodes: Arc<AtomicU32>,
    exchange: watch::Sender<Option<String>>,
) {
    let mut told = HashSet::new();
    loop {
        match store.heartbeat(&node.id, ALIVE_FOR).await {
            Ok(alive) => nodes.store(alive, Ordering::Relaxed),
            Err(StoreError::Exchanged(what)) => {
                exchange.send_replace(Some(what));
            }
            Err(error) => warn!(%error, "heartbeat failed"),
        }
        match store.greet(&node, ALIVE_FOR).await {
            Ok(namesakes) => {
                for namesake in namesakes {
                    if told.insert(namesake.id.clone()) {
                        warn!(
                            name = %node.name,
                            this = %node.id,
                            this_runs_on = node.place,
                            other = %namesake.id,
                            other_runs_on = namesake.place,
                            "another living node has this node's name: each is counted, but operators cannot tell them \
                             apart; give each a name of its own, by --node or node.name"
                        );
                    }
                }
            }
            Err(error) => debug!(%error, "failed to look for nodes of the same name"),
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}
