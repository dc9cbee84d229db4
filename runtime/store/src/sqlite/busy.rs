//! Waiting for another process's write to end, in small steps.
//!
//! SQLite's own handler sleeps for 1, 2, 5, 10 and more milliseconds between two tries, while a commit takes a fraction
//! of one: a claim that met two commits of a producer in a row came 8 ms late. Meeting them often is the rule where
//! several processes write.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use laneway_core::StoreError;
use libsqlite3_sys::{SQLITE_OK, sqlite3_busy_handler};
use sqlx::SqliteConnection;

use super::connection::classify;

/// Sleeps between tries: this long, for so many tries, one after the other; the last goes on.
const SLEEPS: [(Duration, u32); 3] =
    [(Duration::from_micros(50), 20), (Duration::from_micros(250), 40), (Duration::from_millis(2), u32::MAX)];

/// Lets the connection wait for others for up to `longest` whenever it finds the file locked.
pub(super) async fn wait_in_small_steps(
    connection: &mut SqliteConnection,
    longest: Duration,
) -> Result<(), StoreError> {
    let mut handle = connection.lock_handle().await.map_err(classify)?;
    let longest: usize = longest.as_micros().try_into().unwrap_or(usize::MAX);
    // SAFETY: the handle is locked, so that nobody uses the connection meanwhile. SQLite calls the function with the
    // pointer given here, which is a number and never followed, for as long as the connection lives.
    let code = unsafe {
        sqlite3_busy_handler(
            handle.as_raw_handle().as_ptr(),
            Some(sleep_a_little),
            std::ptr::without_provenance_mut(longest),
        )
    };
    match code {
        SQLITE_OK => Ok(()),
        code => Err(StoreError::Other(format!("failed to set how to wait for other writers: SQLite error {code}"))),
    }
}

/// Called by SQLite, on the connection's own thread, after so many tries. Answers 0 to give up.
unsafe extern "C" fn sleep_a_little(longest: *mut c_void, tries: c_int) -> c_int {
    let (slept, next) = schedule(tries.cast_unsigned());
    if slept.as_micros() >= longest.addr() as u128 {
        return 0;
    }
    std::thread::sleep(next);
    1
}

/// How long was slept in so many tries, and how long to sleep now.
fn schedule(tries: u32) -> (Duration, Duration) {
    let mut slept = Duration::ZERO;
    let mut left = tries;
    for (sleep, times) in SLEEPS {
        if left < times {
            return (slept + sleep * left, sleep);
        }
        slept += sleep * times;
        left -= times;
    }
    (slept, SLEEPS[SLEEPS.len() - 1].0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_grow_and_add_up() {
        let (micros, millis) = (Duration::from_micros, Duration::from_millis);
        assert_eq!(schedule(0), (Duration::ZERO, micros(50)));
        assert_eq!(schedule(20), (millis(1), micros(250)));
        assert_eq!(schedule(60), (millis(11), millis(2)));
        assert_eq!(schedule(2555), (millis(5001), millis(2)));
    }
}
