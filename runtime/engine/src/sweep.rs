//! Changes of many rows, made in steps small enough that nobody waits for them.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use laneway_core::{Cleanup, DeadLetterAction, DeadLetterSelection, Replay, Step, Store, StoreError, Trouble};

/// How long one step should take, about: what a message that comes meanwhile may have to wait for on SQLite, where
/// there is one writer. With 4 ms and three times that as a pause, the 99th percentile of the time from commit to start
/// was 1.5 times that without a cleanup there, at 500 messages a second; now it is 1.1 times.
const STEP: Duration = Duration::from_millis(1);
/// How much longer than a step the pause after it is: cleanup takes a seventh of the time, and leaves the rest.
const PAUSE_TIMES: u32 = 6;
/// Rows of the first step, before anything is known of the database's speed.
const FIRST_ROWS: u32 = 200;
/// Fewest rows of a step: with fewer, a distant database or a slow flush would be all that it takes time for.
const ROWS_MIN: u32 = 50;
/// Shortest pause between two steps.
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// What is to be changed.
#[derive(Debug, Clone)]
pub enum Work {
    /// Remove what is strictly older.
    Clean {
        /// Of these rows.
        what: Cleanup,
        /// Than this time of the database.
        before: Timestamp,
    },
    /// Deliver messages once more.
    Replay(Replay),
    /// Act on dead letters.
    DeadLetters {
        /// How.
        action: DeadLetterAction,
        /// On these.
        selection: DeadLetterSelection,
        /// Up to this number, so that what dies again meanwhile is left.
        newest: i64,
    },
    /// Mend what a restore or a failover left behind.
    Mend(Trouble),
}

/// A change in progress. Each step is committed by itself, so that it may end, or be dropped, after any of them.
#[derive(Debug)]
pub struct Sweep {
    work: Work,
    /// Where the next step begins; `None` when all is done.
    next: Option<i64>,
    rows: u32,
    batch_size: u32,
    last_step: Duration,
    changed: u64,
}

impl Sweep {
    /// A change whose steps look at `batch_size` rows at most, and at fewer while that would take long.
    #[must_use]
    pub fn new(work: Work, batch_size: u32) -> Self {
        let batch_size = batch_size.max(1);
        // A number alone need not be looked for.
        let first = match &work {
            Work::DeadLetters { selection: DeadLetterSelection { id: Some(id), .. }, .. } => id.saturating_sub(1),
            Work::Clean { .. } | Work::Replay(_) | Work::DeadLetters { .. } => 0,
            Work::Mend(_) => i64::MIN,
        };
        Self {
            work,
            next: Some(first),
            rows: FIRST_ROWS.min(batch_size),
            batch_size,
            last_step: Duration::ZERO,
            changed: 0,
        }
    }

    /// Rows changed so far.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// Whether nothing is left to look at.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.next.is_none()
    }

    /// How long the last step took.
    #[must_use]
    pub fn last_step(&self) -> Duration {
        self.last_step
    }

    /// Makes the next step, after a pause some times as long as the last one took. Answers the rows that it changed; `None` when
    /// nothing is left.
    ///
    /// # Errors
    /// [`StoreError`] of the step; the steps before it stay. The same step may be tried again.
    pub async fn step(&mut self, store: &dyn Store) -> Result<Option<u64>, StoreError> {
        let Some(from) = self.next else { return Ok(None) };
        if !self.last_step.is_zero() {
            tokio::time::sleep((self.last_step * PAUSE_TIMES).max(PAUSE_MIN)).await;
        }
        let began = Instant::now();
        let Step { changed, next } = match &self.work {
            Work::Clean { what, before } => store.clean(*what, *before, from, self.rows).await?,
            Work::Replay(replay) => store.replay(replay, from, self.rows).await?,
            Work::DeadLetters { action, selection, newest } => {
                let newest = selection.id.map_or(*newest, |id| id.min(*newest));
                store.act_on_dead_letters(*action, selection, from, newest, self.rows).await?
            }
            Work::Mend(trouble) => store.mend(*trouble, from, self.rows).await?,
        };
        let took = began.elapsed();
        self.next = next;
        self.changed += changed;
        self.last_step = took;
        let rows = match took {
            _ if took > STEP => self.rows / 2,
            _ if took < STEP / 2 => self.rows.saturating_mul(2),
            _ => self.rows,
        };
        self.rows = rows.clamp(ROWS_MIN.min(self.batch_size), self.batch_size);
        Ok(Some(changed))
    }
}
