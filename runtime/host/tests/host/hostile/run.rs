//! The corpus is run: alone, round after round, and beside a neighbour.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use laneway_core::{Failure, Invoker, Reason, SubscriptionKind};
use laneway_host::{Host, HostOptions, Plugin, PluginError};

use super::{Ends, Hostile, code, corpus, cpu, requests};
use crate::guest::{Guest, OK, SLEEP};
use crate::support::{call, retried, run, spec, timed};

/// What an attempt has that uses it up. Short: so does most of the corpus.
const TIMEOUT: Duration = Duration::from_millis(200);
/// What an attempt has that ends by itself before, on a busy machine too.
const LONG: Duration = Duration::from_secs(10);
/// What may pass between the end of an attempt's time and its end, on a busy machine.
const LATE: Duration = Duration::from_secs(3);
/// What a component may take until it is accepted or refused, on a busy machine and with its bytes there already.
const LOAD: Duration = Duration::from_secs(30);

fn host(instances_max: u32) -> Arc<Host> {
    let options = HostOptions { instances_max, memory_bytes_max: 128 << 20, ..HostOptions::default() };
    Host::new(options).unwrap()
}

/// How a component ended, and how long it took.
struct Ended {
    how: String,
    loading: Duration,
    running: Duration,
}

async fn end(host: &Arc<Host>, hostile: &Hostile) -> Ended {
    let began = Instant::now();
    let plugin = host.plugin(&hostile.bytes, hostile.spec());
    let loading = began.elapsed();
    let began = Instant::now();
    let how = match plugin {
        Err(error) => format!("refused: {error}"),
        Ok(plugin) => attempt(&plugin, hostile.ends).await,
    };
    Ended { how, loading, running: began.elapsed() }
}

async fn attempt(plugin: &Plugin, ends: Ends) -> String {
    attempt_for(plugin, ends, ends.time()).await
}

async fn attempt_for(plugin: &Plugin, ends: Ends, timeout: Duration) -> String {
    if let Ends::Validate(_) = ends {
        return match plugin.validate().await {
            Err(PluginError::Validate { reason, error }) => format!("validate: {reason}: {error}"),
            other => format!("validate: {other:?}"),
        };
    }
    match run(plugin, timed(timeout)).await.result {
        Ok(()) => "well".to_owned(),
        Err(Failure::Retry { reason, error } | Failure::UnknownOutcome { reason, error }) => {
            format!("reason: {reason}: {error}")
        }
        Err(other) => format!("{other:?}"),
    }
}

impl Ends {
    /// What the attempt, or the check of the configuration, has.
    pub fn time(self) -> Duration {
        match self {
            Self::Reason("timeout") | Self::Validate("timeout") => TIMEOUT,
            Self::Reason(_) | Self::Validate(_) | Self::Refused(_) | Self::Well => LONG,
        }
    }

    fn is(self, how: &str) -> bool {
        match self {
            Self::Refused(text) => how.starts_with("refused: ") && how.contains(text),
            Self::Validate(reason) => how.starts_with(&format!("validate: {reason}")),
            Self::Reason(reason) => how.starts_with(&format!("reason: {reason}")),
            Self::Well => how == "well",
        }
    }
}

