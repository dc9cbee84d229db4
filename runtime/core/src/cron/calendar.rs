//! Which civil times match the fields. The `cron` crate evaluates them; this file feeds it and knows no zones.

use std::ops::RangeInclusive;
use std::str::FromStr;

use ::cron::Schedule;
use chrono::{DateTime, Datelike, NaiveDate, Timelike, Utc};
use jiff::civil;

use super::field::{CronField, Field};
use super::fields::Fields;

/// Years that the `cron` crate evaluates.
const CRATE_YEARS: RangeInclusive<i16> = 1970..=2100;

/// A calendar of the same shape exists among these years for every other year.
const TWIN_YEARS: RangeInclusive<i16> = 1972..=1999;

/// After this many years the Gregorian calendar repeats, days of the week included.
pub(super) const CYCLE_YEARS: i16 = 400;

/// The civil times that match an expression.
#[derive(Debug)]
pub(super) struct Calendar {
    /// The crate wants both day fields to match. Where either is enough, there is one schedule for each.
    schedules: Vec<Schedule>,
}

impl Calendar {
    pub(super) fn new(fields: &Fields) -> Self {
        let all_days = "*".to_owned();
        let day = spell(CronField::DayOfMonth, fields.day, 0);
        // The crate counts days of the week from 1, Sunday.
        let weekday = spell(CronField::DayOfWeek, fields.weekday, 1);
        let schedules = if fields.either_day() {
            let by_weekday = schedule(fields, &all_days, &weekday);
            // A day that never comes would send the crate through all its years.
            let by_day = fields.day_comes().then(|| schedule(fields, &day, &all_days));
            by_day.into_iter().chain([by_weekday]).collect()
        } else {
            vec![schedule(fields, &day, &weekday)]
        };
        Self { schedules }
    }

    /// The first matching second strictly later than `after`. `None` when jiff's years end before it.
    pub(super) fn next_after(&self, after: civil::DateTime) -> Option<civil::DateTime> {
        self.schedules.iter().filter_map(|schedule| next_of(schedule, after)).min()
    }
}

fn schedule(fields: &Fields, day: &str, weekday: &str) -> Schedule {
    let text = format!(
        "{} {} {} {day} {} {weekday}",
        spell(CronField::Second, fields.second, 0),
        spell(CronField::Minute, fields.minute, 0),
        spell(CronField::Hour, fields.hour, 0),
        spell(CronField::Month, fields.month, 0),
    );
    // Cannot fail: the text holds `*` and lists of values in range only, which is plain cron to the crate.
    Schedule::from_str(&text).expect("lists of checked values")
}

/// The values one by one, so that only this module's reading of ranges and steps counts.
fn spell(kind: CronField, field: Field, shift: u8) -> String {
    if field.is_all(kind) {
        return "*".to_owned();
    }
    let values: Vec<String> = field.values.iter().map(|value| (value + shift).to_string()).collect();
    values.join(",")
}

/// Follows the years. One that the crate does not know is evaluated as its twin, then written back.
fn next_of(schedule: &Schedule, after: civil::DateTime) -> Option<civil::DateTime> {
    let last = after.year().saturating_add(CYCLE_YEARS);
    let mut year = after.year();
    while year <= last {
        let host = host_of(year)?;
        let start = if year == after.year() {
            after.with().year(host).build().ok()?
        } else {
            civil::date(host - 1, 12, 31).at(23, 59, 59, 0)
        };
        match ask(schedule, start) {
            Some(found) if host == year => return Some(found),
            Some(found) if found.year() == host => return found.with().year(year).build().ok(),
            // The crate has looked through all its years already.
            _ if host == year => year = CRATE_YEARS.end() + 1,
            _ => year += 1,
        }
    }
    None
}

/// The year to evaluate instead of `year`: itself where the crate can, else one with the same days and weekdays.
fn host_of(year: i16) -> Option<i16> {
    if CRATE_YEARS.contains(&year) {
        return Some(year);
    }
    let new_year = civil::Date::new(year, 1, 1).ok()?;
    TWIN_YEARS.clone().find(|twin| {
        let twin = civil::date(*twin, 1, 1);
        twin.weekday() == new_year.weekday() && twin.in_leap_year() == new_year.in_leap_year()
    })
}

/// Civil time goes in and comes out dressed as UTC, which has no jumps. Fractions of a second are cut off on the way.
fn ask(schedule: &Schedule, after: civil::DateTime) -> Option<civil::DateTime> {
    let found = schedule.after(&to_chrono(after)?).next()?;
    let small = |value: u32| i8::try_from(value).ok();
    civil::DateTime::new(
        i16::try_from(found.year()).ok()?,
        small(found.month())?,
        small(found.day())?,
        small(found.hour())?,
        small(found.minute())?,
        small(found.second())?,
        0,
    )
    .ok()
}

fn to_chrono(time: civil::DateTime) -> Option<DateTime<Utc>> {
    let small = |value: i8| u32::try_from(value).ok();
    let date = NaiveDate::from_ymd_opt(i32::from(time.year()), small(time.month())?, small(time.day())?)?;
    Some(date.and_hms_opt(small(time.hour())?, small(time.minute())?, small(time.second())?)?.and_utc())
}
