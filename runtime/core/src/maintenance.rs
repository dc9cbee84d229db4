//! Keeping a database small and its dead letters in order: changes of many rows, made in bounded steps.
//!
//! A step is one short transaction over a stretch of rows. Who runs the steps may pause between them, stop after any of
//! them, and begin again later.

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

use crate::{MessageId, Name, Priority, StoreError, TopicPattern};

/// What is removed once its retention is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cleanup {
    /// Messages that are settled everywhere, by when they were written, or due if that was later. Those with a delivery
    /// or a dead letter left stay.
    Messages,
    /// Markers, by when they were written.
    Markers,
    /// Dead letters, by when they failed. Their messages then are as any other.
    DeadLetters,
    /// Runs of schedules, by the time that they were for. The last one of each schedule stays.
    ScheduleRuns,
}

impl Cleanup {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Messages, Self::Markers, Self::DeadLetters, Self::ScheduleRuns];

    /// The name in configuration and audit.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Markers => "markers",
            Self::DeadLetters => "dead_letters",
            Self::ScheduleRuns => "schedule_runs",
        }
    }
}

/// What one step did. Rows are looked at about in the order of their times: a row whose time is a day or more before that
/// of others written before it may be left for a later cleanup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Rows changed.
    pub changed: u64,
    /// Where the next step begins; `None` if nothing is left to look at.
    pub next: Option<i64>,
    /// What everybody wrote until now, from which one sees how busy the database is; `None` if this change does not
    /// tell.
    pub writes: Option<Writes>,
    /// What is old enough and stays, since something of the application's holds it.
    pub kept: Vec<Kept>,
}

/// Rows that the application does not let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// What holds them, by its name: a foreign key with its table, or what a trigger says.
    pub by: String,
    /// How many rows.
    pub rows: u64,
}

/// A count of what everybody has written to a database, in a unit of its own: a transaction adds 1 or more. Its growth
/// between two steps tells what others wrote meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writes {
    /// When the step began.
    pub before: u64,
    /// When it ended, without what others wrote meanwhile.
    pub after: u64,
    /// Whether nobody else can write while a step is under way.
    pub exclusive: bool,
}

/// How far a cleanup is behind. Both are about right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrears {
    /// When the first row was written that is left to look at; `None` if there is none.
    pub oldest: Option<Timestamp>,
    /// Rows that were written in a second, in the mean over the last day.
    pub per_second: f64,
}

/// Which dead letters a change is about: those that all of its parts hold for. Empty, it is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeadLetterSelection {
    /// This one only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<i64>,
    /// Of this subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription: Option<Name>,
    /// Of topics that this pattern matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<TopicPattern>,
    /// Of this reason code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Failed at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Failed before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// What becomes of dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLetterAction {
    /// Each becomes a delivery again: due at once, by its lane and priority, with no attempt counted. Left are those of
    /// inactive subscriptions, and those whose message is gone or in work once more.
    Replay,
    /// They are removed.
    Purge,
}

impl DeadLetterAction {
    /// The name in the audit.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "dead_letters.replay",
            Self::Purge => "dead_letters.purge",
        }
    }
}

/// Which messages of the outbox are delivered once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// To this subscription, if its pattern matches them.
    pub subscription: Name,
    /// Of topics that this pattern matches too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<TopicPattern>,
    /// Written at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Written before this time.
    pub until: Timestamp,
    /// Their priority now. They come by the backfill lane, whatever it is.
    pub priority: Priority,
    /// Also those that were processed, or given up; markers of them are removed.
    pub force: bool,
}

/// What a replay is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayable {
    /// Messages that it owes once more.
    pub messages: u64,
    /// Messages that it leaves, since they count as processed and it has no force.
    pub processed: u64,
}

/// Answer to a change of a message that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is made.
    Done,
    /// A delivery of the message was claimed already, or nobody was subscribed and there is nothing to move; nothing is
    /// changed.
    TooLate,
    /// There is no message of this id.
    Unknown,
}

/// What operators and schedules do to a database. Each call is one transaction. Times are the database's.
#[async_trait]
pub trait Maintenance: Send + Sync + 'static {
    /// The database's time.
    async fn now(&self) -> Result<Timestamp, StoreError>;

    /// How many rows [`Maintenance::clean`] would remove in all.
    async fn cleanable(&self, what: Cleanup, before: Timestamp) -> Result<u64, StoreError>;

    /// Removes what is strictly older than `before` among the next `limit` rows from `from` on, which is
    /// [`Step::next`] of the step before, and 0 at first.
    async fn clean(&self, what: Cleanup, before: Timestamp, from: i64, limit: u32) -> Result<Step, StoreError>;

    /// How far the cleanup is behind that has come to `from`, and how fast rows come. Its cost does not grow with the
    /// number of rows.
    async fn arrears(&self, what: Cleanup, from: i64) -> Result<Arrears, StoreError>;

    /// How many dead letters a selection holds.
    async fn count_dead_letters(&self, selection: &DeadLetterSelection) -> Result<u64, StoreError>;

    /// Number of the newest dead letter; 0 if there was none ever. Later ones are not part of a change that begins now.
    async fn newest_dead_letter(&self) -> Result<i64, StoreError>;

    /// Acts on those of the next `limit` dead letters, above `from` and up to `newest`, that the selection holds. Writes
    /// an audit row if it changes any.
    async fn act_on_dead_letters(
        &self,
        action: DeadLetterAction,
        selection: &DeadLetterSelection,
        from: i64,
        newest: i64,
        limit: u32,
    ) -> Result<Step, StoreError>;

    /// Owes once more those of the next `limit` messages above `from` that the replay is about. Messages that are owed
    /// to the subscription already, or are among its dead letters, are left as they are. Without force, so are those that
    /// count as processed: of which there is a marker, which were owed once by a replay, or which were routed to the
    /// subscription when they were written, or may have been. Writes an audit row if it changes any. [`StoreError::Refused`] if there is no such subscription, or it is not active.
    async fn replay(&self, replay: &Replay, from: i64, limit: u32) -> Result<Step, StoreError>;

    /// How many messages [`Maintenance::replay`] would owe in all, and how many it would leave.
    async fn replayable(&self, replay: &Replay) -> Result<Replayable, StoreError>;

    /// Takes a message back, as if it had not been written. Until the first of its deliveries is claimed.
    async fn cancel(&self, message: &MessageId) -> Result<Change, StoreError>;

    /// Moves a message in time; a time that is past is now. Until the first of its deliveries is claimed.
    async fn reschedule(&self, message: &MessageId, due: Timestamp) -> Result<Change, StoreError>;
}
