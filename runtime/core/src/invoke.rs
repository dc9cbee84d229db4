//! How the engine runs a plugin, whatever runs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use crate::{Effects, Failure, Lane, Message, PluginDigest, StateView};

/// Facts of the attempt that a plugin may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Number of this attempt, from 1.
    pub number: u32,
    /// Attempts allowed in all.
    pub max: u32,
    /// Which lane it came by.
    pub lane: Lane,
    /// Time left for it to run.
    pub timeout: Duration,
    /// An earlier attempt began, or may have begun on a node that ended, so effects outside may have happened.
    pub maybe_duplicate: bool,
}

/// A switch that ends running attempts. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Ends all attempts that hold this switch, and those that begin later.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether attempts should end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One message to be run.
#[derive(Clone)]
pub struct Call {
    /// The message.
    pub message: Arc<Message>,
    /// The attempt.
    pub attempt: Attempt,
    /// Where state is read from.
    pub state: Arc<dyn StateView>,
    /// Ends the attempt early.
    pub interrupt: Interrupt,
}

/// What running a message used of the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxUse {
    /// Time in the sandbox: making the instance, the call, and taking the instance down. Waiting is included.
    pub elapsed: Duration,
    /// The part of it during which a processor was at work for the guest: making the instance, the guest's own code,
    /// and the host functions that it calls, without what they wait for. Of a batch, each message bears its share.
    pub guest: Duration,
    /// Largest size that the memories of the instance had, all together, in bytes. A batch has one instance, and so
    /// has what is reused: there it is the largest since the instance was made.
    pub memory_peak_bytes: u64,
}

/// How running a message ended.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Success, or what the engine can do about the failure.
    pub result: Result<(), Failure>,
    /// What was read, and, on success, what is to be written.
    pub effects: Effects,
    /// Which component ran.
    pub plugin: PluginDigest,
    /// What it cost.
    pub used: SandboxUse,
}

/// Runs the plugin of one subscription.
#[async_trait]
pub trait Invoker: Send + Sync + 'static {
    /// SHA-256 of the plugin.
    fn digest(&self) -> PluginDigest;

    /// Runs the messages and answers for each, in order. A handler gets them one by one; a publisher gets them as one
    /// batch. Never panics, and takes no longer than the timeout for a free instance and again for the attempt.
    async fn invoke(&self, calls: &[Call]) -> Vec<Invocation>;
}
