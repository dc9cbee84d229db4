//! `cargo xtask demo`: the flights example from a fresh clone, with a kill -9 in the middle, compared with the CSV.

mod flights;
mod kills;
mod node;
mod receiver;
mod stage;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use self::{
    flights::{Carriers, Expected},
    kills::Kills,
    node::Node,
    receiver::{Received, Receiver},
    stage::{Interrupt, Stage},
};
use crate::{cargo, plugins, postgres};

/// Longest time for a runtime to load its plugins and for a database to be ready.
const START_MAX: Duration = Duration::from_secs(60);

/// How often a status is asked for, which counts deliveries.
const STATUS_POLL: Duration = Duration::from_millis(100);

/// Flights a second that even a slow machine settles; more time than this is not given.
const FLIGHTS_PER_SECOND_MIN: f64 = 200.0;

/// How to run the demo
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Run two nodes on a PostgreSQL that the demo starts, and kill one of them for good
    #[arg(long)]
    postgres: bool,
    /// Which flights: the committed week, or the year that examples/flights/make-year.py makes
    #[arg(long, value_enum, default_value = "week")]
    rows: Rows,
    /// Other flights, as a CSV of the same columns
    #[arg(long, value_name = "FILE", conflicts_with = "rows")]
    csv: Option<PathBuf>,
    /// Kill nodes so many times at random moments, starting each again
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: Option<u32>,
    /// What decides on the moments of --kills; printed by each run, to repeat it
    #[arg(long, requires = "kills")]
    seed: Option<u64>,
    /// Keep the temporary directory: configuration, logs and SQLite file
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Rows {
    Week,
    Year,
}

impl DemoArgs {
    fn csv(&self) -> Result<PathBuf> {
        let root = cargo::root()?;
        match (&self.csv, self.rows) {
            (Some(csv), _) => Ok(std::path::absolute(csv)?),
            (None, Rows::Week) => Ok(root.join("examples/flights/data/flights-week1.csv")),
            (None, Rows::Year) => {
                let csv = root.join("target/flights-year.csv");
                ensure!(csv.is_file(), "{} is missing; examples/flights/make-year.py makes it", csv.display());
                Ok(csv)
            }
        }
    }
}

/// What happened, with the times since the producer began.
struct Run {
    /// Flights handled when the node was killed, and when that was.
    killed: (i64, Duration),
    /// When all flights were handled, if they were.
    handled_at: Option<Duration>,
    /// When no delivery was left.
    settled_at: Duration,
    /// Deliveries that ended as dead letters.
    dead_letters: u64,
    carriers: Carriers,
    received: Received,
}

/// Runs the demo. An error if the result is not that of the CSV.
pub fn run(args: &DemoArgs) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let csv = args.csv()?;
    let expected = Expected::of_file(&csv)?;
    ensure!(expected.flights >= 100, "{} has too few flights to kill anything in their middle", csv.display());

    let programs = cargo::build_programs()?;
    let plugins = plugins::ensure_built()?;
    let cluster = if args.postgres { Some(postgres::start()?) } else { None };
    let receiver = Receiver::start()?;
    let mut stage = Stage::new(interrupt, &programs, &plugins, &receiver.origin())?;
    match &cluster {
        Some(cluster) => {
            cluster.create_database("flights")?;
            stage.use_postgres(cluster.url("flights"))?;
        }
        None => stage.use_sqlite(),
    }
    println!(
        "{} flights from {}, {} of them more than an hour late",
        expected.flights,
        csv.display(),
        expected.late.len()
    );
    let outcome = match args.kills {
        None => act(&stage, &csv, &expected, args.postgres, &receiver),
        Some(count) => {
            stage.expect_kills()?;
            let seed = args.seed.unwrap_or_else(laneway_testing::seed);
            let kills = Kills { count, seed, two: args.postgres };
            kills::act(&stage, &csv, &expected, &kills, &receiver)
        }
    };
    let closed = stage.close(args.keep);
    let run = outcome?;
    closed?;
    conclude(&run, &expected)
}

/// Starts, kills, and waits until nothing is left to do. Whatever it started has ended when it returns.
fn act(stage: &Stage, csv: &std::path::Path, expected: &Expected, two: bool, receiver: &Receiver) -> Result<Run> {
    let patience = START_MAX + Duration::from_secs_f64(expected.flights as f64 / FLIGHTS_PER_SECOND_MIN);
    let mut victim = stage.start_node("node-a")?;
    stage.wait_for_topology(&mut victim, START_MAX)?;
    let second = if two {
        let mut second = stage.start_node("node-b")?;
        stage.wait_until_running(&mut second, START_MAX)?;
        println!("node-a and node-b run on PostgreSQL");
        Some(second)
    } else {
        println!("node-a runs on SQLite");
        None
    };

    let begin = Instant::now();
    let mut producer = stage.start_producer(csv)?;
    let mut half = stage.watch(expected.flights / 2, patience)?;
    while !half.ended()? {
        victim.check()?;
        stage.pause(begin, patience, "half of the flights to be handled")?;
    }
    victim.kill()?;
    let killed_at = begin.elapsed();
    half.succeed()?;
    let (at_kill, _) = stage.report()?;
    ensure!(
        at_kill < expected.flights,
        "all flights were handled before the kill, so it proved nothing; try more flights with --rows year"
    );
    println!("node-a was killed (SIGKILL) after {:.2} s, with {at_kill} flights handled", killed_at.as_secs_f64());

    let survivor = match second {
        Some(second) => {
            println!("node-b goes on alone");
            second
        }
        None => {
            println!("node-a starts again");
            stage.start_node("node-a")?
        }
    };
    let (handled_at, settled_at, dead_letters) =
        finish(stage, survivor, &mut producer, expected.flights, begin, patience)?;
    let (_, carriers) = stage.report()?;
    let received = receiver.received();
    Ok(Run { killed: (at_kill, killed_at), handled_at, settled_at, dead_letters, carriers, received })
}

