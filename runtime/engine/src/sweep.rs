//! Changes of many rows, made in steps small enough that nobody waits for them.
//!
//! Beside others that write, steps are short and the pauses after them long. Where nobody else writes, steps are longer
//! and follow each other closely: 12 times the rows in a second and more. [`Load`] tells the one from the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use laneway_core::{
    Cleanup, DeadLetterAction, DeadLetterSelection, Kept, Replay, Step, Store, StoreError, Trouble,
};
use tokio::sync::Mutex;

use crate::load::Load;

/// How steps and pauses alternate.
struct Gait {
    /// How long one step should take, about: what a message that comes meanwhile may have to wait for on SQLite, where
    /// there is one writer.
    step: Duration,
    /// How much longer than a step the pause after it is.
    pause_times: u32,
    /// Shortest pause between two steps.
    pause_min: Duration,
}

/// Beside others. With steps of 4 ms and three times that as a pause, the 99th percentile of the time from commit to
/// start was 1.5 times that without a cleanup there, at 500 messages a second; with these it is 1.1 times. Cleanup takes
/// a seventh of the time, and leaves the rest.
const CAREFUL: Gait = Gait { step: Duration::from_millis(1), pause_times: 6, pause_min: Duration::from_millis(2) };
/// Where nobody else writes, and nobody else could. Whoever comes all the same waits for one step, and is seen after it.
/// The pause, of which a timer makes two milliseconds, lets in another process, which looks again and again whether the
/// file is free.
const ALONE: Gait = Gait { step: Duration::from_millis(10), pause_times: 0, pause_min: Duration::from_millis(1) };
/// Where nobody else writes, and nobody would have to wait for a step.
const ALONE_BESIDE_ALL: Gait = Gait { step: Duration::from_millis(20), pause_times: 0, pause_min: Duration::ZERO };
/// Rows of the first step, before anything is known of the database's speed.
const FIRST_ROWS: u32 = 200;
/// Fewest rows of a step: with fewer, a distant database or a slow flush would be all that it takes time for.
const ROWS_MIN: u32 = 50;

/// Names of what holds rows that are kept apart; the rest goes under one. What a trigger says may differ each time.
const HOLDERS_MAX: usize = 10;
const MORE_HOLDERS: &str = "others";

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

/// What the sweeps of one process know together of what others write: none takes the steps of another for theirs.
/// They make their steps one after the other.
#[derive(Debug, Clone, Default)]
pub struct Sweeps(Arc<Mutex<Load>>);

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
    /// Rows that the application does not let go, by what holds them.
    kept: BTreeMap<String, u64>,
    sweeps: Sweeps,
    /// Whether the last step found nobody else at work.
    alone: bool,
    /// Whether nobody else can write while a step is under way.
    exclusive: bool,
}

impl Sweep {
    /// A change whose steps look at `batch_size` rows at most, and at fewer while that would take long.
    #[must_use]
    pub fn new(work: Work, batch_size: u32) -> Self {
        Self::among(&Sweeps::default(), work, batch_size)
    }

    /// The same, in a process that may make other changes at the same time, in the same database.
    #[must_use]
    pub fn among(sweeps: &Sweeps, work: Work, batch_size: u32) -> Self {
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
            kept: BTreeMap::new(),
            sweeps: sweeps.clone(),
            alone: false,
            exclusive: true,
        }
    }

    /// Rows changed so far.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// Rows that were looked at and stay, since something of the application's holds them.
    #[must_use]
    pub fn kept(&self) -> Vec<Kept> {
        self.kept.iter().map(|(by, rows)| Kept { by: by.clone(), rows: *rows }).collect()
    }

    /// Whether nothing is left to look at.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.next.is_none()
    }

    /// Where the next step begins, as the store counts.
    #[must_use]
    pub fn position(&self) -> Option<i64> {
        self.next
    }

    /// How long the last step took.
    #[must_use]
    pub fn last_step(&self) -> Duration {
        self.last_step
    }

    /// Whether the last step found that next to nobody else writes to the database.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    fn gait(&self) -> &'static Gait {
        match (self.alone, self.exclusive) {
            (false, _) => &CAREFUL,
            (true, true) => &ALONE,
            (true, false) => &ALONE_BESIDE_ALL,
        }
    }

    /// Makes the next step, after a pause that leaves others their time. Answers the rows that it changed; `None` when
    /// nothing is left.
    ///
    /// # Errors
    /// [`StoreError`] of the step; the steps before it stay. The same step may be tried again.
    pub async fn step(&mut self, store: &dyn Store) -> Result<Option<u64>, StoreError> {
        let Some(from) = self.next else { return Ok(None) };
        if !self.last_step.is_zero() {
            let gait = self.gait();
            match (self.last_step * gait.pause_times).max(gait.pause_min) {
                Duration::ZERO => tokio::task::yield_now().await,
                pause => tokio::time::sleep(pause).await,
            }
        }
        let sweeps = self.sweeps.clone();
        let mut load = sweeps.0.lock().await;
        let began = Instant::now();
        let Step { changed, next, writes, kept } = match &self.work {
            Work::Clean { what, before } => store.clean(*what, *before, from, self.rows).await?,
            Work::Replay(replay) => store.replay(replay, from, self.rows).await?,
            Work::DeadLetters { action, selection, newest } => {
                let newest = selection.id.map_or(*newest, |id| id.min(*newest));
                store.act_on_dead_letters(*action, selection, from, newest, self.rows).await?
            }
            Work::Mend(trouble) => store.mend(*trouble, from, self.rows).await?,
        };
        let ended = Instant::now();
        self.exclusive = writes.is_none_or(|writes| writes.exclusive);
        self.alone = writes.is_some_and(|writes| load.is_light(writes, ended));
        drop(load);
        self.next = next;
        self.changed += changed;
        for Kept { by, rows } in kept {
            let is_room = self.kept.len() < HOLDERS_MAX || self.kept.contains_key(&by);
            *self.kept.entry(if is_room { by } else { MORE_HOLDERS.to_owned() }).or_default() += rows;
        }
        self.last_step = ended - began;
        self.rows = self.rows_after(self.last_step);
        Ok(Some(changed))
    }

    /// Rows of the next step, after one that took so long. It is as short as it should be at once, and grows slowly.
    fn rows_after(&self, took: Duration) -> u32 {
        let step = self.gait().step;
        let rows = match took {
            _ if took > step * 2 => {
                self.rows / u32::try_from(took.as_micros() / step.as_micros()).unwrap_or(u32::MAX)
            }
            _ if took > step => self.rows / 2,
            _ if took < step / 2 => self.rows.saturating_mul(2),
            _ => self.rows,
        };
        rows.clamp(ROWS_MIN.min(self.batch_size), self.batch_size)
    }
}
