//! Cron expressions, read as Vixie cron and Debian's cron read them.
//!
//! Five fields, or six with seconds first. Three readings are easy to get wrong, and other libraries do:
//!
//! - **Days.** Day-of-month and day-of-week both bind when either begins with `*`; otherwise either is enough. So
//!   `0 0 1 * 1` fires on the first and on Mondays, and `0 0 */2 * 1` on Mondays with an odd date.
//! - **Clocks set forward or back.** An expression whose minute and hour fields both begin with something other than
//!   `*` names a time of day: it fires once where the clock repeats that time, and once just after a jump over it. Any
//!   other expression is an interval: it fires whenever the clock shows a matching time, twice where it shows it twice.
//! - **Steps.** They follow `*` or a range. `5/15` is refused, because cron reads it as 5 and others as 5-59/15.
//!
//! The `cron` crate evaluates the fields, in civil time only. The zone's clock is jiff's.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use self::calendar::Calendar;
use self::clock::Firing;
use self::fields::Fields;

mod calendar;
mod clock;
mod field;
mod fields;
mod invalid;
mod sentence;

#[cfg(test)]
mod acceptance;
#[cfg(test)]
mod changes;
#[cfg(test)]
mod oracle;

pub use self::field::CronField;
pub use self::invalid::InvalidCron;

/// When something recurs, such as `30 2 * * mon`: at most 256 bytes, five fields or six with seconds first.
///
/// Two expressions are equal when their texts are.
///
/// ```
/// use jiff::{Timestamp, tz::TimeZone};
/// use laneway_core::CronExpression;
///
/// let cron = CronExpression::parse("30 2 1 * mon")?;
/// assert_eq!(cron.explain(), "at 02:30 on day 1 of the month, or on Monday");
/// let after: Timestamp = "2024-03-02T00:00:00Z".parse()?;
/// assert_eq!(cron.next_after(after, &TimeZone::UTC), Some("2024-03-04T02:30:00Z".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct CronExpression {
    text: Arc<str>,
    parsed: Arc<Parsed>,
}

struct Parsed {
    fields: Fields,
    calendar: Calendar,
    firing: Firing,
}

impl CronExpression {
    /// Reads an expression.
    ///
    /// # Errors
    /// [`InvalidCron`] names the field and the value that is wrong, and says what is allowed.
    pub fn parse(text: &str) -> Result<Self, InvalidCron> {
        let fields = Fields::parse(text)?;
        let calendar = Calendar::new(&fields);
        let firing =
            if fields.minute.starred || fields.hour.starred { Firing::Interval } else { Firing::TimeOfDay };
        Ok(Self { text: text.into(), parsed: Arc::new(Parsed { fields, calendar, firing }) })
    }

    /// The first time it fires strictly later than `after`, by the clocks of `zone`.
    ///
    /// `None` when it never fires again: the zone may skip every matching time, or the years that jiff knows end.
    #[must_use]
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        clock::next_after(&self.parsed.calendar, self.parsed.firing, after, zone)
    }

    /// When it fires, as a part of an English sentence: `at 02:30 on day 1 of the month, or on Monday`.
    #[must_use]
    pub fn explain(&self) -> String {
        sentence::explain(&self.parsed.fields)
    }

    /// The expression as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for CronExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CronExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CronExpression").field(&self.text).finish()
    }
}

// Everything else is derived from the text.
impl PartialEq for CronExpression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CronExpression {}
