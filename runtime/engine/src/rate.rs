//! How many messages a subscription may begin in a second on this node: a bucket that fills evenly and holds a second's
//! worth.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most tokens that an empty limit hands out: what a claim takes is bounded elsewhere.
const UNLIMITED: u32 = u32::MAX;

pub(crate) struct Rate {
    /// Messages a second; `None` is no limit.
    per_second: Option<f64>,
    /// Tokens in the bucket, and when they were counted. Below zero while more was taken than was there.
    bucket: Mutex<(f64, Instant)>,
}

impl Rate {
    pub fn new(per_second: Option<f64>, now: Instant) -> Self {
        // One message may begin at once, however low the rate.
        Self { per_second, bucket: Mutex::new((1.0, now)) }
    }

    /// Messages that may begin now, or how long to wait until one may. `nodes` share the rate.
    pub fn available(&self, now: Instant, nodes: u32) -> Result<u32, Duration> {
        let Some(per_second) = self.share(nodes) else { return Ok(UNLIMITED) };
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = bucket.0 + now.saturating_duration_since(bucket.1).as_secs_f64() * per_second;
        *bucket = (filled.min(per_second.max(1.0)), now);
        if bucket.0 >= 1.0 {
            // Truncation is meant: a part of a message cannot begin.
            Ok(bucket.0 as u32)
        } else {
            Err(Duration::try_from_secs_f64((1.0 - bucket.0) / per_second).unwrap_or(Duration::MAX))
        }
    }

    /// Takes note of messages that begin.
    pub fn take(&self, messages: usize) {
        if self.per_second.is_some() {
            self.bucket.lock().unwrap_or_else(PoisonError::into_inner).0 -= messages as f64;
        }
    }

    fn share(&self, nodes: u32) -> Option<f64> {
        Some(self.per_second? / f64::from(nodes.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_over_time_and_bursts_are_a_second_long() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let rate = Rate::new(Some(10.0), start);
        assert_eq!(rate.available(at(0), 1), Ok(1));
        rate.take(1);
        assert_eq!(rate.available(at(0), 1), Err(Duration::from_millis(100)));
        assert_eq!(rate.available(at(250), 1), Ok(2));
        assert_eq!(rate.available(at(60_000), 1), Ok(10), "no more than a second's worth");
        let mut begun = 0;
        rate.take(10);
        for millis in 60_000..70_000 {
            if let Ok(messages) = rate.available(at(millis), 1) {
                begun += messages as usize;
                rate.take(messages as usize);
            }
        }
        assert!((99..=100).contains(&begun), "{begun} in ten seconds");
    }

    #[test]
    fn nodes_share_a_rate_and_a_low_one_is_no_stop() {
        let start = Instant::now();
        let rate = Rate::new(Some(0.5), start);
        assert_eq!(rate.available(start, 1), Ok(1));
        rate.take(1);
        assert_eq!(rate.available(start, 1), Err(Duration::from_secs(2)));
        assert_eq!(rate.available(start, 4), Err(Duration::from_secs(8)));
        assert_eq!(Rate::new(None, start).available(start, 9), Ok(UNLIMITED));
    }
}
