//! Priorities and the lanes that they lead to.

use serde::{Deserialize, Serialize};

/// How urgent a message is: any integer, higher first. Five values have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(pub i32);

impl Priority {
    /// Work that may wait for everything else: -100.
    pub const BULK: Self = Self(-100);
    /// Below the ordinary: -50.
    pub const LOW: Self = Self(-50);
    /// The ordinary message: 0.
    pub const NORMAL: Self = Self(0);
    /// Above the ordinary: 50.
    pub const HIGH: Self = Self(50);
    /// Before all else: 100.
    pub const CRITICAL: Self = Self(100);
}

/// Separately drained class of deliveries. Backfill is served only when primary has nothing due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Live work.
    #[default]
    Primary,
    /// Bulk work.
    Backfill,
}

impl Lane {
    /// Both lanes, in the order in which they are served.
    pub const ALL: [Self; 2] = [Self::Primary, Self::Backfill];

    /// The lane of a priority: below the threshold is backfill, the threshold itself is primary.
    #[must_use]
    pub fn of(priority: Priority, threshold: Priority) -> Self {
        if priority < threshold { Self::Backfill } else { Self::Primary }
    }

    /// The number that the databases keep: 0 primary, 1 backfill.
    #[must_use]
    pub fn number(self) -> i16 {
        match self {
            Self::Primary => 0,
            Self::Backfill => 1,
        }
    }

    /// The lane of a stored number.
    #[must_use]
    pub fn from_number(number: i16) -> Option<Self> {
        match number {
            0 => Some(Self::Primary),
            1 => Some(Self::Backfill),
            _ => None,
        }
    }

    /// The lane's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backfill => "backfill",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_itself_stays_primary() {
        assert_eq!(Lane::of(Priority(0), Priority(0)), Lane::Primary);
        assert_eq!(Lane::of(Priority(-1), Priority(0)), Lane::Backfill);
        assert_eq!(Lane::of(Priority(i32::MIN), Priority(i32::MIN)), Lane::Primary);
        assert_eq!(Lane::of(Priority(i32::MAX), Priority(0)), Lane::Primary);
    }
}
