//! How much to claim ahead: as much as the slots work off in a moment, and no more bytes than memory should hold.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Weight of the newest figure in the moving averages, as a divisor.
const SMOOTHING: u64 = 8;

/// Moving averages of one subscription.
#[derive(Default)]
pub(crate) struct Pace {
    /// Nanoseconds that a slot takes for a message; 0 is not known yet.
    message_nanos: AtomicU64,
    /// Bytes of a payload.
    payload_bytes: AtomicU64,
}

fn smooth(average: &AtomicU64, figure: u64) {
    let old = average.load(Ordering::Relaxed);
    let new = if old == 0 { figure } else { (old * (SMOOTHING - 1) + figure) / SMOOTHING };
    // Lost updates are harmless in an average.
    average.store(new.max(1), Ordering::Relaxed);
}

impl Pace {
    pub fn ran(&self, elapsed: Duration) {
        smooth(&self.message_nanos, u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX / SMOOTHING));
    }

    pub fn claimed(&self, payload_bytes: usize, messages: usize) {
        if let Some(average) = payload_bytes.checked_div(messages) {
            smooth(&self.payload_bytes, average as u64);
        }
    }

    /// Deliveries to claim at once, from one a slot up to `max`.
    pub fn claim_limit(&self, slots: u32, max: u32, time: Duration, bytes: usize) -> u32 {
        let nanos = self.message_nanos.load(Ordering::Relaxed);
        let by_time = match u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).checked_div(nanos) {
            Some(messages) => messages.saturating_mul(u64::from(slots)),
            // Nothing has run yet: enough to find out.
            None => u64::from(slots) * 4,
        };
        let payload = self.payload_bytes.load(Ordering::Relaxed).max(1);
        let by_bytes = (bytes as u64 / payload).max(1);
        let limit = by_time.max(u64::from(slots)).min(by_bytes).clamp(1, u64::from(max.max(1)));
        u32::try_from(limit).unwrap_or(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(250);

    #[test]
    fn quick_handlers_claim_full_batches_and_slow_ones_little() {
        let quick = Pace::default();
        quick.ran(Duration::from_micros(20));
        assert_eq!(quick.claim_limit(8, 512, TIME, 1 << 24), 512);
        let slow = Pace::default();
        slow.ran(Duration::from_secs(2));
        assert_eq!(slow.claim_limit(8, 512, TIME, 1 << 24), 8);
    }

    #[test]
    fn large_payloads_bound_the_claim() {
        let pace = Pace::default();
        pace.ran(Duration::from_micros(20));
        pace.claimed(4 << 20, 1);
        assert_eq!(pace.claim_limit(8, 512, TIME, 16 << 20), 4);
    }
}
