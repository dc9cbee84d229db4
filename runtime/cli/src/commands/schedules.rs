//! `laneway schedules`: what is done at which times.

use anyhow::{Context, Result};
use clap::Subcommand;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use laneway_core::{CronExpression, MessageId, Name, Schedule, ScheduleAction, ScheduleRunView};
use laneway_engine::{Work, said_of_kept};
use serde::Serialize;

use super::cleanup::{cutoff, said, sweep_all};
use crate::Shared;
use crate::config::Config;
use crate::config::schedules::zone;
use crate::output;

#[derive(Subcommand)]
pub enum Command {
    /// List the configuration's schedules, with their last and next times
    List,
    /// Show the next times of a schedule
    Next {
        /// The schedule's name
        #[arg(value_parser = Name::parse)]
        name: Name,
        /// How many
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
    },
    /// Say in words when an expression fires, and show its next times
    Explain {
        /// The expression, such as "0 2 * * 1-5"
        cron: String,
        /// Where the clock hangs that the times are read from
        #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = parse_zone)]
        time_zone: TimeZone,
    },
    /// Do at once what a schedule does; its times go on as they are
    Run {
        /// The schedule's name
        #[arg(value_parser = Name::parse)]
        name: Name,
    },
}

fn parse_zone(text: &str) -> Result<TimeZone, String> {
    zone(text).map_err(|error| error.to_string())
}

/// A schedule as it is listed.
#[derive(Serialize)]
struct Listed {
    name: Name,
    cron: String,
    time_zone: String,
    does: String,
    last: Option<ScheduleRunView>,
    next: Option<Timestamp>,
}

/// An expression, explained.
#[derive(Serialize)]
struct Explained {
    cron: String,
    explanation: String,
    next: Vec<String>,
}

/// What a run by hand did.
#[derive(Serialize)]
struct Ran {
    schedule: Name,
    did: String,
}

pub async fn run(shared: &Shared, command: Command) -> Result<()> {
    match command {
        Command::List => list(shared).await,
        Command::Next { name, count } => {
            let config = Config::load(&shared.config, shared.storage.as_ref())?;
            let schedule = find(&config, &name)?;
            let times = times(&schedule.cron, &schedule.zone, usize::from(count));
            if shared.json {
                return output::json(&times);
            }
            times.iter().try_for_each(|time| output::line(time))
        }
        Command::Explain { cron, time_zone } => {
            let cron = CronExpression::parse(&cron).map_err(|error| crate::exit::usage(&error.to_string()))?;
            let explained = Explained {
                cron: cron.to_string(),
                explanation: cron.explain(),
                next: times(&cron, &time_zone, 5),
            };
            if shared.json {
                return output::json(&explained);
            }
            output::line(&explained.explanation)?;
            explained.next.iter().try_for_each(|time| output::line(time))
        }
        Command::Run { name } => run_now(shared, &name).await,
    }
}

fn find<'c>(config: &'c Config, name: &Name) -> Result<&'c Schedule> {
    config.schedules.all.iter().find(|schedule| schedule.name == *name).with_context(|| {
        let known: Vec<&str> = config.schedules.all.iter().map(|schedule| schedule.name.as_str()).collect();
        format!("no schedule is named `{name}`; there are: {}", known.join(", "))
    })
}

/// The next times, as the clock shows them there.
fn times(cron: &CronExpression, zone: &TimeZone, count: usize) -> Vec<String> {
    // From the user's point of view: nothing is decided by it.
    let now = Timestamp::now();
    std::iter::successors(cron.next_after(now, zone), |time| cron.next_after(*time, zone))
        .take(count)
        .map(|time| time.to_zoned(zone.clone()).to_string())
        .collect()
}

fn does(action: &ScheduleAction) -> String {
    match action {
        ScheduleAction::Enqueue(message) => format!("enqueue {}", message.topic),
        ScheduleAction::Clean(policy) => format!("clean {}", policy.what.as_str()),
    }
}

async fn list(shared: &Shared) -> Result<()> {
    let config = Config::load(&shared.config, shared.storage.as_ref())?;
    let store = config.storage.open().await?;
    let now = store.now().await?;
    let mut listed = Vec::with_capacity(config.schedules.all.len());
    for schedule in &config.schedules.all {
        listed.push(Listed {
            name: schedule.name.clone(),
            cron: schedule.cron.to_string(),
            time_zone: schedule.zone.iana_name().unwrap_or("UTC").to_owned(),
            does: does(&schedule.action),
            last: store.schedule_runs(&schedule.name, 1).await?.pop(),
            next: schedule.next_after(now),
        });
    }
    if shared.json {
        return output::json(&listed);
    }
    let or_dash = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    let rows: Vec<_> = listed
        .iter()
        .map(|schedule| {
            let last = schedule.last.as_ref();
            [
                schedule.name.to_string(),
                schedule.cron.clone(),
                schedule.time_zone.clone(),
                schedule.does.clone(),
                or_dash(last.map(|run| run.fire_at)),
                last.map_or("-", |run| run.outcome.as_deref().unwrap_or("running")).to_owned(),
                or_dash(schedule.next),
            ]
        })
        .collect();
    output::table(["SCHEDULE", "CRON", "ZONE", "DOES", "LAST", "OUTCOME", "NEXT"], &rows)
}

async fn run_now(shared: &Shared, name: &Name) -> Result<()> {
    let config = Config::load(&shared.config, shared.storage.as_ref())?;
    let schedule = find(&config, name)?;
    let store = config.storage.open().await?;
    let did = match &schedule.action {
        ScheduleAction::Enqueue(message) => {
            let mut message = message.clone();
            message.id = MessageId::generate();
            store.enqueue(std::slice::from_ref(&message)).await?;
            format!("Enqueued message {}.", message.id)
        }
        ScheduleAction::Clean(policy) => {
            let before = cutoff(store.now().await?, policy.retention)?;
            let work = Work::Clean { what: policy.what, before };
            let (deleted, kept) = sweep_all(&*store, work, policy.batch_size, "deleted").await?;
            let kept = said_of_kept(&kept).map(|kept| format!(" {kept}.")).unwrap_or_default();
            format!("{}{kept}", said(policy.what, deleted, false))
        }
    };
    if shared.json {
        return output::json(&Ran { schedule: name.clone(), did });
    }
    output::line(&did)
}
