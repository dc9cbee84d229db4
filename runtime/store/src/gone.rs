//! What both databases say, in the same words, of what a restore or a failover took away or left behind.

use laneway_core::{Finding, Trouble};

/// Of a database that is not as it was at the last look.
pub(crate) fn other_history(change: String) -> Finding {
    Finding { trouble: Trouble::OtherHistory, count: 1, detail: change }
}

/// Of a sequence that is behind the numbers in use.
pub(crate) fn late_sequence(sequence: String, last: i64, in_use: i64) -> Finding {
    let detail = format!(
        "sequence {sequence} stands at {last}, and {in_use} is in use: new rows are refused, or take the numbers of old \
         ones"
    );
    Finding { trouble: Trouble::LateSequence, count: 1, detail }
}

/// Of deliveries whose message is not there; none if there are none.
pub(crate) fn orphans(count: u64) -> Option<Finding> {
    let detail = format!("{count} delivery(s) have no message any more, and can only be removed");
    (count > 0).then_some(Finding { trouble: Trouble::OrphanDelivery, count, detail })
}
