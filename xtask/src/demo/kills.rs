//! Many kills at random moments while the flights flow: what `--kills` asks for. A kill is *at work* if flights were
//! handled between the one before and it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use laneway_testing::Random;

use super::{Run, START_MAX, finish, flights::Expected, receiver::Receiver, stage::Stage};

/// Shortest and longest time between two kills: from within a node's start to well into its work.
const BETWEEN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(900));

/// What a node's start and the looks at its work add to that, on a slow machine.
const START: Duration = Duration::from_secs(1);

/// Part of the flights that the producer writes while the kills go on; the rest shows that work goes on after them.
const DURING_KILLS: f64 = 0.9;

/// Why a run proved nothing about its last kills.
const TOO_FEW: &str = "all flights were handled before the last kill; try more flights with --rows year";

/// What to do how often.
pub struct Kills {
    pub count: u32,
    pub seed: u64,
    /// Two nodes on one database, of which each kill hits one.
    pub two: bool,
}

/// Kills nodes and starts them again, then waits until nothing is left to do.
pub fn act(stage: &Stage, csv: &Path, expected: &Expected, kills: &Kills, receiver: &Receiver) -> Result<Run> {
    let mut random = Random::new(kills.seed);
    let mean = (BETWEEN.0 + BETWEEN.1) / 2 + START;
    let seconds = mean.as_secs_f64() * f64::from(kills.count);
    // At least one flight a second; the cast is of a positive number that fits.
    let pace = (expected.flights as f64 * DURING_KILLS / seconds).ceil().max(1.0) as u32;
    let patience = START_MAX + Duration::from_secs_f64(seconds * 4.0 + expected.flights as f64 / 200.0);

    let names: &[&str] = if kills.two { &["node-a", "node-b"] } else { &["node-a"] };
    let mut nodes = names.iter().map(|name| stage.start_node(name)).collect::<Result<Vec<_>>>()?;
    stage.wait_for_topology(&mut nodes[0], START_MAX)?;
    let begin = Instant::now();
    let mut producer = stage.start_producer_at(csv, pace)?;
    println!("seed={}: {} kills, {pace} flights a second", kills.seed, kills.count);
    let (mut handled, mut at_work) = (0, 0);
    for number in 1..=kills.count {
        // A node that is killed before it does anything proves little, so at most every other one is.
        if at_work * 2 < number {
            ensure!(handled < expected.flights, TOO_FEW);
            let mut watch = stage.watch(handled + 1, patience)?;
            while !watch.ended()? {
                stage.pause(begin, patience, "a node to work after its start")?;
            }
            watch.succeed()?;
        }
        let wait = BETWEEN.0 + (BETWEEN.1 - BETWEEN.0).mul_f64(random.unit());
        let until = Instant::now() + wait;
        while Instant::now() < until {
            stage.pause(begin, patience, "the next kill")?;
        }
        let victim = random.below(nodes.len());
        nodes.swap_remove(victim).kill()?;
        let (now_handled, _) = stage.report()?;
        at_work += u32::from(now_handled > handled);
        handled = now_handled;
        // The killed node was swapped with the last one, so the list is of the nodes that live.
        let name = names.iter().find(|name| nodes.iter().all(|node| node.name() != **name)).copied();
        nodes.push(stage.start_node(name.unwrap_or("node-a"))?);
        if number % 20 == 0 || number == kills.count {
            println!(
                "{number} kills after {:.1} s, {at_work} of them at work; {handled} flights handled",
                begin.elapsed().as_secs_f64(),
            );
        }
    }
    ensure!(
        at_work * 2 >= kills.count,
        "only {at_work} of {} kills were at work, so the run proved little",
        kills.count
    );
    let killed_at = begin.elapsed();
    let (at_kill, _) = stage.report()?;
    ensure!(at_kill < expected.flights, TOO_FEW);
    // What was held back for further kills comes at once; the flights that are there already are passed over.
    if producer.ended()? {
        producer.succeed()?;
    }
    drop(producer);
    let mut producer = stage.start_producer(csv)?;
    let survivor = nodes.swap_remove(0);
    for node in nodes {
        node.stop()?;
    }
    let (handled_at, settled_at, dead_letters) =
        finish(stage, survivor, &mut producer, expected.flights, begin, patience)?;
    let (_, carriers) = stage.report()?;
    let received = receiver.received();
    Ok(Run { killed: (at_kill, killed_at), handled_at, settled_at, dead_letters, carriers, received })
}
