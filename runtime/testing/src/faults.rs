//! A store whose calls fail, as a test says.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use laneway_core::{
    AppliedTopology, Arrears, Batch, Change, ClaimRequest, Cleanup, DeadLetterAction, DeadLetterFilter,
    DeadLetterSelection, DeadLetterView, Declared, DeliveryId, Deployment, DeploymentState, Enqueued, Finding,
    Health, Held, LeaseToken, Maintenance, MessageFilter, MessageId, MessageView, Name, NewDeployment, NewMessage,
    NewPlugin, Node, NodeReport, NodeReportView, PluginVersion, PluginView, Plugins, Renewal, Replay, Replayable,
    RunOutcome, SchedulePosition, ScheduleRunView, ScheduleRuns, SettleReport, Settlement, StateEntry, Status,
    Step, Store, StoreError, StoredPlugin, SubscriptionId, Topology, Trouble,
};

use crate::Random;

/// A call of the store that can be made to fail. [`Store::woken`] cannot: it may wake at any time anyhow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Store::apply`]
    Apply,
    /// [`Store::topology`]
    Topology,
    /// [`Store::enqueue`]
    Enqueue,
    /// [`Store::claim`]
    Claim,
    /// [`Store::begin`]
    Begin,
    /// [`Store::renew`]
    Renew,
    /// [`Store::settle`]
    Settle,
    /// [`Store::upcoming`]
    Upcoming,
    /// [`Store::next_due`]
    NextDue,
    /// [`Store::state`]
    State,
    /// [`Store::counter`]
    Counter,
    /// [`Store::status`]
    Status,
    /// [`Store::messages`]
    Messages,
    /// [`Store::message`]
    Message,
    /// [`Store::dead_letters`]
    DeadLetters,
    /// [`Store::heartbeat`], [`Store::greet`] and [`Store::sign_off`]
    Heartbeat,
    /// [`Maintenance::now`]
    Now,
    /// [`Maintenance::clean`] and [`Maintenance::cleanable`]
    Clean,
    /// [`Maintenance::act_on_dead_letters`] and what is asked before
    ActOnDeadLetters,
    /// [`Maintenance::replay`] and [`Maintenance::replayable`]
    Replay,
    /// [`Maintenance::cancel`] and [`Maintenance::reschedule`]
    Change,
    /// The calls of [`Health`]
    Health,
    /// [`ScheduleRuns::declare_schedule`], [`ScheduleRuns::schedule_position`] and [`ScheduleRuns::schedule_runs`]
    Schedule,
    /// [`ScheduleRuns::begin_run`]
    BeginRun,
    /// [`ScheduleRuns::end_run`]
    EndRun,
    /// The calls of [`Plugins`] but those below
    Plugins,
    /// [`Plugins::plugin`]
    Plugin,
    /// [`Plugins::deployments`]
    Deployments,
    /// [`Plugins::report`]
    Report,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails as unavailable; the database never saw it.
    Before,
    /// The call is done, and committed, but its answer is lost: it fails as unavailable.
    After,
    /// The call is done after this long.
    Delay(Duration),
    /// The call is done at once, and its answer comes after this long.
    Late(Duration),
    /// The call fails as [`StoreError::Other`], which trying again does not mend; the database never saw it.
    Broken,
}

/// How likely random faults are, each from 0 to 1, in this order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Odds {
    /// Of [`Fault::Before`].
    pub before: f64,
    /// Of [`Fault::After`].
    pub after: f64,
    /// Of [`Fault::Delay`].
    pub delay: f64,
    /// Longest delay.
    pub delay_max: Duration,
}

/// Delegates to another store, and fails as a script, a seed or [`FaultyStore::cut`] says. The script comes first.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    plan: Mutex<Plan>,
    cut: AtomicBool,
    injected: AtomicU64,
}

struct Plan {
    script: Vec<(Operation, Fault)>,
    random: Random,
    odds: Odds,
    only: Option<Vec<Operation>>,
    calls: HashMap<Operation, u64>,
}

