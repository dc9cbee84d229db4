//! Components that nobody wrote: generated modules of the handler's world, and valid components with bytes changed.
//!
//! `LANEWAY_SMITH_COUNT` says how many, `LANEWAY_SMITH_SEED` is one seed to run again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use laneway_core::{Failure, SubscriptionKind};
use laneway_host::{Limits, Plugin, PluginError, PluginSpec};
use wasm_smith::{Config, Module};

use crate::guest::{EFFECTS, Guest, LOG, OK, SLEEP};
use crate::support::{host, run, spec, timed};

/// Components in a run that is not told how many.
const COUNT: u64 = 10_000;
/// Bytes that a module is generated from.
const ENTROPY_BYTES: usize = 4096;
/// What a check of the configuration and an attempt have each; many are endless.
const TIMEOUT: Duration = Duration::from_millis(10);
/// What one component may take in all, on a busy machine.
const LONGEST: Duration = Duration::from_secs(20);

/// Reasons that a guest's own doing leads to.
const REASONS: [&str; 10] = [
    "timeout",
    "memory_limit",
    "table_limit",
    "stack_overflow",
    "output_limit",
    "resource_limit",
    "effect_limit",
    "log_limit",
    "guest_panic",
    "trap",
];

/// What a handler of the contract imports and exports, as a core module has it.
const SHAPE: &str = r#"(module
    (import "laneway:plugin/log@0.1.0" "log" (func (param i32 i32 i32 i32 i32)))
    (import "laneway:plugin/config@0.1.0" "get" (func (param i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "get" (func (param i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "put" (func (param i32 i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "delete" (func (param i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "add" (func (param i32 i32 i64)))
    (import "laneway:plugin/effects@0.1.0" "count" (func (param i32 i32) (result i64)))
    (import "laneway:plugin/effects@0.1.0" "annotate" (func (param i32 i32 i32)))
    (import "laneway:plugin/effects@0.1.0" "emit" (func (param
        i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i64 i32)))
    (memory (export "memory") 2)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
    (func (export "laneway:plugin/lifecycle@0.1.0#validate") (result i32) unreachable)
    (func (export "laneway:plugin/handler@0.1.0#handle") (param i32) (result i32) unreachable)
    (func (export "cabi_post_laneway:plugin/handler@0.1.0#handle") (param i32)))"#;

/// Random numbers that a seed replays (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }
}

fn seeds() -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    match number("LANEWAY_SMITH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LANEWAY_SMITH_COUNT").unwrap_or(COUNT),
    }
}

/// Runs what each seed makes on two threads; tells how many ended in which way.
fn run_seeds(what: &str, make: impl Fn(u64) -> Option<Vec<u8>> + Sync) -> BTreeMap<String, u64> {
    let (tally, wrong) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let (began, seeds) = (Instant::now(), seeds());
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (tally, wrong, make, seeds) = (&tally, &wrong, &make, seeds.clone());
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                for seed in seeds.filter(|seed| seed % 2 == thread) {
                    let began = Instant::now();
                    // What is thrown here is a panic of the host's, or of the generator's.
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        make(seed).map(|bytes| runtime.block_on(end(&bytes)))
                    }));
                    let how = match done {
                        Ok(Some(Ok(how))) => how,
                        Ok(None) => "not made".to_owned(),
                        Ok(Some(Err(error))) => {
                            wrong.lock().unwrap().push(format!("seed={seed}: {error}"));
                            "wrong".to_owned()
                        }
                        Err(_) => {
                            wrong.lock().unwrap().push(format!("seed={seed}: panicked"));
                            "wrong".to_owned()
                        }
                    };
                    if began.elapsed() > LONGEST {
                        wrong
                            .lock()
                            .unwrap()
                            .push(format!("seed={seed}: took {:?} and was {how}", began.elapsed()));
                    }
                    *tally.lock().unwrap().entry(how).or_insert(0) += 1;
                }
            });
        }
    });
    let (tally, wrong) = (tally.into_inner().unwrap(), wrong.into_inner().unwrap());
    eprintln!("{what}: seeds {seeds:?} in {:.1?}: {tally:?}", began.elapsed());
    assert!(wrong.is_empty(), "LANEWAY_SMITH_SEED=n runs one again\n{}", wrong.join("\n"));
    tally
}

/// How a component ended, in few words; an error if that is not how one may.
async fn end(bytes: &[u8]) -> Result<String, String> {
    let limits = Limits { validate_timeout: TIMEOUT, ..Limits::default() };
    let spec = PluginSpec { limits, ..spec(SubscriptionKind::Handler) };
    let plugin = match host().plugin(bytes, spec) {
        Ok(plugin) => plugin,
        Err(PluginError::Compile(error)) if error.contains("panicked") => return Err(error),
        Err(error) => {
            if seeds().count() == 1 {
                eprintln!("{error}");
            }
            return Ok(format!("refused: {}", kind(&error)));
        }
    };
    match plugin.validate().await {
        Ok(()) | Err(PluginError::Invalid { .. } | PluginError::Mismatch(_)) => {}
        Err(PluginError::Validate { reason, error }) => named(reason.as_str(), error.as_str()).map(drop)?,
        Err(error) => return Err(error.to_string()),
    }
    attempt(&plugin).await
}

