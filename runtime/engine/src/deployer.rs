//! Follows the deployments in the database: gets versions ready before their turn, swaps them, and says what became of them.
//!
//! Whoever deploys decides in the database, and each node does what is written there. A version is loaded while it is only
//! validated, so that the swap itself waits for nothing. Where a version cannot be loaded, the one before it goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laneway_core::{
    Deployment, DeploymentState, Figures, Invoker, LoadError, Name, NodeReport, OpenPlugin, PluginDigest,
    PluginLoader, Readiness, Store, StoreError,
};
use tokio::sync::{OnceCell, watch};
use tokio::task::{self, JoinError, JoinSet};
use tracing::{debug, error, info, warn};

use crate::active::Active;
use crate::engine::ALIVE_FOR;
use crate::trial::{Judgement, judge};
use crate::versions::{Current, Trial, Version};

/// Longest time between two looks: wake-ups are only for speed.
const LOOK: Duration = Duration::from_secs(1);
/// The same while a version is on trial.
const LOOK_ON_TRIAL: Duration = Duration::from_millis(250);
/// Between two reports in which nothing new is said but figures.
const REPORT: Duration = Duration::from_secs(5);
/// After this long, a version that could not be loaded is tried again: what it lacked may be there now.
const LOAD_AGAIN: Duration = Duration::from_secs(10);
/// The same, in times of what it took to find out: compiling for minutes is not to be done all the time.
const LOAD_AGAIN_TIMES: u32 = 20;
/// Subscriptions that versions are got ready for at once. A version that is opened is held in memory twice meanwhile.
const LOADS_MAX: usize = 4;

/// A subscription whose plugin is deployed.
pub(crate) struct Followed {
    pub work: Arc<Active>,
    /// The plugin's name.
    pub plugin: Name,
    /// What gets its versions ready.
    pub loader: Arc<dyn PluginLoader>,
}

pub(crate) struct Deployer {
    store: Arc<dyn Store>,
    node: Name,
    followed: Vec<Followed>,
    /// The places in `followed` of each plugin.
    places: HashMap<Name, Vec<usize>>,
    /// What the last look saw.
    deployments: Vec<Deployment>,
    opened: HashMap<i64, Vec<Opened>>,
    loaded: HashMap<Place, Loaded>,
    /// What is being loaded, apart from the looks: compiling may take minutes, and must hold up no swap.
    loading: JoinSet<LoadEnd>,
    /// For what each of these is.
    begun: HashMap<task::Id, Place>,
    /// What was reported last, and when.
    reported: (Vec<NodeReport>, Option<Instant>),
}

/// A deployment, and the place in `followed` of what it is loaded for.
type Place = (i64, usize);
/// What became of loading for a place; none if it could not be tried.
type LoadEnd = (Place, Result<Option<Arc<dyn Invoker>>, Unfit>);

/// Why a version cannot run, in words for the operator, and when to try again.
#[derive(Clone)]
struct Unfit {
    error: String,
    again: Instant,
}

impl Unfit {
    fn new(error: String, began: Instant) -> Self {
        Self { error, again: Instant::now() + LOAD_AGAIN.max(began.elapsed() * LOAD_AGAIN_TIMES) }
    }
}

/// A version that was read from the database and compiled, once for all subscriptions that run it.
#[derive(Clone)]
struct Opened {
    digest: PluginDigest,
    loader: Arc<dyn PluginLoader>,
    plugin: Arc<OnceCell<Result<Arc<dyn OpenPlugin>, Unfit>>>,
}

impl Opened {
    /// Whether it could not be opened, and it is time to try again.
    fn is_to_be_tried_again(&self) -> bool {
        matches!(self.plugin.get(), Some(Err(unfit)) if unfit.again < Instant::now())
    }
}

enum Loaded {
    Ready(Arc<Version>),
    Failed(Unfit),
}

impl Loaded {
    fn may_be_of(&self, deployment: &Deployment) -> bool {
        match self {
            Self::Ready(version) => version.digest() == deployment.digest,
            Self::Failed(_) => true,
        }
    }
}