impl FaultyStore {
    /// A store without faults, until a script or a cut says otherwise.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self::random(inner, 0, Odds::default())
    }

    /// A store with random faults. The order of concurrent calls decides which of them fails, so a seed replays a
    /// run exactly only where the calls come in one order.
    #[must_use]
    pub fn random(inner: Arc<dyn Store>, seed: u64, odds: Odds) -> Self {
        let plan = Plan { script: Vec::new(), random: Random::new(seed), odds, only: None, calls: HashMap::new() };
        Self { inner, plan: Mutex::new(plan), cut: AtomicBool::new(false), injected: AtomicU64::new(0) }
    }

    /// Keeps random faults to these operations.
    #[must_use]
    pub fn only(self, operations: &[Operation]) -> Self {
        self.plan().only = Some(operations.to_vec());
        self
    }

    /// The next call of the operation that no earlier line of the script is for goes wrong like this.
    pub fn script(&self, operation: Operation, fault: Fault) {
        self.plan().script.push((operation, fault));
    }

    /// From now on each call fails before the database sees it, as while the database is away.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// The database is back.
    pub fn restore(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }

    /// From now on no fault is random; the script and cuts go on.
    pub fn calm(&self) {
        self.plan().odds = Odds::default();
    }

    /// Faults so far.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.injected.load(Ordering::SeqCst)
    }

    /// Calls of an operation so far, failed ones included.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.plan().calls.get(&operation).copied().unwrap_or(0)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self, operation: Operation) -> Option<Fault> {
        let mut plan = self.plan();
        *plan.calls.entry(operation).or_default() += 1;
        if self.cut.load(Ordering::SeqCst) {
            return Some(Fault::Before);
        }
        if let Some(position) = plan.script.iter().position(|&(scripted, _)| scripted == operation) {
            return Some(plan.script.remove(position).1);
        }
        if plan.only.as_ref().is_some_and(|only| !only.contains(&operation)) {
            return None;
        }
        let odds = plan.odds;
        let draw = plan.random.unit();
        if draw < odds.before {
            Some(Fault::Before)
        } else if draw < odds.before + odds.after {
            Some(Fault::After)
        } else if draw < odds.before + odds.after + odds.delay {
            Some(Fault::Delay(odds.delay_max.mul_f64(plan.random.unit())))
        } else {
            None
        }
    }

    async fn with_fault<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let fault = self.next_fault(operation);
        self.injected.fetch_add(u64::from(fault.is_some()), Ordering::SeqCst);
        match fault {
            None => call.await,
            Some(Fault::Before) => Err(StoreError::Unavailable(format!("injected before {operation:?}"))),
            Some(Fault::Broken) => Err(StoreError::Other(format!("injected before {operation:?}"))),
            Some(Fault::After) => {
                call.await?;
                Err(StoreError::Unavailable(format!("injected after {operation:?}")))
            }
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                call.await
            }
            Some(Fault::Late(delay)) => {
                let answer = call.await;
                tokio::time::sleep(delay).await;
                answer
            }
        }
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn apply(&self, topology: &Topology) -> Result<AppliedTopology, StoreError> {
        self.with_fault(Operation::Apply, self.inner.apply(topology)).await
    }

    async fn topology(&self) -> Result<Option<AppliedTopology>, StoreError> {
        self.with_fault(Operation::Topology, self.inner.topology()).await
    }

    async fn enqueue(&self, messages: &[NewMessage]) -> Result<Vec<Enqueued>, StoreError> {
        self.with_fault(Operation::Enqueue, self.inner.enqueue(messages)).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Option<Batch>, StoreError> {
        self.with_fault(Operation::Claim, self.inner.claim(request)).await
    }

    async fn begin(&self, deliveries: &[Held]) -> Result<Vec<Held>, StoreError> {
        self.with_fault(Operation::Begin, self.inner.begin(deliveries)).await
    }

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<(LeaseToken, DeliveryId)>, StoreError> {
        self.with_fault(Operation::Renew, self.inner.renew(renewals)).await
    }

    async fn settle(&self, group: &[Settlement]) -> Result<SettleReport, StoreError> {
        self.with_fault(Operation::Settle, self.inner.settle(group)).await
    }

    async fn upcoming(&self) -> Result<Vec<(SubscriptionId, Duration)>, StoreError> {
        self.with_fault(Operation::Upcoming, self.inner.upcoming()).await
    }

    async fn next_due(&self, subscription: SubscriptionId) -> Result<Option<Duration>, StoreError> {
        self.with_fault(Operation::NextDue, self.inner.next_due(subscription)).await
    }

    async fn woken(&self, subscription: SubscriptionId) {
        self.inner.woken(subscription).await;
    }

    async fn state(&self, namespace: &Name, key: &str) -> Result<Option<StateEntry>, StoreError> {
        self.with_fault(Operation::State, self.inner.state(namespace, key)).await
    }

    async fn counter(&self, namespace: &Name, key: &str) -> Result<i64, StoreError> {
        self.with_fault(Operation::Counter, self.inner.counter(namespace, key)).await
    }

    async fn status(&self) -> Result<Status, StoreError> {
        self.with_fault(Operation::Status, self.inner.status()).await
    }

    async fn messages(&self, filter: &MessageFilter) -> Result<Vec<MessageView>, StoreError> {
        self.with_fault(Operation::Messages, self.inner.messages(filter)).await
    }

    async fn message(&self, id: &MessageId) -> Result<Option<MessageView>, StoreError> {
        self.with_fault(Operation::Message, self.inner.message(id)).await
    }

    async fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetterView>, StoreError> {
        self.with_fault(Operation::DeadLetters, self.inner.dead_letters(filter)).await
    }

    async fn heartbeat(&self, name: &Name, alive_for: Duration) -> Result<u32, StoreError> {
        self.with_fault(Operation::Heartbeat, self.inner.heartbeat(name, alive_for)).await
    }

    async fn greet(&self, node: &Node, alive_for: Duration) -> Result<Vec<Node>, StoreError> {
        self.with_fault(Operation::Heartbeat, self.inner.greet(node, alive_for)).await
    }

    async fn sign_off(&self, name: &Name) -> Result<(), StoreError> {
        self.with_fault(Operation::Heartbeat, self.inner.sign_off(name)).await
    }

    fn round_trips(&self) -> u64 {
        self.inner.round_trips()
    }
}

