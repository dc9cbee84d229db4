//! A host, calls and a state to run guests with.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use laneway_core::{
    Attempt, Call, Failure, Header, Interrupt, Invocation, Invoker, Lane, Message, MessageId, Name, Priority,
    Reason, StateEntry, StateError, StateVersion, StateView, SubscriptionKind, Topic, TopicPattern,
};
use laneway_host::{Grants, Host, HostOptions, Limits, Plugin, PluginError, PluginSpec};

use crate::guest::Guest;

/// One host for all tests, with a pool of 32 instances.
pub fn host() -> Arc<Host> {
    static HOST: OnceLock<Arc<Host>> = OnceLock::new();
    Arc::clone(HOST.get_or_init(|| {
        let options = HostOptions { instances_max: 32, memory_bytes_max: 256 << 20, ..HostOptions::default() };
        Host::new(options).unwrap()
    }))
}

pub fn spec(kind: SubscriptionKind) -> PluginSpec {
    PluginSpec {
        name: Name::parse("test").unwrap(),
        kind,
        config: BTreeMap::new(),
        grants: Grants { emit: vec![TopicPattern::parse(">").unwrap()], ..Grants::default() },
        limits: Limits::default(),
        reuse: false,
        payload_bytes_max: 1000,
    }
}

pub fn handler(guest: &Guest) -> Arc<Plugin> {
    limited(guest, Limits::default())
}

pub fn limited(guest: &Guest, limits: Limits) -> Arc<Plugin> {
    let spec = PluginSpec { limits, ..spec(SubscriptionKind::Handler) };
    host().plugin(&guest.build(), spec).unwrap()
}

pub fn refused(bytes: &[u8], kind: SubscriptionKind) -> PluginError {
    host().plugin(bytes, spec(kind)).unwrap_err()
}

/// State in memory.
#[derive(Default)]
pub struct MemoryState {
    pub entries: Mutex<HashMap<String, StateEntry>>,
    /// How long a read takes.
    pub delay: Duration,
    pub broken: bool,
}

impl MemoryState {
    pub fn with(key: &str, value: &'static [u8], version: i64) -> Arc<Self> {
        let state = Self::default();
        let entry = StateEntry { value: Bytes::from_static(value), version: StateVersion(version) };
        state.entries.lock().unwrap().insert(key.to_owned(), entry);
        Arc::new(state)
    }
}

#[async_trait]
impl StateView for MemoryState {
    async fn get(&self, key: &str) -> Result<Option<StateEntry>, StateError> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if self.broken {
            return Err(StateError { text: "the disk is on fire".to_owned(), transient: true });
        }
        Ok(self.entries.lock().unwrap().get(key).cloned())
    }

    async fn counter(&self, _: &str) -> Result<i64, StateError> {
        Ok(42)
    }
}

pub fn message() -> Message {
    Message {
        id: MessageId::parse("m-1").unwrap(),
        topic: Topic::parse("orders.created").unwrap(),
        key: Some("customer-7".to_owned()),
        priority: Priority::HIGH,
        payload: Bytes::from_static(b"{\"total\":42}"),
        content_type: "application/json".to_owned(),
        headers: vec![Header { name: "trace".to_owned(), value: "abc".to_owned() }],
        tenant: Some("acme".to_owned()),
    }
}

pub fn call() -> Call {
    call_on(Arc::new(MemoryState::default()))
}

pub fn call_on(state: Arc<MemoryState>) -> Call {
    Call {
        message: Arc::new(message()),
        attempt: Attempt {
            number: 1,
            max: 5,
            lane: Lane::Primary,
            timeout: Duration::from_secs(20),
            maybe_duplicate: false,
        },
        state,
        interrupt: Interrupt::default(),
    }
}

pub fn timed(timeout: Duration) -> Call {
    let mut call = call();
    call.attempt.timeout = timeout;
    call
}

pub async fn run(plugin: &Plugin, call: Call) -> Invocation {
    let mut done = plugin.invoke(&[call]).await;
    assert_eq!(done.len(), 1);
    done.remove(0)
}

/// The text of an attempt that used what it is not granted.
pub fn denied(invocation: &Invocation) -> String {
    match &invocation.result {
        Err(Failure::Misconfigured { reason, error }) if *reason == Reason::DENIED => error.as_str().to_owned(),
        other => panic!("expected a denial, found {other:?}"),
    }
}

/// The reason and text of an attempt that the host ended.
pub fn retried(invocation: &Invocation) -> (Reason, String) {
    match &invocation.result {
        Err(Failure::Retry { reason, error }) => (reason.clone(), error.as_str().to_owned()),
        other => panic!("expected a failure to be retried, found {other:?}"),
    }
}

/// What is logged by this thread.
#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        let captured = self.clone();
        let writer = move || captured.clone();
        tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(writer).finish()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