impl Deployer {
    pub fn new(store: Arc<dyn Store>, node: Name, followed: Vec<Followed>) -> Self {
        let mut places: HashMap<Name, Vec<usize>> = HashMap::new();
        for (place, Followed { plugin, .. }) in followed.iter().enumerate() {
            places.entry(plugin.clone()).or_default().push(place);
        }
        Self {
            store,
            node,
            followed,
            places,
            deployments: Vec::new(),
            opened: HashMap::new(),
            loaded: HashMap::new(),
            loading: JoinSet::new(),
            begun: HashMap::new(),
            reported: (Vec::new(), None),
        }
    }

    /// Follows until the node drains.
    pub async fn run(mut self, mut draining: watch::Receiver<bool>) {
        while !*draining.borrow() {
            let pause = match self.follow().await {
                Ok(on_trial) => {
                    if on_trial {
                        LOOK_ON_TRIAL
                    } else {
                        LOOK
                    }
                }
                Err(error) => {
                    warn!(%error, "deployments cannot be followed; trying again");
                    LOOK
                }
            };
            let next_look = tokio::time::Instant::now() + pause;
            loop {
                tokio::select! {
                    () = self.store.deployments_changed() => {}
                    Some(loaded) = self.loading.join_next() => {
                        self.take(loaded);
                        // The next ones begin, by what the last look found. What is loaded goes to work only with a look,
                        // which must not come for each of many.
                        self.load_all();
                        if !self.loading.is_empty() {
                            continue;
                        }
                    }
                    () = tokio::time::sleep_until(next_look) => {}
                    _ = draining.changed() => {}
                }
                break;
            }
        }
        // What still runs is another's to see: this node says no more.
        debug!("deployments are followed no more");
    }

    /// One look, with all that follows. Answers whether a version is on trial.
    async fn follow(&mut self) -> Result<bool, StoreError> {
        let mut deployments = self.store.deployments(None, 0).await?;
        // Of others, it says that it is ready for them.
        deployments.retain(|deployment| {
            deployment.state == DeploymentState::Validated || self.places.contains_key(&deployment.plugin.name)
        });
        self.deployments = deployments;
        while let Some(loaded) = self.loading.try_join_next() {
            self.take(loaded);
        }
        // After a restore or a failover a number may stand for another version than before.
        let known: HashMap<i64, &Deployment> = self.deployments.iter().map(|found| (found.id, found)).collect();
        self.loaded.retain(|(id, _), loaded| known.get(id).is_some_and(|deployment| loaded.may_be_of(deployment)));
        self.opened.retain(|id, opened| {
            opened.retain(|of| {
                known.get(id).is_some_and(|deployment| of.digest == deployment.digest) && !of.is_to_be_tried_again()
            });
            !opened.is_empty()
        });
        self.load_all();
        self.swap();
        self.report().await?;
        let on_trial: Vec<&Deployment> =
            self.deployments.iter().filter(|deployment| deployment.state == DeploymentState::Canary).collect();
        for deployment in &on_trial {
            self.judge(deployment).await?;
        }
        Ok(!on_trial.is_empty())
    }

    /// Begins to load what the last look found, as far as there is room for it.
    fn load_all(&mut self) {
        let deployments = std::mem::take(&mut self.deployments);
        // What is at work first.
        for wanted in [DeploymentState::Active, DeploymentState::Canary, DeploymentState::Validated] {
            for deployment in deployments.iter().filter(|deployment| deployment.state == wanted) {
                self.load(deployment);
            }
        }
        self.deployments = deployments;
    }