/// Waits until the producer has ended and no delivery is left, then stops the node.
fn finish(
    stage: &Stage,
    mut node: Node,
    producer: &mut Node,
    flights: i64,
    begin: Instant,
    patience: Duration,
) -> Result<(Option<Duration>, Duration, u64)> {
    let mut watch = stage.watch(flights, patience)?;
    let mut handled_at = None;
    while !producer.ended()? {
        node.check()?;
        stage.pause(begin, patience, "the producer")?;
    }
    producer.succeed()?;
    // A status is not one snapshot of the database: an alert may be emitted between its two subscriptions.
    let mut empty = 0;
    let mut looked = None;
    let status = loop {
        node.check()?;
        if handled_at.is_none() && watch.ended()? {
            handled_at = Some(begin.elapsed());
        }
        if looked.is_none_or(|looked: Instant| looked.elapsed() > STATUS_POLL) {
            let status = stage.status()?;
            empty = if status.open == 0 { empty + 1 } else { 0 };
            if empty == 2 {
                break status;
            }
            looked = Some(Instant::now());
        }
        stage.pause(begin, patience, "the last delivery to be settled")?;
    };
    let settled_at = begin.elapsed();
    if handled_at.is_some() {
        watch.succeed()?;
    }
    node.stop()?;
    Ok((handled_at, settled_at, status.dead_letters))
}

fn conclude(run: &Run, expected: &Expected) -> Result<()> {
    println!();
    let mut wrong = Vec::new();
    if !flights::print_comparison(&run.carriers, &expected.carriers) {
        wrong.push("the tables differ".to_owned());
    }
    let received = &run.received;
    println!(
        "\nalerts: {} expected, {} distinct ids received, {} duplicates",
        expected.late.len(),
        received.ids,
        received.duplicates()
    );
    if received.ids != expected.late.len() || received.flights != expected.late {
        let missing = expected.late.difference(&received.flights).count();
        let unexpected = received.flights.difference(&expected.late).count();
        wrong.push(format!(
            "the alerts differ: {} distinct ids for {} late flights, {missing} flights missing, {unexpected} unexpected",
            received.ids,
            expected.late.len()
        ));
    }
    if received.refused > 0 {
        wrong.push(format!("{} requests were no alerts", received.refused));
    }
    if run.dead_letters > 0 {
        wrong.push(format!("{} deliveries ended as dead letters", run.dead_letters));
    }
    print_throughput(run, expected.flights);
    if wrong.is_empty() {
        println!("EQUAL: the runtime's table is that of the CSV, and each late flight was alerted under one id.");
        return Ok(());
    }
    bail!("{}", wrong.join("; "))
}

fn print_throughput(run: &Run, flights: i64) {
    let (at_kill, killed_at) = run.killed;
    let rate = |flights: i64, time: Duration| flights as f64 / time.as_secs_f64().max(f64::EPSILON);
    let line = |what: &str, flights: i64, time: Duration| {
        println!(
            "  {what:<36} {flights:>7} flights in {:>6.2} s {:>8.0}/s",
            time.as_secs_f64(),
            rate(flights, time)
        );
    };
    println!("throughput, from the producer's start:");
    line("until the kill", at_kill, killed_at);
    if let Some(handled_at) = run.handled_at {
        line("in all, with the kill and its leases", flights, handled_at);
    }
    println!("  {:<36} {:>26.2} s", "until the last alert was settled", run.settled_at.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{flights::Stats, *};

    fn expected() -> Expected {
        let carriers =
            Carriers::from([("UA".to_owned(), Stats { departures: 2, cancelled: 0, delay_minutes: 99 })]);
        Expected { flights: 2, carriers, late: BTreeSet::from([7]) }
    }

    fn good_run() -> Run {
        Run {
            killed: (1, Duration::from_secs(1)),
            handled_at: Some(Duration::from_secs(2)),
            settled_at: Duration::from_secs(3),
            dead_letters: 0,
            carriers: expected().carriers,
            received: Received { posts: 3, ids: 1, flights: BTreeSet::from([7]), refused: 0 },
        }
    }

    fn verdict(spoil: impl FnOnce(&mut Run)) -> String {
        let mut run = good_run();
        spoil(&mut run);
        conclude(&run, &expected()).unwrap_err().to_string()
    }

    #[test]
    fn duplicates_under_one_id_are_no_fault() {
        conclude(&good_run(), &expected()).unwrap();
    }

    #[test]
    fn whatever_differs_is_a_fault_and_is_named() {
        assert!(verdict(|run| run.carriers.clear()).contains("tables differ"));
        assert!(verdict(|run| run.received.ids = 2).contains("2 distinct ids for 1 late flights"));
        assert!(verdict(|run| run.received.flights.clear()).contains("1 flights missing"));
        assert!(verdict(|run| run.received.flights = BTreeSet::from([7, 8])).contains("1 unexpected"));
        assert!(verdict(|run| run.received.refused = 1).contains("no alerts"));
        assert!(verdict(|run| run.dead_letters = 1).contains("dead letters"));
    }
}