async fn attempt(plugin: &Plugin) -> Result<String, String> {
    match run(plugin, timed(TIMEOUT)).await.result {
        Ok(()) => Ok("well".to_owned()),
        Err(Failure::Throttled { .. }) => Ok("throttled".to_owned()),
        Err(
            Failure::Retry { reason, error }
            | Failure::Reject { reason, error }
            | Failure::UnknownOutcome { reason, error }
            | Failure::Misconfigured { reason, error },
        ) => named(reason.as_str(), error.as_str()),
        Err(other) => Err(format!("{other:?}")),
    }
}

fn named(reason: &str, error: &str) -> Result<String, String> {
    if reason.starts_with("guest:") {
        return Ok("guest".to_owned());
    }
    if REASONS.contains(&reason) { Ok(reason.to_owned()) } else { Err(format!("{reason}: {error}")) }
}

fn kind(error: &PluginError) -> &'static str {
    match error {
        PluginError::Compile(_) => "compile",
        PluginError::Mismatch(_) => "mismatch",
        PluginError::Limit { .. } => "limit",
        PluginError::NotWebAssembly { .. } | PluginError::CoreModule => "form",
        _ => "contract",
    }
}

/// A module of the handler's shape. None if the generator finds no way to fill it.
fn generated(shape: &[u8], seed: u64) -> Option<Vec<u8>> {
    let mut random = Random(seed);
    let entropy = random.bytes(ENTROPY_BYTES);
    let mut entropy = Unstructured::new(&entropy);
    let config = Config {
        exports: Some(shape.to_owned()),
        available_imports: Some(shape.to_owned()),
        max_memories: 3,
        max_tables: 6,
        max_funcs: 20,
        max_types: 60,
        max_globals: 30,
        max_imports: 20,
        max_data_segments: 10,
        max_element_segments: 10,
        max_instructions: 20 + random.below(400),
        max_memory32_bytes: 1 << (16 + random.below(10)),
        max_memory64_bytes: 1 << (16 + random.below(10)),
        max_table_elements: 1 << random.below(17),
        min_uleb_size: 1,
        memory64_enabled: random.below(8) == 0,
        allow_invalid_funcs: false,
        // References to the outside need the garbage collector, which this host does not have.
        reference_types_enabled: random.below(8) == 0,
        disallow_traps: random.below(2) == 0,
        // What this host does not have would only be refused.
        exceptions_enabled: false,
        gc_enabled: false,
        threads_enabled: false,
        shared_everything_threads_enabled: false,
        custom_page_sizes_enabled: false,
        custom_descriptors_enabled: false,
        compact_imports_enabled: false,
        wide_arithmetic_enabled: false,
        acquire_release_atomics_enabled: false,
        ..Config::arbitrary(&mut entropy).ok()?
    };
    Module::new(config, &mut entropy).ok().map(|module| module.to_bytes())
}

#[test]
fn generated_handlers_end_with_a_named_reason_and_never_panic_the_host() {
    let shape = wat::parse_str(SHAPE).unwrap();
    let guest = Guest::handler(OK);
    let tally = run_seeds("generated", |seed| generated(&shape, seed).map(|module| guest.wrap(module)));
    let (made, ran) = tally.iter().fold((0, 0), |(made, ran), (how, count)| match how.as_str() {
        "not made" => (made, ran),
        how if how.starts_with("refused") => (made + count, ran),
        _ => (made + count, ran + count),
    });
    let all = seeds().count() as u64;
    // The generator has to be of use: most of what it makes is to run.
    assert!(all < 100 || made * 2 > all && ran * 2 > made, "{all} seeds, {made} made, {ran} ran: {tally:?}");
}

#[test]
fn components_with_bytes_changed_end_with_a_named_reason_and_never_panic_the_host() {
    let log = "(call $log (i32.const 2) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 0)) (i32.const 1024)";
    let put = "(call $put (i32.const 16) (i32.const 3) (i32.const 0) (i32.const 9)) (i32.const 1024)";
    let sleep = format!("(call $sleep (i64.const 1000)) {OK}");
    let originals = [
        Guest::handler(OK).build(),
        Guest::handler(log).fields(LOG).build(),
        Guest::handler(put).fields(EFFECTS).fields(r#"(data (i32.const 16) "key")"#).build(),
        Guest::handler(&sleep)
            .fields(SLEEP)
            .import("wasi:clocks/monotonic-clock@0.2.0")
            .import("wasi:io/poll@0.2.0")
            .build(),
    ];
    let tally = run_seeds("changed", |seed| {
        let mut random = Random(seed ^ 0x5eed);
        let mut bytes = originals[random.below(originals.len())].clone();
        for _ in 0..=random.below(4) {
            change(&mut bytes, &mut random);
        }
        Some(bytes)
    });
    assert!(seeds().count() < 100 || tally.contains_key("well") && tally.len() > 3, "{tally:?}");
}

fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    let some = random.below(16).min(bytes.len() - at);
    match random.below(8) {
        0..=3 => bytes[at] ^= 1 << random.below(8),
        4 => bytes[at] = random.next() as u8,
        5 => drop(bytes.drain(at..at + some)),
        6 => drop(bytes.splice(at..at, random.bytes(some))),
        _ => {
            let copied = bytes[at..at + some].to_vec();
            let to = random.below(bytes.len());
            drop(bytes.splice(to..to, copied));
        }
    }
    // Something has to be left to change.
    if bytes.is_empty() {
        bytes.push(0);
    }
}