    /// Begins to get a version ready for each subscription that runs its plugin.
    fn load(&mut self, deployment: &Deployment) {
        let places = self.places.get(&deployment.plugin.name).cloned().unwrap_or_default();
        for place in places {
            let key = (deployment.id, place);
            if self.begun.values().any(|begun| *begun == key) {
                continue;
            }
            match self.loaded.get(&key) {
                Some(Loaded::Failed(unfit)) if unfit.again < Instant::now() => {}
                Some(_) => continue,
                None => {}
            }
            if let Some(invoker) = self.loaded_before(deployment, place) {
                self.loaded.insert(key, Loaded::Ready(Arc::new(Version::deployed(deployment.id, invoker))));
                continue;
            }
            let opened = self.opened(deployment, place);
            let is_being_opened = opened.plugin.get().is_none() && self.begun.values().any(|(id, _)| *id == key.0);
            if is_being_opened || self.loading.len() >= LOADS_MAX {
                // There is more to do when the next one ends.
                return;
            }
            let subscription = self.followed[place].work.subscription.name.clone();
            let (store, deployment) = (self.store.clone(), deployment.clone());
            let task =
                self.loading.spawn(async move { (key, load(&*store, &opened, &subscription, &deployment).await) });
            self.begun.insert(task.id(), key);
        }
    }

    /// The version as it is opened for all subscriptions of this loader: by now, or by whoever comes first.
    fn opened(&mut self, deployment: &Deployment, place: usize) -> Opened {
        let loader = self.followed[place].loader.clone();
        let all = self.opened.entry(deployment.id).or_default();
        // Else its old error would be the answer at once, again and again.
        all.retain(|of| !of.is_to_be_tried_again());
        if let Some(opened) = all.iter().find(|opened| Arc::ptr_eq(&opened.loader, &loader)) {
            return opened.clone();
        }
        let opened = Opened { digest: deployment.digest.clone(), loader, plugin: Arc::default() };
        all.push(opened.clone());
        opened
    }

    /// Takes up what has been loaded.
    fn take(&mut self, loaded: Result<LoadEnd, JoinError>) {
        let (key, result) = match loaded {
            Ok((key, result)) => {
                self.begun.retain(|_, begun| *begun != key);
                (key, result)
            }
            Err(error) => match self.begun.remove(&error.id()) {
                Some(key) => (key, Err(Unfit::new(format!("loading it broke the host: {error}"), Instant::now()))),
                None => return,
            },
        };
        let (deployment, place) = key;
        let subscription = &self.followed[place].work.subscription.name;
        let loaded = match result {
            // The next look begins again.
            Ok(None) => return,
            Ok(Some(invoker)) => {
                info!(%subscription, deployment, plugin = %invoker.digest(), "plugin loaded");
                Loaded::Ready(Arc::new(Version::deployed(deployment, invoker)))
            }
            Err(Unfit { error, again }) => {
                error!(%subscription, deployment, error, "plugin cannot run here");
                Loaded::Failed(Unfit { error: format!("subscription `{subscription}`: {error}"), again })
            }
        };
        self.loaded.insert(key, loaded);
    }

    /// The same bytes from another deployment, as after a rollback.
    fn loaded_before(&self, deployment: &Deployment, place: usize) -> Option<Arc<dyn Invoker>> {
        let found = self.loaded.iter().find_map(|((_, other), loaded)| match loaded {
            Loaded::Ready(version) if *other == place && version.digest() == deployment.digest => Some(version),
            _ => None,
        });
        found.map(|version| version.invoker.clone())
    }

    fn ready(&self, deployment: Option<&Deployment>, place: usize) -> Option<Arc<Version>> {
        match self.loaded.get(&(deployment?.id, place)) {
            Some(Loaded::Ready(version)) => Some(version.clone()),
            _ => None,
        }
    }

