//! Settlements: how attempts end, committed in groups.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{
    CounterAdd, DeliveryId, ErrorText, LeaseToken, MarkerMetadata, MessageId, Name, NewMessage, PluginDigest,
    Reason, StateRead, StateVersion, StateWrite, SubscriptionId,
};

/// What becomes of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Processed. Its effects commit, with a marker if `mark`.
    Complete {
        /// Whether to write a marker.
        mark: bool,
    },
    /// Tried again after `delay`.
    Retry {
        /// From now, by the database's clock.
        delay: Duration,
        /// Whether the attempt counts; if not, the count goes back by one.
        counted: bool,
        /// Why, kept with the delivery. An attempt that does not count and does not say why was not run, and leaves no trace;
        /// one that says why starts the clock of [`crate::Delivery::since_first_attempt`], if none did before.
        error: Option<ErrorText>,
    },
    /// Moved to the dead letters.
    DeadLetter {
        /// Why, as a code.
        reason: Reason,
        /// Why, in words.
        error: ErrorText,
        /// Which component ran it last.
        plugin: Option<PluginDigest>,
    },
}

impl Verdict {
    /// Handed back unstarted: due at once, attempt not counted.
    pub const RELEASE: Self = Self::Retry { delay: Duration::ZERO, counted: false, error: None };

    /// Whether the attempt that it ends counts.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        match self {
            Self::Complete { .. } => true,
            Self::Retry { counted, .. } => *counted,
            // Its attempts were used up before: no slot began this one.
            Self::DeadLetter { reason, .. } => *reason != Reason::LEASE_EXPIRED,
        }
    }
}

/// The end of one attempt.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// Whose delivery.
    pub subscription: SubscriptionId,
    /// Which delivery.
    pub delivery: DeliveryId,
    /// The lease that it was run under: if it no longer holds, nothing of this settlement happens.
    pub token: LeaseToken,
    /// The message, for its marker.
    pub message: MessageId,
    /// Its key, if the subscription is ordered: the next message of the key may then come.
    pub key: Option<String>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// State that it depended on.
    pub reads: Vec<StateRead>,
    /// State that it writes; only with [`Verdict::Complete`].
    pub writes: Vec<StateWrite>,
    /// Counters that it adds to; only with [`Verdict::Complete`].
    pub adds: Vec<CounterAdd>,
    /// Messages that it emits; only with [`Verdict::Complete`].
    pub emits: Vec<NewMessage>,
    /// What its marker says beside; only with a marker.
    pub metadata: Option<MarkerMetadata>,
}

impl Settlement {
    /// The key that is free for its next message once this has happened.
    #[must_use]
    pub fn freed_key(&self) -> Option<&str> {
        match self.verdict {
            Verdict::Retry { .. } => None,
            Verdict::Complete { .. } | Verdict::DeadLetter { .. } => self.key.as_deref(),
        }
    }

    /// Whether later settlements of the group may build on this one's state.
    #[must_use]
    pub fn writes_state(&self) -> bool {
        !self.writes.is_empty()
    }
}

/// What a store did with a group. Numbers are positions in the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettleReport {
    /// The group is committed, durably.
    Committed {
        /// Leases that no longer held: these settlements did not happen. None of them wrote state.
        lost: Vec<usize>,
        /// Messages that a marker shows processed already: deliveries removed, effects left out. None wrote state.
        duplicates: Vec<usize>,
    },
    /// Nothing of the group is committed; form it again without what stood in the way.
    Conflict(StateConflict),
}

/// Why a group could not be committed as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateConflict {
    /// Leases that no longer held.
    pub lost: Vec<usize>,
    /// Messages that a marker shows processed already.
    pub duplicates: Vec<usize>,
    /// Keys that no longer have the version that was read.
    pub stale: Vec<(Name, Arc<str>)>,
}

/// What a group does to one state key, folded over its settlements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// Namespace of the key.
    pub namespace: Name,
    /// The key.
    pub key: Arc<str>,
    /// The version that the database must hold now: `Some(None)` is absent, `None` is any.
    pub expected: Option<Option<StateVersion>>,
    /// The last write: its version and value (`None` deletes). `None` only checks.
    pub write: Option<(StateVersion, Option<Bytes>)>,
}

