//! What the result must be, computed straight from the CSV, and what it is, as the producer's report says.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A departure later than this many minutes is alerted.
const ALERT_AFTER_MINUTES: i64 = 60;

/// Counts of one carrier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub departures: i64,
    pub cancelled: i64,
    pub delay_minutes: i64,
}

/// Counts by carrier.
pub type Carriers = BTreeMap<String, Stats>;

/// What a CSV of flights must come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Rows of the CSV.
    pub flights: i64,
    pub carriers: Carriers,
    /// `flight_id` of each departure that must be alerted.
    pub late: BTreeSet<i64>,
}

impl Expected {
    /// Reads a CSV.
    pub fn of_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
        Self::of_csv(&text).with_context(|| path.display().to_string())
    }

    fn of_csv(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        let column = |name: &str| {
            header.iter().position(|column| *column == name).with_context(|| format!("there is no column {name:?}"))
        };
        let (carrier, delay, id) = (column("carrier")?, column("dep_delay")?, column("flight_id")?);

        let mut expected = Self::default();
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            ensure!(fields.len() == header.len(), "there are not {} columns in {line:?}", header.len());
            expected.flights += 1;
            let stats = expected.carriers.entry(fields[carrier].to_owned()).or_default();
            if fields[delay].is_empty() {
                stats.cancelled += 1;
                continue;
            }
            let minutes: i64 = fields[delay].parse().with_context(|| format!("dep_delay in {line:?}"))?;
            stats.departures += 1;
            stats.delay_minutes += minutes;
            if minutes > ALERT_AFTER_MINUTES {
                expected.late.insert(fields[id].parse().with_context(|| format!("flight_id in {line:?}"))?);
            }
        }
        Ok(expected)
    }
}

/// Reads the JSON of `flights-producer report`: flights handled, and the counts by carrier.
pub fn read_report(json: &[u8]) -> Result<(i64, Carriers)> {
    let report: Value = serde_json::from_slice(json).context("the report is no JSON")?;
    let number = |value: &Value, name: &str| {
        value[name].as_i64().with_context(|| format!("the report has no number {name:?} in {value}"))
    };
    let mut carriers = Carriers::new();
    for row in report["carriers"].as_array().context("the report has no carriers")? {
        let carrier = row["carrier"].as_str().context("the report has a carrier without code")?;
        let stats = Stats {
            departures: number(row, "departures")?,
            cancelled: number(row, "cancelled")?,
            delay_minutes: number(row, "delay_minutes")?,
        };
        ensure!(carriers.insert(carrier.to_owned(), stats).is_none(), "the report has carrier {carrier} twice");
    }
    Ok((number(&report, "handled")?, carriers))
}

/// Prints both tables side by side and answers whether they are equal.
pub fn print_comparison(runtime: &Carriers, csv: &Carriers) -> bool {
    println!("          |      departures |       cancelled |       delay minutes |");
    println!("  carrier | runtime     CSV | runtime     CSV |   runtime       CSV | equal");
    println!("  --------+-----------------+-----------------+---------------------+------");
    let names: BTreeSet<&String> = runtime.keys().chain(csv.keys()).collect();
    for name in names {
        print_row(name, runtime.get(name), csv.get(name));
    }
    let sum = |carriers: &Carriers| {
        carriers.values().fold(Stats::default(), |sum, stats| Stats {
            departures: sum.departures + stats.departures,
            cancelled: sum.cancelled + stats.cancelled,
            delay_minutes: sum.delay_minutes + stats.delay_minutes,
        })
    };
    print_row("all", Some(&sum(runtime)), Some(&sum(csv)));
    runtime == csv
}

fn print_row(name: &str, runtime: Option<&Stats>, csv: Option<&Stats>) {
    let cell = |stats: Option<&Stats>, of: fn(&Stats) -> i64| stats.map_or("-".to_owned(), |s| of(s).to_string());
    let pair = |of: fn(&Stats) -> i64| (cell(runtime, of), cell(csv, of));
    let (departures, cancelled, delay) = (pair(|s| s.departures), pair(|s| s.cancelled), pair(|s| s.delay_minutes));
    println!(
        "  {name:7} | {:>7} {:>7} | {:>7} {:>7} | {:>9} {:>9} | {}",
        departures.0,
        departures.1,
        cancelled.0,
        cancelled.1,
        delay.0,
        delay.1,
        if runtime == csv { "yes" } else { "NO" }
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "date,carrier,flight,origin,dest,dep_delay,flight_id\n\
        2013-01-01,UA,1,EWR,IAH,2,1\n\
        2013-01-01,UA,2,EWR,IAH,-5,2\n\
        2013-01-01,AA,3,JFK,MIA,60,3\n\
        2013-01-01,AA,4,JFK,MIA,61,4\n\
        2013-01-01,AA,5,JFK,MIA,,5\n";

    #[test]
    fn the_csv_is_summed_by_carrier() {
        let expected = Expected::of_csv(CSV).unwrap();
        assert_eq!(expected.flights, 5);
        assert_eq!(expected.carriers["UA"], Stats { departures: 2, cancelled: 0, delay_minutes: -3 });
        assert_eq!(expected.carriers["AA"], Stats { departures: 2, cancelled: 1, delay_minutes: 121 });
        assert_eq!(expected.late, BTreeSet::from([4]), "exactly an hour is not more than an hour");
    }

    #[test]
    fn the_committed_week_is_what_its_readme_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/flights/data/flights-week1.csv");
        let expected = Expected::of_file(&path).unwrap();
        assert_eq!((expected.flights, expected.late.len()), (6099, 328));
        assert_eq!(expected.carriers.values().map(|stats| stats.cancelled).sum::<i64>(), 35);
    }

    #[test]
    fn a_report_that_differs_is_not_equal() {
        let json = br#"{"handled":5,"carriers":[
            {"carrier":"AA","departures":2,"cancelled":1,"delay_minutes":121},
            {"carrier":"UA","departures":2,"cancelled":0,"delay_minutes":-3}]}"#;
        let (handled, mut carriers) = read_report(json).unwrap();
        let expected = Expected::of_csv(CSV).unwrap();
        assert_eq!(handled, 5);
        assert!(print_comparison(&carriers, &expected.carriers));
        carriers.get_mut("UA").unwrap().delay_minutes += 1;
        assert!(!print_comparison(&carriers, &expected.carriers));
        carriers.remove("UA");
        assert!(!print_comparison(&carriers, &expected.carriers));
    }

    #[test]
    fn a_bad_csv_is_an_error() {
        assert!(Expected::of_csv("carrier,flight_id\n").is_err());
        assert!(Expected::of_csv("carrier,dep_delay,flight_id\nUA,2\n").is_err());
        assert!(Expected::of_csv("carrier,dep_delay,flight_id\nUA,late,1\n").is_err());
    }
}