#[async_trait]
impl Maintenance for FaultyStore {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.with_fault(Operation::Now, self.inner.now()).await
    }

    async fn cleanable(&self, what: Cleanup, before: Timestamp) -> Result<u64, StoreError> {
        self.with_fault(Operation::Clean, self.inner.cleanable(what, before)).await
    }

    async fn clean(&self, what: Cleanup, before: Timestamp, from: i64, limit: u32) -> Result<Step, StoreError> {
        self.with_fault(Operation::Clean, self.inner.clean(what, before, from, limit)).await
    }

    async fn arrears(&self, what: Cleanup, from: i64) -> Result<Arrears, StoreError> {
        self.with_fault(Operation::Clean, self.inner.arrears(what, from)).await
    }

    async fn count_dead_letters(&self, selection: &DeadLetterSelection) -> Result<u64, StoreError> {
        self.with_fault(Operation::ActOnDeadLetters, self.inner.count_dead_letters(selection)).await
    }

    async fn newest_dead_letter(&self) -> Result<i64, StoreError> {
        self.with_fault(Operation::ActOnDeadLetters, self.inner.newest_dead_letter()).await
    }

    async fn act_on_dead_letters(
        &self,
        action: DeadLetterAction,
        selection: &DeadLetterSelection,
        from: i64,
        newest: i64,
        limit: u32,
    ) -> Result<Step, StoreError> {
        let act = self.inner.act_on_dead_letters(action, selection, from, newest, limit);
        self.with_fault(Operation::ActOnDeadLetters, act).await
    }

    async fn replay(&self, replay: &Replay, from: i64, limit: u32) -> Result<Step, StoreError> {
        self.with_fault(Operation::Replay, self.inner.replay(replay, from, limit)).await
    }

    async fn replayable(&self, replay: &Replay) -> Result<Replayable, StoreError> {
        self.with_fault(Operation::Replay, self.inner.replayable(replay)).await
    }

    async fn cancel(&self, message: &MessageId) -> Result<Change, StoreError> {
        self.with_fault(Operation::Change, self.inner.cancel(message)).await
    }

    async fn reschedule(&self, message: &MessageId, due: Timestamp) -> Result<Change, StoreError> {
        self.with_fault(Operation::Change, self.inner.reschedule(message, due)).await
    }
}

#[async_trait]
impl Health for FaultyStore {
    async fn look(&self) -> Result<Vec<Finding>, StoreError> {
        self.with_fault(Operation::Health, self.inner.look()).await
    }