    /// Puts to work what the database says, as far as it is loaded.
    fn swap(&self) {
        let (mut active_of, mut canary_of) = (HashMap::new(), HashMap::new());
        for deployment in &self.deployments {
            let name = &deployment.plugin.name;
            match deployment.state {
                DeploymentState::Active => {
                    active_of.entry(name).or_insert(deployment);
                }
                DeploymentState::Canary => {
                    canary_of.entry(name).or_insert(deployment);
                }
                _ => {}
            }
        }
        for (place, Followed { work, plugin, .. }) in self.followed.iter().enumerate() {
            let (active, canary) = (active_of.get(plugin).copied(), canary_of.get(plugin).copied());
            let current = work.versions.current();
            let next_active = match (active, self.ready(active, place)) {
                (Some(_), None) => current.active.clone(),
                (_, ready) => ready,
            };
            let trial = current.trial.as_ref();
            let next_trial = match (canary.and_then(|deployment| deployment.canary), self.ready(canary, place)) {
                (Some(canary), Some(version)) => {
                    match trial.filter(|trial| Arc::ptr_eq(&trial.version, &version)) {
                        Some(same) => Some(same.clone()),
                        None => {
                            let before = next_active.as_ref().map(|active| active.figures()).unwrap_or_default();
                            Some(Trial { version, canary, before })
                        }
                    }
                }
                _ => None,
            };
            let is_same = |a: Option<&Arc<Version>>, b: Option<&Arc<Version>>| match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            let trial_version = trial.map(|trial| &trial.version);
            if is_same(current.active.as_ref(), next_active.as_ref())
                && is_same(trial_version, next_trial.as_ref().map(|trial| &trial.version))
            {
                continue;
            }
            if next_active.is_none() {
                info!(subscription = %work.subscription.name, "no version is deployed; messages wait");
            }
            info!(
                subscription = %work.subscription.name,
                active = next_active.as_ref().and_then(|version| version.deployment),
                canary = next_trial.as_ref().and_then(|trial| trial.version.deployment),
                "versions swapped"
            );
            work.versions.set(Current { active: next_active, trial: next_trial });
        }
    }

    /// Says what this node has of each deployment, if that is news.
    async fn report(&mut self) -> Result<(), StoreError> {
        let reports: Vec<NodeReport> = self.deployments.iter().filter_map(|d| self.report_of(d)).collect();
        let (last, at) = &self.reported;
        let known: HashMap<i64, &NodeReport> = last.iter().map(|report| (report.deployment, report)).collect();
        let is_known = |report: &NodeReport| {
            known.get(&report.deployment).is_some_and(|other| {
                other.readiness == report.readiness && other.is_at_work() == report.is_at_work()
            })
        };
        let on_trial = reports.iter().any(|report| report.beside.is_some());
        let is_due = at.is_none_or(|at| at.elapsed() >= REPORT) || on_trial;
        if reports.is_empty() || (!is_due && reports.len() == last.len() && reports.iter().all(is_known)) {
            return Ok(());
        }
        self.store.report(&self.node, &reports, ALIVE_FOR).await?;
        self.reported = (reports, Some(Instant::now()));
        Ok(())
    }

    fn report_of(&self, deployment: &Deployment) -> Option<NodeReport> {
        let mut report = NodeReport {
            deployment: deployment.id,
            readiness: Readiness::Ready,
            error: None,
            current: false,
            in_flight: 0,
            figures: Figures::default(),
            beside: None,
        };
        if deployment.state == DeploymentState::Staged {
            return None;
        }
        for &place in self.places.get(&deployment.plugin.name).into_iter().flatten() {
            let current = self.followed[place].work.versions.current();
            match self.loaded.get(&(deployment.id, place)) {
                Some(Loaded::Ready(version)) => {
                    let is_current =
                        |other: Option<&Arc<Version>>| other.is_some_and(|other| Arc::ptr_eq(other, version));
                    let trial = current.trial.as_ref();
                    report.current |=
                        is_current(current.active.as_ref()) || is_current(trial.map(|trial| &trial.version));
                    report.in_flight += version.in_flight();
                    report.figures.add(&version.figures());
                    if let (Some(trial), Some(active)) = (trial, &current.active)
                        && Arc::ptr_eq(&trial.version, version)
                    {
                        let since = active.figures().since(&trial.before);
                        report.beside.get_or_insert_with(Figures::default).add(&since);
                    }
                }
                Some(Loaded::Failed(Unfit { error, .. })) => {
                    report.readiness = Readiness::Failed;
                    report.error = Some(error.clone());
                }
                // It says nothing until it can tell. What is out is not loaded any more.
                None if deployment.state != DeploymentState::Draining => return None,
                None => {}
            }
        }
        Some(report)
    }

