//! Whether a version on trial has held: by what its attempts came to, beside those of the active version.

use std::time::Duration;

use laneway_core::{Canary, Figures};

/// Below this difference of the mean times, slower is nothing that anyone feels: the first calls of new code alone take as
/// long.
const SLOWER_MIN: Duration = Duration::from_millis(1);

/// What follows for the trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It goes on.
    Wait,
    /// It has held, and its window is over.
    Promote,
    /// It ends, for this reason.
    RollBack(String),
}

/// Reasons that are named, the most frequent first.
const REASONS_NAMED: usize = 5;

/// Judges a trial that has gone on for `since`, by the attempts on it and those on the active version meanwhile.
pub(crate) fn judge(canary: &Canary, since: Duration, on_trial: &Figures, active: &Figures) -> Judgement {
    if on_trial.first.attempts < canary.attempts_min {
        return Judgement::Wait;
    }
    // The active version runs what failed before again, over and over: first attempts alone are alike.
    let (fails, usual) = (on_trial.first.failure_rate(), active.first.failure_rate());
    if fails > usual + canary.failures_over_max {
        let mut reasons: Vec<(&String, &u64)> = on_trial.reasons.iter().collect();
        reasons.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let reasons: Vec<String> =
            reasons.iter().take(REASONS_NAMED).map(|(reason, count)| format!("{reason} {count}")).collect();
        return Judgement::RollBack(format!(
            "{} of its {} attempts failed ({}), {:.1} % against {:.1} % of the first attempts on the active version; {:.1} \
             points more are allowed",
            on_trial.first.failed,
            on_trial.first.attempts,
            reasons.join(", "),
            fails * 100.0,
            usual * 100.0,
            canary.failures_over_max * 100.0
        ));
    }
    let (takes, usual) = (on_trial.first.mean(), active.first.mean());
    if active.first.attempts >= canary.attempts_min
        && takes > usual.mul_f64(canary.slower_max)
        && takes > usual + SLOWER_MIN
    {
        return Judgement::RollBack(format!(
            "its attempts take {takes:.1?} in the mean, against {usual:.1?} on the active version; {} times that are allowed",
            canary.slower_max
        ));
    }
    if canary.promote && since >= canary.window { Judgement::Promote } else { Judgement::Wait }
}

#[cfg(test)]
mod tests {
    use laneway_core::{CanaryBy, FirstAttempts};

    use super::*;

    const CANARY: Canary = Canary {
        share: 0.1,
        by: CanaryBy::Message,
        window: Duration::from_secs(60),
        attempts_min: 20,
        failures_over_max: 0.05,
        slower_max: 2.0,
        promote: true,
    };

    fn figures(attempts: u64, failed: u64, mean: Duration) -> Figures {
        let elapsed_nanos = u64::try_from(mean.as_nanos()).unwrap() * attempts;
        let reasons =
            if failed > 0 { [("panic".to_owned(), failed)].into() } else { std::collections::BTreeMap::new() };
        let first = FirstAttempts { attempts, failed, elapsed_nanos };
        Figures { attempts, failed, elapsed_nanos, reasons, first, ..Figures::default() }
    }

    fn judged(since: u64, on_trial: &Figures, active: &Figures) -> Judgement {
        judge(&CANARY, Duration::from_secs(since), on_trial, active)
    }

    #[test]
    fn a_trial_is_judged_by_failures_and_time_once_it_has_run_enough() {
        const FAST: Duration = Duration::from_micros(50);
        let good = figures(1000, 10, FAST);
        assert_eq!(judged(1, &figures(19, 19, FAST), &good), Judgement::Wait);
        let Judgement::RollBack(why) = judged(1, &figures(20, 4, FAST), &good) else { panic!("it goes on") };
        assert!(why.contains("4 of its 20 attempts failed (panic 4), 20.0 % against 1.0 %"), "{why}");
        // Messages that fail on either version fail on the active one again and again. That excuses nothing.
        let mut poisoned = figures(119, 30, FAST);
        poisoned.first = FirstAttempts { attempts: 90, failed: 3, elapsed_nanos: 90 * 50_000 };
        assert!(matches!(judged(1, &figures(1000, 224, FAST), &poisoned), Judgement::RollBack(_)));
        // As bad as the active version is no reason.
        assert_eq!(judged(1, &figures(100, 50, FAST), &figures(100, 46, FAST)), Judgement::Wait);
        let slow = Duration::from_millis(5);
        assert!(
            matches!(judged(1, &figures(20, 0, slow), &good), Judgement::RollBack(why) if why.contains("5.0ms"))
        );
        // Many times slower, and still nothing that anyone feels; and too few to compare with.
        assert_eq!(judged(1, &figures(20, 0, FAST * 10), &good), Judgement::Wait);
        assert_eq!(judged(1, &figures(20, 0, slow), &figures(3, 0, FAST)), Judgement::Wait);
    }

    #[test]
    fn a_trial_that_held_is_promoted_after_its_window_and_not_for_want_of_messages() {
        let good = figures(1000, 0, Duration::from_micros(50));
        assert_eq!(judged(59, &good, &good), Judgement::Wait);
        assert_eq!(judged(60, &good, &good), Judgement::Promote);
        assert_eq!(judged(600, &figures(19, 0, Duration::ZERO), &good), Judgement::Wait);
        let holding = Canary { promote: false, ..CANARY };
        assert_eq!(judge(&holding, Duration::from_secs(600), &good, &good), Judgement::Wait);
    }
}
