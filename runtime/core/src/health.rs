//! What can be wrong with a database through no fault of a node: failovers, restores, replication, mass deletion.

use async_trait::async_trait;
use serde::Serialize;

use crate::{Step, StoreError};

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The database is another one than before, or an older state of it: a standby was promoted, or a backup restored.
    OtherHistory,
    /// A sequence would give numbers again that are in use.
    LateSequence,
    /// Deliveries of messages that are not there.
    OrphanDelivery,
    /// Triggers of the outbox that are switched off.
    DisabledTrigger,
    /// Messages that were written while the triggers that route them did not fire.
    NeverRouted,
    /// A role or database whose sessions say by default that they restore a backup, so that nothing of theirs is routed.
    AlwaysRestoring,
}

impl Trouble {
    /// All that can be mended, in the order in which it is to be done.
    pub const MENDABLE: [Self; 4] =
        [Self::DisabledTrigger, Self::LateSequence, Self::OrphanDelivery, Self::NeverRouted];

    /// The name in JSON and audit.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OtherHistory => "other_history",
            Self::LateSequence => "late_sequence",
            Self::OrphanDelivery => "orphan_delivery",
            Self::DisabledTrigger => "disabled_trigger",
            Self::NeverRouted => "never_routed",
            Self::AlwaysRestoring => "always_restoring",
        }
    }

    /// What an operator does about it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::OtherHistory => "`laneway doctor` looks for what is wrong now",
            Self::LateSequence => "`laneway doctor --fix` sets it behind all numbers in use",
            Self::OrphanDelivery => {
                "`laneway doctor --fix` removes them; if a restore is under way, let it end before, since it may still \
                 bring the messages"
            }
            Self::DisabledTrigger => {
                "`laneway doctor --fix` switches it on; if a restore is under way, let it end before"
            }
            Self::NeverRouted => {
                "`laneway doctor --fix` routes them to the subscriptions that match; if they are a backup's and were \
                 processed before it, `DELETE FROM laneway.never_routed` says so"
            }
            Self::AlwaysRestoring => "`ALTER ROLE ... RESET laneway.restoring` or `ALTER DATABASE ...` ends that",
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of trouble it is.
    pub trouble: Trouble,
    /// How many rows or objects are concerned.
    pub count: u64,
    /// What it is about, in words.
    pub detail: String,
}

/// Looking for trouble, and mending it.
#[async_trait]
pub trait Health: Send + Sync + 'static {
    /// A quick look, for a node to take now and then. [`Trouble::OtherHistory`] is found by comparing with the look
    /// before, and is told once.
    async fn look(&self) -> Result<Vec<Finding>, StoreError>;

    /// Looks at everything, which takes longer with more messages.
    async fn examine(&self) -> Result<Vec<Finding>, StoreError>;

    /// Mends one kind of trouble among the next `limit` rows above `from`, which is [`Step::next`] of the step before
    /// and `i64::MIN` at first. Writes an audit row if it changes any.
    async fn mend(&self, trouble: Trouble, from: i64, limit: u32) -> Result<Step, StoreError>;
}