    /// Judges a trial by what all nodes say of it, and does what follows. Whichever node comes first, does.
    async fn judge(&self, deployment: &Deployment) -> Result<(), StoreError> {
        let Some(canary) = &deployment.canary else { return Ok(()) };
        let (mut on_trial, mut beside, mut unfit) = (Figures::default(), Figures::default(), None);
        for view in self.store.reports(&[deployment.id], ALIVE_FOR).await? {
            on_trial.add(&view.report.figures);
            beside.add(&view.report.beside.unwrap_or_default());
            if view.alive && view.report.readiness == Readiness::Failed {
                unfit =
                    Some(format!("node `{}` cannot run it: {}", view.node, view.report.error.unwrap_or_default()));
            }
        }
        let judgement = match unfit {
            Some(why) => Judgement::RollBack(why),
            None => judge(canary, deployment.in_state_for, &on_trial, &beside),
        };
        let (to, reason) = match judgement {
            Judgement::Wait => return Ok(()),
            Judgement::Promote => (DeploymentState::Active, "it held its trial".to_owned()),
            Judgement::RollBack(why) => (DeploymentState::Draining, format!("rolled back: {why}")),
        };
        if self.store.advance(deployment.id, DeploymentState::Canary, to, Some(&reason)).await? {
            match to {
                DeploymentState::Active => info!(plugin = %deployment.plugin, reason, "canary is active now"),
                _ => warn!(plugin = %deployment.plugin, reason, "canary is out"),
            }
        }
        Ok(())
    }
}

/// Gets a version ready for a subscription. See [`LoadEnd`].
async fn load(
    store: &dyn Store,
    opened: &Opened,
    subscription: &Name,
    deployment: &Deployment,
) -> Result<Option<Arc<dyn Invoker>>, Unfit> {
    let began = Instant::now();
    let plugin = match opened.plugin.get_or_try_init(|| open(store, &*opened.loader, deployment)).await {
        Ok(Ok(plugin)) => plugin,
        Ok(Err(unfit)) => return Err(unfit.clone()),
        Err(NotTried) => return Ok(None),
    };
    match plugin.load(subscription).await {
        Ok(invoker) => Ok(Some(invoker)),
        Err(LoadError::Unfit(error)) => Err(Unfit::new(error, began)),
        Err(LoadError::Unavailable(error)) => {
            not_now(&error, deployment).await;
            Ok(None)
        }
    }
}

/// This node could not try, through no fault of the version's: nobody is to fail or roll back a deployment for it.
struct NotTried;

/// Reads a version from the database, and compiles it.
async fn open(
    store: &dyn Store,
    loader: &dyn PluginLoader,
    deployment: &Deployment,
) -> Result<Result<Arc<dyn OpenPlugin>, Unfit>, NotTried> {
    let began = Instant::now();
    let unfit = |error| Ok(Err(Unfit::new(error, began)));
    let stored = match store.plugin(&deployment.plugin).await {
        Ok(Some(stored)) => stored,
        Ok(None) => {
            return unfit(
                "it is not stored in the database any more; push it again, or deploy another version".to_owned(),
            );
        }
        Err(error) => {
            warn!(%error, plugin = %deployment.plugin, "a plugin cannot be read from the database; trying again");
            tokio::time::sleep(LOOK).await;
            return Err(NotTried);
        }
    };
    if stored.digest != deployment.digest {
        return unfit(format!(
            "the database holds other bytes under its name (digest {}) than were deployed (digest {})",
            stored.digest, deployment.digest
        ));
    }
    match loader.open(stored).await {
        Ok(plugin) => Ok(Ok(plugin)),
        Err(LoadError::Unfit(error)) => unfit(error),
        Err(LoadError::Unavailable(error)) => {
            not_now(&error, deployment).await;
            Err(NotTried)
        }
    }
}

async fn not_now(error: &str, deployment: &Deployment) {
    warn!(error, plugin = %deployment.plugin, "a plugin cannot be loaded now; trying again");
    tokio::time::sleep(LOAD_AGAIN).await;
}
