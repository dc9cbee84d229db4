//! How long an attempt may go on, and waiting within that.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use laneway_core::{Interrupt, StateError};

/// How often a waiting host function looks at the interrupt: a switch without a wake-up of its own.
const INTERRUPT_POLL: Duration = Duration::from_millis(10);

/// How long a guest may call the host again and again before others have their turn.
const TURN: Duration = Duration::from_millis(2);

/// Why the host ends a guest. Travels through the guest as the cause of its trap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the attempt ran past its timeout")]
    Timeout,
    #[error("the attempt was interrupted")]
    Interrupted,
    #[error("a key of the state changed while the attempt read it")]
    Stale,
    #[error("{0}")]
    EffectLimit(String),
    #[error("the plugin kept logging after {0} lines were taken")]
    LogFlood(u32),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{0}")]
    Denied(String),
    #[error("effects are there for messages only, not for the check of the configuration")]
    NoMessage,
}

/// When an attempt ends at the latest.
pub(crate) struct Bounds {
    pub(crate) deadline: Instant,
    timeout: Duration,
    interrupts: Vec<Interrupt>,
    /// When the guest last let others have their turn.
    turn: Instant,
}

impl Bounds {
    /// The timeout counts from now.
    pub(crate) fn new(timeout: Duration, interrupts: Vec<Interrupt>) -> Self {
        let now = Instant::now();
        // A timeout past the end of the clock is none; a day stands for it.
        let deadline = now.checked_add(timeout).unwrap_or_else(|| now + Duration::from_secs(86_400));
        Self { deadline, timeout, interrupts, turn: now }
    }

    /// The same timeout, counted from now again.
    pub(crate) fn restarted(self) -> Self {
        Self::new(self.timeout, self.interrupts)
    }

    /// The same for another run.
    pub(crate) fn again(&self) -> Self {
        Self::new(self.timeout, self.interrupts.clone())
    }

    /// Time that is left.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Fails once the attempt has to end.
    pub(crate) fn check(&self) -> Result<(), Ended> {
        self.check_at(Instant::now())
    }

    /// Whether others are to have their turn now. Fails once the attempt has to end.
    pub(crate) fn has_turn_ended(&mut self) -> Result<bool, Ended> {
        let now = Instant::now();
        self.check_at(now)?;
        let ended = now.duration_since(self.turn) >= TURN;
        if ended {
            self.turn = now;
        }
        Ok(ended)
    }

    /// Others have their turn now.
    pub(crate) fn end_turn(&mut self) {
        self.turn = Instant::now();
    }

    /// Fails once somebody has interrupted the attempt.
    pub(crate) fn check_interrupts(&self) -> Result<(), Ended> {
        if self.interrupts.iter().any(Interrupt::is_set) { Err(Ended::Interrupted) } else { Ok(()) }
    }

    fn check_at(&self, now: Instant) -> Result<(), Ended> {
        self.check_interrupts()?;
        if now >= self.deadline { Err(Ended::Timeout) } else { Ok(()) }
    }

    /// Waits for something, but not longer than the attempt lasts.
    pub(crate) async fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T, Ended> {
        let mut future = pin!(future);
        // Most waits are over at once; they pay for no timer.
        if let Poll::Ready(value) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Ok(value);
        }
        loop {
            self.check()?;
            let step = self.deadline.min(Instant::now() + INTERRUPT_POLL);
            if let Ok(value) = tokio::time::timeout_at(step.into(), future.as_mut()).await {
                return Ok(value);
            }
        }
    }
}
