//! Example handler: keeps each carrier's departures, cancellations and minutes of delay, and emits an alert for a
//! flight that departs more than an hour late.

use laneway_sdk::prelude::*;

/// Topic of the alerts.
const ALERT_TOPIC: &str = "alerts.delay";
/// Delay, in minutes, above which an alert is emitted.
const ALERT_MINUTES: f64 = 60.0;

/// A flight that has departed, or was to. The input has more fields, which do not matter here.
#[derive(Deserialize)]
struct Departed {
    flight_id: i64,
    carrier: String,
    flight: i64,
    origin: String,
    dest: String,
    /// Minutes late; negative when early, none when cancelled.
    dep_delay: Option<f64>,
}

/// What is kept for a carrier, under `carrier/<code>`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Carrier {
    departures: u64,
    cancelled: u64,
    /// Sum over the departures; early ones count against late ones.
    delay_minutes: i64,
}

impl Carrier {
    fn count(&mut self, dep_delay: Option<f64>) {
        match dep_delay {
            // Delays are whole minutes in the data; the conversion saturates.
            Some(minutes) => {
                self.departures += 1;
                self.delay_minutes = self.delay_minutes.saturating_add(minutes.round() as i64);
            }
            None => self.cancelled += 1,
        }
    }
}

/// A flight that departed late.
#[derive(Serialize)]
struct Alert<'a> {
    flight_id: i64,
    carrier: &'a str,
    flight: i64,
    origin: &'a str,
    dest: &'a str,
    dep_delay: f64,
}

fn alert(flight: &Departed) -> Option<Alert<'_>> {
    let dep_delay = flight.dep_delay.filter(|&minutes| minutes > ALERT_MINUTES)?;
    let Departed { flight_id, carrier, flight, origin, dest, .. } = flight;
    Some(Alert { flight_id: *flight_id, carrier, flight: *flight, origin, dest, dep_delay })
}

fn handle(flight: Json<Departed>, cx: &Context) -> Result<(), Failure> {
    let key = format!("carrier/{}", flight.carrier);
    cx.state().update_json(&key, |carrier: &mut Carrier| carrier.count(flight.dep_delay))?;
    if let Some(alert) = alert(&flight) {
        cx.emit(Outgoing::json(ALERT_TOPIC, &alert)?)?;
    }
    Ok(())
}

laneway_sdk::handler!(handle);

#[cfg(test)]
mod tests {
    use super::*;

    fn departed(dep_delay: Option<f64>) -> Departed {
        Departed {
            flight_id: 7,
            carrier: "UA".to_owned(),
            flight: 1545,
            origin: "EWR".to_owned(),
            dest: "IAH".to_owned(),
            dep_delay,
        }
    }

    #[test]
    fn a_flight_without_delay_was_cancelled() {
        let mut carrier = Carrier::default();
        for delay in [Some(2.0), Some(-5.0), None, Some(90.0)] {
            carrier.count(delay);
        }
        assert_eq!(carrier, Carrier { departures: 3, cancelled: 1, delay_minutes: 87 });
    }

    #[test]
    fn more_than_an_hour_late_is_an_alert() {
        assert!(alert(&departed(None)).is_none());
        assert!(alert(&departed(Some(60.0))).is_none());
        assert_eq!(alert(&departed(Some(61.0))).map(|alert| (alert.flight_id, alert.dep_delay)), Some((7, 61.0)));
    }
}
