//! Producer of the flights example: writes each flight to its own table and a `flights.departed` message to Laneway's
//! outbox, in one transaction of plain SQL. It knows Laneway by the outbox and state tables alone.

mod database;
mod flight;
mod postgres;
mod sqlite;

use std::{
    fs::File,
    io::BufReader,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::database::{CarrierStats, Database};

/// How often `report --wait-handled` looks.
const REPORT_POLL: Duration = Duration::from_millis(2);

/// Insert flights and their messages, or report what became of them
#[derive(Parser)]
#[command(
    name = "flights-producer",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    produce: Option<Produce>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print what the handler has counted by carrier, as JSON
    Report(Report),
}

#[derive(Args)]
struct Produce {
    /// Database of application and Laneway: sqlite://FILE or postgres://...
    #[arg(long, value_name = "URL")]
    database: String,
    /// CSV of the flights to insert; those that are there already are passed over
    #[arg(long, value_name = "FILE")]
    csv: PathBuf,
    /// Flights in one transaction
    #[arg(long, value_name = "ROWS", default_value = "100")]
    batch: NonZeroUsize,
    /// Flights a second; as fast as the database takes them if not given
    #[arg(long, value_name = "ROWS")]
    pace: Option<NonZeroU32>,
}

#[derive(Args)]
struct Report {
    /// Database of application and Laneway: sqlite://FILE or postgres://...
    #[arg(long, value_name = "URL")]
    database: String,
    /// Wait until this many flights are counted
    #[arg(long, value_name = "FLIGHTS")]
    wait_handled: Option<i64>,
    /// Give up waiting after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// The report, as JSON.
#[derive(Serialize)]
struct Counted {
    /// Flights counted, cancelled ones included.
    handled: i64,
    carriers: Vec<CarrierStats>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (cli.command, cli.produce) {
        (Some(Command::Report(args)), _) => report(args).await,
        (None, Some(args)) => produce(args).await,
        (None, None) => Err(anyhow!("nothing to do; see --help")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flights-producer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn produce(args: Produce) -> Result<()> {
    let csv = File::open(&args.csv).with_context(|| format!("could not open {}", args.csv.display()))?;
    let mut flights = flight::read_csv(BufReader::new(csv)).with_context(|| args.csv.display().to_string())?;
    let mut database = Database::connect(&args.database).await?;
    database.create_table().await?;

    let begin = Instant::now();
    let (mut read, mut inserted) = (0_u64, 0);
    loop {
        let batch = flights.by_ref().take(args.batch.get()).collect::<Result<Vec<_>>>();
        let batch = batch.with_context(|| args.csv.display().to_string())?;
        if batch.is_empty() {
            break;
        }
        inserted += database.insert(&batch).await?;
        read += batch.len() as u64;
        if let Some(pace) = args.pace {
            let due = begin + Duration::from_secs_f64(read as f64 / f64::from(pace.get()));
            tokio::time::sleep_until(due.into()).await;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{inserted} flights and messages inserted in {seconds:.2} s, {} were there already", read - inserted);
    Ok(())
}

async fn report(args: Report) -> Result<()> {
    let mut database = Database::connect(&args.database).await?;
    let give_up = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let carriers = database.carriers().await?;
        let handled = carriers.iter().map(|stats| stats.departures + stats.cancelled).sum();
        match args.wait_handled {
            Some(wanted) if handled < wanted => {
                if Instant::now() >= give_up {
                    bail!("{handled} of {wanted} flights were counted in {} s", args.timeout);
                }
                tokio::time::sleep(REPORT_POLL).await;
            }
            _ => {
                println!("{}", serde_json::to_string(&Counted { handled, carriers })?);
                return Ok(());
            }
        }
    }
}
