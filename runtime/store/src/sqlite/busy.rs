//! Waiting for another process's write to end, in small and even steps.
//!
//! SQLite's own handler sleeps longer from try to try, and up to 100 milliseconds. Who writes back to back leaves the
//! file free for some tens of microseconds between two transactions: whoever tries every few milliseconds meets one such
//! gap in a hundred, and waits for seconds. Tries every 60 microseconds or so meet one in three. They cost about a fifth
//! of a processor for as long as the wait lasts.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use laneway_core::StoreError;
use libsqlite3_sys::{SQLITE_OK, sqlite3_busy_handler};
use sqlx::SqliteConnection;

use super::connection::classify;

/// The sleep between two tries, in the first second of a wait.
const SLEEP: Duration = Duration::from_micros(50);
/// The sleep after that: it costs half as much, and meets half as many gaps.
const SLEEP_LATER: Duration = Duration::from_micros(120);
const LATER: Duration = Duration::from_secs(1);

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

thread_local! {
    /// When the wait that this thread is in began. A thread waits for one file at a time.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Called by SQLite, on the thread that runs the statement, after so many tries. Answers 0 to give up.
unsafe extern "C" fn sleep_a_little(longest: *mut c_void, tries: c_int) -> c_int {
    if longest.addr() == 0 {
        return 0;
    }
    let began = match BEGAN.get() {
        Some(began) if tries > 0 => began,
        _ => {
            wake_on_time();
            Instant::now()
        }
    };
    BEGAN.set(Some(began));
    // Sleeps are longer than asked for, so that only the clock tells how long it has been.
    let waited = began.elapsed();
    if waited.as_micros() >= longest.addr() as u128 {
        return 0;
    }
    std::thread::sleep(if waited < LATER { SLEEP } else { SLEEP_LATER });
    1
}

/// Lets this thread's sleeps end when they should. Linux adds up to 50 microseconds unless told otherwise, which is as
/// much as the sleep itself.
fn wake_on_time() {
    #[cfg(target_os = "linux")]
    {
        const SLACK_NANOS: libc::c_ulong = 1_000;
        // SAFETY: takes a number, and changes nothing but when timers of the calling thread fire. An error is no harm.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NANOS) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use laneway_core::{NewMessage, Store, Topic};
    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions, Executor};

    use super::super::{SqliteOptions, SqliteStore};
    use super::*;

    /// Writes that must come through beside the other writer.
    const WRITES: usize = 9;

    /// Holds the write lock for so long, lets go of it and takes it again at once, until told to stop.
    fn hold_back_to_back(path: &std::path::Path, hold: Duration, stop: &AtomicBool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(60));
            let mut connection = options.connect().await.unwrap();
            let begin = "BEGIN IMMEDIATE; INSERT INTO laneway_audit (at, action, detail) VALUES (0, 'held', '');";
            connection.execute(sqlx::raw_sql(begin)).await.unwrap();
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(hold).await;
                connection.execute(sqlx::raw_sql("COMMIT")).await.unwrap();
                connection.execute(sqlx::raw_sql(begin)).await.unwrap();
            }
            connection.execute(sqlx::raw_sql("COMMIT")).await.unwrap();
        });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_back_to_back_writer_does_not_starve_the_node() {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(directory.path().join("test.db"));
        let store = SqliteStore::open(options.clone()).await.unwrap();
        for hold in [Duration::from_millis(20), Duration::from_millis(100)] {
            let stop = AtomicBool::new(false);
            let waits = std::thread::scope(|scope| {
                scope.spawn(|| hold_back_to_back(&options.path, hold, &stop));
                let writes = async {
                    let mut waits = Vec::with_capacity(WRITES);
                    for number in 0..WRITES {
                        // Begins at another point of a hold each time.
                        tokio::time::sleep(hold / 10 * u32::try_from(number % 10).unwrap()).await;
                        let message = NewMessage::new(Topic::parse("a").unwrap(), "{}");
                        let began = Instant::now();
                        let written = store.enqueue(&[message]).await;
                        // One that fails must not end the test before the other writer.
                        waits.push(if written.is_ok() { began.elapsed() } else { Duration::MAX });
                    }
                    waits
                };
                let waits = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(writes));
                stop.store(true, Ordering::Relaxed);
                waits
            });
            let mut waits = waits;
            waits.sort_unstable();
            println!("holds of {hold:?}: {waits:?}");
            assert!(!waits.contains(&Duration::MAX), "holds of {hold:?}: a write gave up");
            // One or two holds where nothing else runs, and more on a busy machine. By steps of 2 ms it is about fifty.
            let median = waits[WRITES / 2];
            assert!(median <= hold * 25, "holds of {hold:?}: a median wait of {median:?}");
        }
    }
}
