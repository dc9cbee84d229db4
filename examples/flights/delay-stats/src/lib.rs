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

laneway_sdk::manifest! {
    emit: [ALERT_TOPIC],
    state: true,
}

#[cfg(test)]
mod tests {
    use laneway_sdk::mock::{EmitError, MockHost};

    use super::*;

    /// What somebody who gets an alert reads in it.
    #[derive(Debug, PartialEq, Deserialize)]
    struct Told {
        flight_id: i64,
        carrier: String,
        dep_delay: f64,
    }

    fn departed(carrier: &str, dep_delay: Option<f64>) -> Message {
        let delay = dep_delay.map_or("null".to_owned(), |minutes| minutes.to_string());
        Message::for_test("flights.departed").body(format!(
            r#"{{"flight_id": 7, "carrier": "{carrier}", "flight": 1545, "origin": "EWR", "dest": "IAH",
                "dep_delay": {delay}, "air_time": 227.0}}"#
        ))
    }

    #[test]
    fn each_carrier_has_its_own_sums_and_a_flight_without_delay_was_cancelled() {
        let mut host = MockHost::new();
        for delay in [Some(2.0), Some(-5.0), None, Some(90.0)] {
            assert_eq!(host.handle(handle, departed("UA", delay)).result, Ok(()));
        }
        assert_eq!(host.handle(handle, departed("AA", Some(1.0))).result, Ok(()));
        let united = Carrier { departures: 3, cancelled: 1, delay_minutes: 87 };
        assert_eq!(host.state_json("carrier/UA"), Some(united));
        let american = Carrier { departures: 1, cancelled: 0, delay_minutes: 1 };
        assert_eq!(host.state_json("carrier/AA"), Some(american));
    }

    #[test]
    fn more_than_an_hour_late_is_an_alert() {
        let mut host = MockHost::new();
        for delay in [None, Some(60.0)] {
            assert!(host.handle(handle, departed("UA", delay)).emitted.is_empty());
        }
        let late = host.handle(handle, departed("UA", Some(61.0)));
        let [alert] = late.emitted.as_slice() else { panic!("{late:?}") };
        assert_eq!(alert.topic, ALERT_TOPIC);
        assert_eq!(alert.json::<Told>(), Told { flight_id: 7, carrier: "UA".to_owned(), dep_delay: 61.0 });
    }

    #[test]
    fn what_was_read_and_changed_meanwhile_is_counted_on_top() {
        let mut host = MockHost::new();
        host.write_meanwhile("carrier/UA", Some(br#"{"departures": 9, "cancelled": 0, "delay_minutes": 90}"#));
        let handled = host.handle(handle, departed("UA", Some(1.0)));
        assert_eq!(handled.runs, 2);
        let counted = Carrier { departures: 10, cancelled: 0, delay_minutes: 91 };
        assert_eq!(host.state_json("carrier/UA"), Some(counted));
    }

    #[test]
    fn an_alert_that_is_refused_fails_the_message_and_counts_nothing() {
        let mut host = MockHost::new();
        host.refuse_emit(EmitError::TooLarge(10));
        let refused = host.handle(handle, departed("UA", Some(61.0)));
        assert!(matches!(refused.result, Err(Failure::Reject(_))), "{refused:?}");
        assert_eq!(host.state("carrier/UA"), None);
    }
}
