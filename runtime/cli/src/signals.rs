//! The signals that ask for an end.

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Terminate,
    Interrupt,
    Hangup,
}

impl Sent {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
        }
    }
}

/// The signals that ask for an end.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None if whoever started the program has it ignored, as `nohup` does.
    hangup: Option<Signal>,
}

impl Signals {
    pub fn listen() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Sent {
        let Self { terminate, interrupt, hangup } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => Sent::Terminate,
            _ = interrupt.recv() => Sent::Interrupt,
            _ = hangup => Sent::Hangup,
        }
    }

    /// Waits for the second of those that somebody sends to end the program, after this first one.
    pub async fn second(&mut self, first: Sent) {
        let mut asked = u32::from(first != Sent::Hangup);
        while asked < 2 {
            asked += u32::from(self.next().await != Sent::Hangup);
        }
    }
}

/// Whether SIGHUP was ignored when the program was started. Where the system does not say, it was not.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    // The lowest bit is that of signal 1, which is SIGHUP.
    mask & 1 == 1
}
