//! How much others write to a database, as a change of many rows sees it between its steps.

use std::time::{Duration, Instant};

use laneway_core::Writes;

/// What others may write in a second without being noticed. Idle nodes write too: each says every few seconds that it
/// is alive. A single message is written, claimed and settled, which is more than this.
const UNNOTICED_PER_SECOND: f64 = 4.0;
/// What others may write at once without being noticed.
const UNNOTICED: f64 = 8.0;
/// What is remembered of it at most: so long after others have ended, in seconds of [`UNNOTICED_PER_SECOND`], they are
/// still minded.
const REMEMBERED: f64 = 16.0;
/// Until then nothing is known.
const FIRST_LOOK: Duration = Duration::from_millis(250);

/// How much others write: a bucket that what they write fills, and that time empties.
#[derive(Debug)]
pub(crate) struct Load {
    level: f64,
    /// The count of all writes after our last step, and when that was.
    last: Option<(u64, Instant)>,
}

impl Default for Load {
    fn default() -> Self {
        Self { level: UNNOTICED + UNNOTICED_PER_SECOND * FIRST_LOOK.as_secs_f64(), last: None }
    }
}

impl Load {
    /// Takes note of what was written until a step that ended now; answers whether others write next to nothing.
    pub fn is_light(&mut self, writes: Writes, now: Instant) -> bool {
        if let Some((after, at)) = self.last {
            let emptied = now.saturating_duration_since(at).as_secs_f64() * UNNOTICED_PER_SECOND;
            // A database that was opened anew counts anew.
            let others = writes.before.saturating_sub(after) as f64;
            self.level = ((self.level - emptied).max(0.0) + others).min(REMEMBERED);
        }
        self.last = Some((writes.after, now));
        self.level < UNNOTICED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps that each write once, with this many writes of others before each. Answers whether the last found it light.
    fn after(load: &mut Load, clock: &mut (u64, Instant), steps: u32, every: Duration, others: u64) -> bool {
        let mut light = false;
        for _ in 0..steps {
            clock.0 += others;
            clock.1 += every;
            light = load.is_light(Writes { before: clock.0, after: clock.0 + 1, exclusive: true }, clock.1);
            clock.0 += 1;
        }
        light
    }

    const STEP: Duration = Duration::from_millis(7);

    #[test]
    fn our_own_steps_are_no_load() {
        let (mut load, mut clock) = (Load::default(), (1000, Instant::now()));
        assert!(!after(&mut load, &mut clock, 1, STEP, 0), "nothing is known yet");
        assert!(after(&mut load, &mut clock, 100, STEP, 0));
        assert!(after(&mut load, &mut clock, 10_000, STEP, 0));
    }

    #[test]
    fn messages_are_noticed_within_a_few_steps_and_minded_for_seconds() {
        let (mut load, mut clock) = (Load::default(), (1000, Instant::now()));
        assert!(after(&mut load, &mut clock, 100, STEP, 0));
        // 500 messages a second, each written, claimed and settled.
        assert!(!after(&mut load, &mut clock, 2, STEP, 10));
        assert!(!after(&mut load, &mut clock, 200, STEP, 0), "1.4 seconds after they ended");
        assert!(after(&mut load, &mut clock, 200, STEP, 0));
    }

    #[test]
    fn two_messages_a_second_are_minded_and_signs_of_life_are_not() {
        let (mut load, mut clock) = (Load::default(), (1000, Instant::now()));
        let second = Duration::from_secs(1);
        after(&mut load, &mut clock, 10, second, 1);
        assert!(after(&mut load, &mut clock, 100, second, 1), "five idle nodes");
        assert!(!after(&mut load, &mut clock, 10, second, 6));
    }
}
