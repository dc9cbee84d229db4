//! What to say of a cleanup whose budget does not suffice.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use laneway_core::Arrears;

/// A budget has room for this much more than comes, so that what has piled up is worked off too.
const ROOM: f64 = 1.25;
/// Budgets are proposed in whole ones of these.
const ROUNDED_TO: f64 = 60.0;

/// What a run has done within its budget.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Rows that it has removed.
    pub removed: u64,
    /// How long that took.
    pub took: Duration,
    /// The budget that is configured.
    pub budget: Duration,
    /// From this run to the next; `None` if there is none.
    pub interval: Option<Duration>,
    /// What is older is to go.
    pub before: Timestamp,
}

/// Says how far behind the cleanup is, how fast rows come and go, and which budget would be enough.
pub(crate) fn advice(run: Run, arrears: Arrears) -> String {
    let per_second = run.removed as f64 / run.took.as_secs_f64().max(0.001);
    let behind = arrears.oldest.map_or(SignedDuration::ZERO, |oldest| run.before.duration_since(oldest));
    let said = format!(
        "what is left is up to {} over its retention; about {:.0} rows a second come, and it removed {per_second:.0} a second",
        shown(behind),
        arrears.per_second
    );
    let Some(interval) = run.interval else { return said };
    if run.removed == 0 {
        return said;
    }
    let needed = (arrears.per_second * interval.as_secs_f64() * ROOM / per_second / ROUNDED_TO).ceil() * ROUNDED_TO;
    if needed <= run.budget.as_secs_f64() {
        return format!("{said}: the budget is enough for what comes, and the next runs catch up");
    }
    if needed > interval.as_secs_f64() {
        return format!(
            "{said}: more comes than could be removed if it ran all the time; take load off the database, or keep less \
             by a shorter retention of what is written"
        );
    }
    // What was checked above is finite and shorter than an interval.
    let needed = Duration::try_from_secs_f64(needed).unwrap_or(interval);
    let needed = SignedDuration::try_from(needed).unwrap_or(SignedDuration::MAX);
    format!("{said}: a budget of {} would be enough, or more runs a day", shown(needed))
}

fn shown(duration: SignedDuration) -> String {
    let whole = SignedDuration::from_secs(duration.as_secs().max(0));
    format!("{whole:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(removed: u64, per_second: f64, budget: u64) -> String {
        let before: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        let run = Run {
            removed,
            took: Duration::from_secs(budget),
            budget: Duration::from_secs(budget),
            interval: Some(Duration::from_secs(86_400)),
            before,
        };
        advice(run, Arrears { oldest: Some(before - SignedDuration::from_hours(30)), per_second })
    }

    #[test]
    fn a_budget_that_would_be_enough_is_named() {
        // 500 a second are 43.2 million a day; at 40,000 a second they take 18 minutes, and there is to be room.
        let told = said(600 * 40_000, 500.0, 600);
        assert_eq!(
            told,
            "what is left is up to 30h over its retention; about 500 rows a second come, and it removed 40000 a second: \
             a budget of 23m would be enough, or more runs a day"
        );
        assert!(said(1800 * 40_000, 500.0, 1800).ends_with("the next runs catch up"));
        assert!(said(1800 * 400, 500.0, 1800).contains("more comes than could be removed"));
        assert!(said(0, 500.0, 1800).ends_with("it removed 0 a second"));
    }
}
