//! A flight: a line of the CSV, a row of the producer's table, a message's payload.

use std::io::BufRead;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// The columns that the CSV must have, in this order.
pub const COLUMNS: &str = "date,carrier,flight,origin,dest,dep_delay,flight_id";

/// One scheduled departure. Its JSON is the payload of `flights.departed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flight {
    /// Number of the row in the year's data, from 1.
    pub flight_id: i64,
    /// Day of the scheduled departure, `YYYY-MM-DD`.
    pub date: String,
    /// Two-character code of the airline.
    pub carrier: String,
    /// Flight number.
    pub flight: i32,
    /// Airport of departure.
    pub origin: String,
    /// Airport of arrival.
    pub dest: String,
    /// Delay of the departure in minutes, negative when early; `None` when the flight was cancelled.
    pub dep_delay: Option<i32>,
}

impl Flight {
    /// The message's id: fixed by the flight, so that the same flight is never announced twice.
    pub fn message_id(&self) -> String {
        format!("flight-{}", self.flight_id)
    }

    /// The message's payload.
    ///
    /// # Errors
    /// If the flight cannot be written as JSON.
    pub fn payload(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(',').collect();
        let [date, carrier, flight, origin, dest, dep_delay, flight_id] = fields[..] else {
            bail!("{} columns where there should be 7", fields.len());
        };
        Ok(Self {
            flight_id: flight_id.parse().with_context(|| format!("flight_id {flight_id:?}"))?,
            date: date.to_owned(),
            carrier: carrier.to_owned(),
            flight: flight.parse().with_context(|| format!("flight {flight:?}"))?,
            origin: origin.to_owned(),
            dest: dest.to_owned(),
            dep_delay: match dep_delay {
                "" => None,
                minutes => Some(minutes.parse().with_context(|| format!("dep_delay {minutes:?}"))?),
            },
        })
    }
}

/// Reads the flights of a CSV with the header [`COLUMNS`] and no quoted fields, one at a time.
///
/// # Errors
/// If the header differs; the iterator's items name the line that cannot be read.
pub fn read_csv(csv: impl BufRead) -> Result<impl Iterator<Item = Result<Flight>>> {
    let mut lines = csv.lines();
    let header = lines.next().transpose()?.unwrap_or_default();
    if header != COLUMNS {
        bail!("the first line is {header:?}, but should be {COLUMNS:?}");
    }
    Ok(lines.enumerate().map(|(index, line)| {
        let number = index + 2;
        Flight::parse(&line.with_context(|| format!("line {number}"))?).with_context(|| format!("line {number}"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Flight>> {
        read_csv(text.as_bytes())?.collect()
    }

    #[test]
    fn a_flight_is_read_and_its_payload_has_all_fields() {
        let flights = read(&format!("{COLUMNS}\n2013-01-01,UA,1545,EWR,IAH,-2,1\n")).unwrap();
        assert_eq!(flights[0].message_id(), "flight-1");
        assert_eq!(
            flights[0].payload().unwrap(),
            r#"{"flight_id":1,"date":"2013-01-01","carrier":"UA","flight":1545,"origin":"EWR","dest":"IAH","dep_delay":-2}"#
        );
    }

    #[test]
    fn a_cancelled_flight_has_no_delay() {
        let flights = read(&format!("{COLUMNS}\n2013-01-07,9E,3317,JFK,BUF,,6099\n")).unwrap();
        assert_eq!(flights[0].dep_delay, None);
        assert!(flights[0].payload().unwrap().ends_with(r#""dep_delay":null}"#));
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = read(&format!("{COLUMNS}\n2013-01-01,UA,1545,EWR,IAH,2,1\n2013-01-01,UA\n")).unwrap_err();
        assert_eq!(format!("{error:#}"), "line 3: 2 columns where there should be 7");
        let error = read(&format!("{COLUMNS}\n2013-01-01,UA,x,EWR,IAH,2,1\n")).unwrap_err();
        assert!(format!("{error:#}").starts_with("line 2: flight \"x\""), "{error:#}");
    }

    #[test]
    fn another_header_is_refused() {
        assert!(read("carrier,date\n").unwrap_err().to_string().contains("should be"));
        assert!(read("").unwrap_err().to_string().contains("should be"));
    }
}
