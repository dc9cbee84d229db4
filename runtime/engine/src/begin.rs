//! Notes in the database that deliveries begin which leases were lost on before.
//!
//! A message that no lease was ever lost on begins without a word: should its node end, it is due again, uncounted, as are
//! all that only waited. Any of those may be what ended the node. So from then on each is noted before it runs, and if its
//! lease ends again, its attempt counts. Slots that begin at once share a transaction.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use laneway_core::{Held, Store};
use tokio::sync::oneshot;

/// What a delivery is told.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is noted, and may run.
    Noted,
    /// Its lease no longer holds.
    Lost,
    /// Not known whether it is noted, for this reason.
    Failed(String),
}

struct Waiting {
    held: Held,
    answer: oneshot::Sender<Begun>,
}

pub(crate) struct Begins {
    store: Arc<dyn Store>,
    waiting: Mutex<Vec<Waiting>>,
    /// Held by whoever is at the database; those who come meanwhile go together after it.
    turn: tokio::sync::Mutex<()>,
}

impl Begins {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, waiting: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        // Each critical section leaves the list whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a delivery begins.
    pub async fn begin(&self, held: Held) -> Begun {
        let (answer, mut answered) = oneshot::channel();
        self.lock().push(Waiting { held, answer });
        let turn = self.turn.lock().await;
        // Whoever had the turn before may have taken this one along.
        if let Ok(begun) = answered.try_recv() {
            return begun;
        }
        let group = std::mem::take(&mut *self.lock());
        self.note(group).await;
        drop(turn);
        answered.await.unwrap_or_else(|_| Begun::Failed("the slot that asked for several was ended".to_owned()))
    }

    async fn note(&self, group: Vec<Waiting>) {
        let deliveries: Vec<Held> = group.iter().map(|waiting| waiting.held).collect();
        let begun = self.store.begin(&deliveries).await;
        for Waiting { held, answer } in group {
            let begun = match &begun {
                Ok(lost) if lost.contains(&held) => Begun::Lost,
                Ok(_) => Begun::Noted,
                Err(error) => Begun::Failed(error.to_string()),
            };
            // Whoever is gone needs no answer.
            let _ = answer.send(begun);
        }
    }
}