/// Runs each once, and collects what is not as it has to be.
async fn run_all(host: &Arc<Host>, all: &[Hostile]) {
    let mut wrong = Vec::new();
    for hostile in all {
        let ended = end(host, hostile).await;
        let how: String = ended.how.chars().take(300).collect();
        eprintln!("{:>8.1?} {:>8.1?}  {}: {how}", ended.loading, ended.running, hostile.name);
        if !hostile.ends.is(&ended.how) {
            wrong.push(format!("{}: wants {:?}, found {how}", hostile.name, hostile.ends));
        }
        if ended.running > hostile.ends.time() + LATE || ended.loading > LOAD {
            wrong.push(format!("{}: loaded in {:?}, ran for {:?}", hostile.name, ended.loading, ended.running));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}

#[tokio::test]
async fn each_of_the_corpus_ends_with_a_reason_of_its_own() {
    let corpus = corpus();
    assert!(corpus.len() >= 40, "{} components", corpus.len());
    run_all(&host(4), &corpus).await;
}

#[tokio::test]
async fn what_is_made_to_compile_for_ever_is_refused_or_compiles_in_time() {
    run_all(&host(4), &code::corpus()).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_that_meets_no_tick_lets_others_have_their_turn() {
    let host = host(4);
    let long = host.plugin(&cpu::calls_without_a_loop(), spec(SubscriptionKind::Handler)).unwrap();
    let neighbour = host.plugin(&Guest::handler(OK).build(), spec(SubscriptionKind::Handler)).unwrap();
    // The machine may stand still for a while; a guest that keeps its thread does so each time.
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let (done, slowest) = tokio::join!(run(&long, timed(Duration::from_millis(500))), async {
            let (began, mut slowest) = (Instant::now(), Duration::ZERO);
            while began.elapsed() < Duration::from_millis(400) {
                let at = Instant::now();
                run(&neighbour, call()).await.result.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
                slowest = slowest.max(at.elapsed());
            }
            slowest
        });
        assert_eq!(retried(&done).0, Reason::TIMEOUT);
        best = best.min(slowest);
        if best < Duration::from_millis(250) {
            return;
        }
    }
    panic!("a neighbour waited {best:?} at least");
}

#[tokio::test]
async fn a_plugin_of_many_memories_leaves_the_others_theirs() {
    let host = host(4);
    let load = |guest: &Guest| host.plugin(&guest.build(), spec(SubscriptionKind::Handler)).unwrap();
    let sleep = Guest::handler(&format!("(call $sleep (i64.const -1)) {OK}"))
        .fields(SLEEP)
        .fields("(memory 1) (memory 1) (memory 1)")
        .fields(&"(table 1 funcref)".repeat(10))
        .import("wasi:clocks/monotonic-clock@0.2.0")
        .import("wasi:io/poll@0.2.0");
    let (many, neighbour) = (load(&sleep), load(&Guest::handler(OK)));
    let sleeping = || run(&many, timed(Duration::from_millis(300)));
    let (first, second, third, ()) = tokio::join!(sleeping(), sleeping(), sleeping(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        run(&neighbour, call()).await.result.unwrap();
    });
    for done in [first, second, third] {
        assert_eq!(retried(&done).0, Reason::TIMEOUT);
    }
}

/// Memory of this process that is nobody else's, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Runs a test in a process of its own, where no other test takes memory. Says whether this is that process.
#[cfg(target_os = "linux")]
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "LANEWAY_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("hostile::run::{test}"), "--nocapture"]).env(ALONE, "1");
    // Without it glibc gives each of the compiler's threads an arena, and how full those are depends on their turns.
    command.env("MALLOC_ARENA_MAX", "1");
    assert!(command.status().unwrap().success(), "{test} failed in its own process");
    false
}

/// Does something so many times, and holds that from some time on the memory stays as it is.
#[cfg(target_os = "linux")]
async fn level(what: &str, warm: usize, rounds: usize, tolerance: u64, mut round: impl AsyncFnMut()) {
    let mut after = Vec::new();
    for _ in 0..warm + rounds {
        round().await;
        after.push(resident() >> 10);
    }
    eprintln!("{what}, KiB after each round: {after:?}");
    let level = after[warm - 1];
    assert!(after[warm..].iter().all(|&resident| resident <= level + (tolerance >> 10)), "{after:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn after_each_round_of_attempts_the_hosts_memory_is_at_its_level_again() {
    if !is_alone("after_each_round_of_attempts_the_hosts_memory_is_at_its_level_again") {
        return;
    }
    let host = host(4);
    let loaded: Vec<_> = corpus()
        .into_iter()
        .filter_map(|hostile| host.plugin(&hostile.bytes, hostile.spec()).ok().map(|plugin| (plugin, hostile.ends)))
        .collect();
    // The first round warms the pool's places: each keeps a little memory for the next guest.
    level("attempts", 1, 4, 16 << 20, async || {
        for (plugin, ends) in &loaded {
            attempt(plugin, *ends).await;
        }
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn after_each_round_of_loading_the_hosts_memory_is_at_its_level_again() {
    if !is_alone("after_each_round_of_loading_the_hosts_memory_is_at_its_level_again") {
        return;
    }
    let host = host(4);
    let corpus = corpus();
    level("loading", 4, 8, 32 << 20, async || {
        for hostile in &corpus {
            drop(host.plugin(&hostile.bytes, hostile.spec()));
        }
    })
    .await;
}

/// The most memory that this process has while something runs.
#[cfg(target_os = "linux")]
async fn peak(work: impl Future<Output = ()>) -> u64 {
    let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&peak));
    // A thread of its own: it looks on while a guest keeps this one.
    let watch = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            seen.fetch_max(resident(), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    work.await;
    stop.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    peak.load(Ordering::Relaxed)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_guest_holds_and_never_sends_takes_little_of_the_hosts_memory() {
    if !is_alone("what_a_guest_holds_and_never_sends_takes_little_of_the_hosts_memory") {
        return;
    }
    let host = host(4);
    for (what, guest, bytes) in
        [("bodies", requests::bodies(), 24 << 20..64 << 20), ("texts", requests::texts(), 0..16 << 20)]
    {
        let hostile = Hostile::new(what, &guest, Ends::Well).with_http();
        let plugin = host.plugin(&hostile.bytes, hostile.spec()).unwrap();
        let before = resident();
        // It ends well: it got as far as holding all of them, for a while.
        let held = peak(async { assert_eq!(attempt_for(&plugin, Ends::Well, LOAD).await, "well") }).await - before;
        eprintln!("{what}: {} KiB", held >> 10);
        assert!(bytes.contains(&held), "{what}: {held} bytes");
    }
}

/// Calls that some tasks finish within a while, each at one call after the other, as a subscription's slots are.
async fn served(plugin: &Arc<Plugin>, slots: usize, during: Duration) -> u64 {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..slots)
        .map(|_| {
            let (plugin, stop, count) = (Arc::clone(plugin), Arc::clone(&stop), Arc::clone(&count));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    run(&plugin, call()).await.result.unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::task::consume_budget().await;
                }
            })
        })
        .collect();
    tokio::time::sleep(during).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    count.load(Ordering::Relaxed)
}

/// Slots of the neighbour, and as many of the hostile.
const SLOTS: usize = 4;

/// Part of its throughput that a neighbour keeps beside hostile guests; both want all of the processor. Short rounds
/// alone and beside them take turns, so that what else the machine does falls on both alike.
async fn throughput_kept(neighbour: &Arc<Plugin>, hostile: &[Arc<Plugin>]) -> f64 {
    const ROUND: Duration = Duration::from_millis(700);
    const ROUNDS: usize = 5;
    let (mut alone, mut beside) = (0, 0);
    let next = Arc::new(AtomicU64::new(0));
    let mut attempts = 0;
    for _ in 0..ROUNDS {
        alone += served(neighbour, SLOTS, ROUND).await;
        let stop = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..SLOTS)
            .map(|_| {
                let (stop, next, hostile) = (Arc::clone(&stop), Arc::clone(&next), hostile.to_vec());
                tokio::spawn(async move {
                    let mut attempts = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let plugin = &hostile[next.fetch_add(1, Ordering::Relaxed) as usize % hostile.len()];
                        let done = plugin.invoke(&[timed(TIMEOUT)]).await;
                        assert_eq!(done.len(), 1);
                        attempts += 1;
                        tokio::task::consume_budget().await;
                    }
                    attempts
                })
            })
            .collect();
        beside += served(neighbour, SLOTS, ROUND).await;
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            attempts += task.await.unwrap();
        }
    }
    let kept = beside as f64 / alone as f64;
    eprintln!("alone {alone}, beside {attempts} hostile attempts {beside}: {:.0} % kept", kept * 100.0);
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_keeps_at_least_half_of_its_throughput() {
    let host = host(2 * SLOTS as u32);
    let neighbour = host.plugin(&Guest::handler(OK).build(), spec(SubscriptionKind::Handler)).unwrap();
    let hostile: Vec<Arc<Plugin>> =
        corpus().iter().filter_map(|hostile| host.plugin(&hostile.bytes, hostile.spec()).ok()).collect();
    // The machine may stand still in a round, which costs a fifth; guests that take too much do so each time.
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        best = best.max(throughput_kept(&neighbour, &hostile).await);
        if best >= 0.5 {
            return;
        }
    }
    panic!("{:.0} % kept at best", best * 100.0);
}
