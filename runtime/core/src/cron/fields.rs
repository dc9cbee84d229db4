//! All fields of a cron expression.

use super::field::{CronField, Field};
use super::invalid::{CRON_BYTES_MAX, InvalidCron};

/// The fields of an expression that can come true.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) second: Field,
    pub(super) minute: Field,
    pub(super) hour: Field,
    pub(super) day: Field,
    pub(super) month: Field,
    pub(super) weekday: Field,
}

impl Fields {
    pub(super) fn parse(text: &str) -> Result<Self, InvalidCron> {
        if text.len() > CRON_BYTES_MAX {
            return Err(InvalidCron::TooLong(text.len()));
        }
        let blanks = [' ', '\t'];
        let trimmed = text.trim_matches(blanks);
        let written = if trimmed.starts_with('@') { expand(trimmed)? } else { trimmed };
        let parts: Vec<&str> = written.split(blanks).filter(|part| !part.is_empty()).collect();
        let (second, rest) = match parts.as_slice() {
            [] => return Err(InvalidCron::Empty),
            rest if rest.len() == 5 => ("0", rest),
            [second, rest @ ..] if rest.len() == 5 => (*second, rest),
            other => return Err(InvalidCron::FieldCount { text: text.to_owned(), found: other.len() }),
        };
        let fields = Self {
            second: Field::parse(CronField::Second, second)?,
            minute: Field::parse(CronField::Minute, rest[0])?,
            hour: Field::parse(CronField::Hour, rest[1])?,
            day: Field::parse(CronField::DayOfMonth, rest[2])?,
            month: Field::parse(CronField::Month, rest[3])?,
            weekday: Field::parse(CronField::DayOfWeek, rest[4])?,
        };
        if !fields.either_day() && !fields.day_comes() {
            return Err(InvalidCron::NeverComes { day: rest[2].to_owned(), month: rest[3].to_owned() });
        }
        Ok(fields)
    }

    /// Whether one of day-of-month and day-of-week is enough. Cron looks at the first character only, so that `*/2`
    /// restricts the days and still binds both fields.
    pub(super) fn either_day(&self) -> bool {
        !self.day.starred && !self.weekday.starred
    }

    /// Whether some month allowed has a day allowed. Every such date falls on each weekday within 400 years.
    pub(super) fn day_comes(&self) -> bool {
        let longest = self.month.values.iter().map(days_at_most).max();
        self.day.values.iter().next() <= longest
    }
}

fn days_at_most(month: u8) -> u8 {
    match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The fields that a name such as `@daily` stands for.
fn expand(name: &str) -> Result<&'static str, InvalidCron> {
    match name.to_ascii_lowercase().as_str() {
        "@yearly" | "@annually" => Ok("0 0 1 1 *"),
        "@monthly" => Ok("0 0 1 * *"),
        "@weekly" => Ok("0 0 * * 0"),
        "@daily" | "@midnight" => Ok("0 0 * * *"),
        "@hourly" => Ok("0 * * * *"),
        "@reboot" => Err(InvalidCron::Reboot(name.to_owned())),
        _ => Err(InvalidCron::UnknownName(name.to_owned())),
    }
}
