//! The clock of running guests: one thread that raises the engine's epoch each millisecond while calls run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// Time between two ticks: how long a busy guest keeps its worker thread at most.
const TICK: Duration = Duration::from_millis(1);

/// Ticks without a call after which the thread parks. Waking it is a system call, which a steady flow of short
/// messages is to be spared.
const IDLE_TICKS: u32 = 50;

struct Shared {
    running: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
}

/// Ticks while there are [`Running`] calls.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
    join: Option<JoinHandle<()>>,
}

/// A call that needs ticks, for as long as it lives.
pub(crate) struct Running<'a>(&'a Ticker);

impl Ticker {
    pub(crate) fn start(engine: Engine) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let join = std::thread::Builder::new().name("laneway-ticker".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || tick(&shared, &engine)
        })?;
        Ok(Self { shared, thread: join.thread().clone(), join: Some(join) })
    }

    pub(crate) fn running(&self) -> Running<'_> {
        // Count before looking at `parked`, as the thread sets `parked` before it looks at the count: one of
        // the two sees the other.
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) && self.shared.parked.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running(self)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.unpark();
        if let Some(join) = self.join.take() {
            // The thread runs no code that panics, and a join that fails changes nothing here.
            drop(join.join());
        }
    }
}

fn tick(shared: &Shared, engine: &Engine) {
    let mut idle = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) > 0 {
            idle = 0;
        } else {
            idle += 1;
        }
        if idle > IDLE_TICKS {
            shared.parked.store(true, Ordering::SeqCst);
            while shared.parked.load(Ordering::SeqCst)
                && shared.running.load(Ordering::SeqCst) == 0
                && !shared.stop.load(Ordering::SeqCst)
            {
                std::thread::park();
            }
            shared.parked.store(false, Ordering::SeqCst);
            idle = 0;
        }
        std::thread::sleep(TICK);
        engine.increment_epoch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticker_parks_when_nothing_runs_and_wakes_for_a_call() {
        let engine = Engine::default();
        let ticker = Ticker::start(engine).unwrap();
        let parked = || ticker.shared.parked.load(Ordering::SeqCst);
        let wait_until = |wanted: bool| {
            for _ in 0..5_000 {
                if parked() == wanted {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            panic!("parked stayed {}", !wanted);
        };
        wait_until(true);
        let running = ticker.running();
        wait_until(false);
        std::thread::sleep(Duration::from_millis(200));
        assert!(!parked(), "a long call keeps its ticks");
        drop(running);
        wait_until(true);
    }
}