    async fn examine(&self) -> Result<Vec<Finding>, StoreError> {
        self.with_fault(Operation::Health, self.inner.examine()).await
    }

    async fn mend(&self, trouble: Trouble, from: i64, limit: u32) -> Result<Step, StoreError> {
        self.with_fault(Operation::Health, self.inner.mend(trouble, from, limit)).await
    }
}

#[async_trait]
impl ScheduleRuns for FaultyStore {
    async fn declare_schedule(
        &self,
        schedule: &Name,
        rule: &str,
        node: &Name,
        alive_for: Duration,
    ) -> Result<Declared, StoreError> {
        let declaring = self.inner.declare_schedule(schedule, rule, node, alive_for);
        self.with_fault(Operation::Schedule, declaring).await
    }

    async fn schedule_position(&self, schedule: &Name) -> Result<Option<SchedulePosition>, StoreError> {
        self.with_fault(Operation::Schedule, self.inner.schedule_position(schedule)).await
    }

    async fn begin_run(
        &self,
        schedule: &Name,
        rule: Option<&str>,
        fire_at: Timestamp,
        node: &Name,
        message: Option<&NewMessage>,
    ) -> Result<bool, StoreError> {
        self.with_fault(Operation::BeginRun, self.inner.begin_run(schedule, rule, fire_at, node, message)).await
    }

    async fn end_run(
        &self,
        schedule: &Name,
        fire_at: Timestamp,
        outcome: RunOutcome,
        detail: &str,
    ) -> Result<(), StoreError> {
        self.with_fault(Operation::EndRun, self.inner.end_run(schedule, fire_at, outcome, detail)).await
    }

    async fn schedule_runs(&self, schedule: &Name, limit: u32) -> Result<Vec<ScheduleRunView>, StoreError> {
        self.with_fault(Operation::Schedule, self.inner.schedule_runs(schedule, limit)).await
    }
}

#[async_trait]
impl Plugins for FaultyStore {
    async fn push_plugin(&self, plugin: &NewPlugin) -> Result<bool, StoreError> {
        self.with_fault(Operation::Plugins, self.inner.push_plugin(plugin)).await
    }

    async fn plugins(&self) -> Result<Vec<PluginView>, StoreError> {
        self.with_fault(Operation::Plugins, self.inner.plugins()).await
    }

    async fn plugin(&self, plugin: &PluginVersion) -> Result<Option<StoredPlugin>, StoreError> {
        self.with_fault(Operation::Plugin, self.inner.plugin(plugin)).await
    }

    async fn remove_plugin(&self, plugin: &PluginVersion) -> Result<bool, StoreError> {
        self.with_fault(Operation::Plugins, self.inner.remove_plugin(plugin)).await
    }

    async fn stage(&self, deployment: &NewDeployment) -> Result<i64, StoreError> {
        self.with_fault(Operation::Plugins, self.inner.stage(deployment)).await
    }

    async fn advance(
        &self,
        deployment: i64,
        from: DeploymentState,
        to: DeploymentState,
        reason: Option<&str>,
    ) -> Result<bool, StoreError> {
        self.with_fault(Operation::Plugins, self.inner.advance(deployment, from, to, reason)).await
    }

    async fn deployments(&self, plugin: Option<&Name>, ended: u32) -> Result<Vec<Deployment>, StoreError> {
        self.with_fault(Operation::Deployments, self.inner.deployments(plugin, ended)).await
    }

    async fn deployments_changed(&self) {
        self.inner.deployments_changed().await;
    }

    async fn report(&self, node: &Name, reports: &[NodeReport], alive_for: Duration) -> Result<(), StoreError> {
        self.with_fault(Operation::Report, self.inner.report(node, reports, alive_for)).await
    }

    async fn reports(&self, deployments: &[i64], alive_for: Duration) -> Result<Vec<NodeReportView>, StoreError> {
        self.with_fault(Operation::Report, self.inner.reports(deployments, alive_for)).await
    }

    async fn nodes_alive(&self, alive_for: Duration) -> Result<Vec<Name>, StoreError> {
        self.with_fault(Operation::Plugins, self.inner.nodes_alive(alive_for)).await
    }

    async fn note_grants(&self, node: &Name, grants: &[(Name, String)]) -> Result<u32, StoreError> {
        self.with_fault(Operation::Plugins, self.inner.note_grants(node, grants)).await
    }
}
