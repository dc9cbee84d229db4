//! A store whose calls fail, as a test says.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use laneway_core::{
    AppliedTopology, Batch, ClaimRequest, DeadLetterFilter, DeadLetterView, DeliveryId, Enqueued, LeaseToken,
    MessageFilter, MessageId, MessageView, Name, NewMessage, Renewal, SettleReport, Settlement, StateEntry, Status,
    Store, StoreError, SubscriptionId, Topology,
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
    /// [`Store::renew`]
    Renew,
    /// [`Store::settle`]
    Settle,
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
    /// [`Store::heartbeat`]
    Heartbeat,
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

    async fn renew(&self, renewals: &[Renewal]) -> Result<Vec<(LeaseToken, DeliveryId)>, StoreError> {
        self.with_fault(Operation::Renew, self.inner.renew(renewals)).await
    }

    async fn settle(&self, group: &[Settlement]) -> Result<SettleReport, StoreError> {
        self.with_fault(Operation::Settle, self.inner.settle(group)).await
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

    async fn heartbeat(&self, name: &Name) -> Result<(), StoreError> {
        self.with_fault(Operation::Heartbeat, self.inner.heartbeat(name)).await
    }

    fn round_trips(&self) -> u64 {
        self.inner.round_trips()
    }
}