/// The folded changes of a group, in the order in which keys first appear.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StateChanges {
    /// One entry a key.
    pub keys: Vec<KeyChange>,
    /// Keys read at a version that an earlier settlement of the same group had already replaced.
    pub stale: Vec<(Name, Arc<str>)>,
}

/// Folds the reads and writes of a group, in order, into one change a key.
pub fn state_changes<'a>(settlements: impl Iterator<Item = &'a Settlement>) -> StateChanges {
    let mut positions: HashMap<(Name, Arc<str>), usize> = HashMap::new();
    let mut changes = StateChanges::default();
    for settlement in settlements {
        for read in &settlement.reads {
            match positions.entry((read.namespace.clone(), read.key.clone())) {
                Entry::Vacant(slot) => {
                    slot.insert(changes.keys.len());
                    changes.keys.push(KeyChange {
                        namespace: read.namespace.clone(),
                        key: read.key.clone(),
                        expected: Some(read.version),
                        write: None,
                    });
                }
                Entry::Occupied(slot) => {
                    let change = &mut changes.keys[*slot.get()];
                    let current = match &change.write {
                        Some((version, Some(_))) => Some(Some(*version)),
                        Some((_, None)) => Some(None),
                        None => change.expected,
                    };
                    if current != Some(read.version) {
                        changes.stale.push((read.namespace.clone(), read.key.clone()));
                    }
                }
            }
        }
        for write in &settlement.writes {
            let position = *positions.entry((write.namespace.clone(), write.key.clone())).or_insert_with(|| {
                changes.keys.push(KeyChange {
                    namespace: write.namespace.clone(),
                    key: write.key.clone(),
                    expected: None,
                    write: None,
                });
                changes.keys.len() - 1
            });
            changes.keys[position].write = Some((write.version, write.value.clone()));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settlement(reads: &[(&str, Option<i64>)], writes: &[(&str, Option<&'static str>, i64)]) -> Settlement {
        let namespace = Name::parse("n").unwrap();
        Settlement {
            subscription: SubscriptionId(1),
            delivery: DeliveryId(1),
            token: LeaseToken(1),
            message: MessageId::from_stored("m".into()),
            key: None,
            verdict: Verdict::Complete { mark: false },
            reads: reads
                .iter()
                .map(|&(key, version)| StateRead {
                    namespace: namespace.clone(),
                    key: key.into(),
                    version: version.map(StateVersion),
                })
                .collect(),
            writes: writes
                .iter()
                .map(|&(key, value, version)| StateWrite {
                    namespace: namespace.clone(),
                    key: key.into(),
                    value: value.map(Bytes::from),
                    version: StateVersion(version),
                })
                .collect(),
            adds: vec![],
            emits: vec![],
            metadata: None,
        }
    }

    #[test]
    fn a_chain_on_one_key_folds_to_its_first_read_and_last_write() {
        let group = [
            settlement(&[("k", None)], &[("k", Some("1"), 11)]),
            settlement(&[("k", Some(11))], &[("k", Some("2"), 12)]),
            settlement(&[("k", Some(12))], &[("k", Some("3"), 13)]),
        ];
        let changes = state_changes(group.iter());
        assert!(changes.stale.is_empty());
        assert_eq!(changes.keys.len(), 1);
        assert_eq!(changes.keys[0].expected, Some(None));
        assert_eq!(changes.keys[0].write, Some((StateVersion(13), Some(Bytes::from("3")))));
    }

    #[test]
    fn a_read_of_a_replaced_version_is_stale() {
        let group = [
            settlement(&[("k", Some(1))], &[("k", Some("1"), 11)]),
            settlement(&[("k", Some(1))], &[("k", Some("2"), 12)]),
        ];
        assert_eq!(state_changes(group.iter()).stale.len(), 1);
    }

    #[test]
    fn blind_writes_expect_nothing_and_deletes_read_as_absent() {
        let group = [settlement(&[], &[("k", None, 11)]), settlement(&[("k", None)], &[("k", Some("2"), 12)])];
        let changes = state_changes(group.iter());
        assert!(changes.stale.is_empty());
        assert_eq!(changes.keys[0].expected, None);
    }
}
