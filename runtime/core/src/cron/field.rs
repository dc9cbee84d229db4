//! One field of a cron expression: the values it allows.

use std::fmt;

use super::invalid::InvalidCron;

/// A field of a cron expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CronField {
    /// 0 to 59, only in expressions of six fields.
    Second,
    /// 0 to 59.
    Minute,
    /// 0 to 23.
    Hour,
    /// 1 to 31.
    DayOfMonth,
    /// 1 to 12, or jan to dec.
    Month,
    /// 0 to 7, or sun to sat; 0 and 7 are Sunday.
    DayOfWeek,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl CronField {
    pub(super) fn first(self) -> u8 {
        u8::from(matches!(self, Self::DayOfMonth | Self::Month))
    }

    pub(super) fn last(self) -> u8 {
        match self {
            Self::Second | Self::Minute => 59,
            Self::Hour => 23,
            Self::DayOfMonth => 31,
            Self::Month => 12,
            Self::DayOfWeek => 7,
        }
    }

    /// What may be written, for errors.
    pub(super) fn allowed(self) -> &'static str {
        match self {
            Self::Second | Self::Minute => "`*`, values 0 to 59, ranges, lists or steps such as `*/15`",
            Self::Hour => "`*`, values 0 to 23, ranges, lists or steps such as `*/6`",
            Self::DayOfMonth => "`*`, values 1 to 31, ranges, lists or steps such as `*/2`",
            Self::Month => "`*`, values 1 to 12 or jan to dec, ranges, lists or steps such as `*/3`",
            Self::DayOfWeek => "`*`, values 0 to 7 or sun to sat (0 and 7 are Sunday), ranges, lists or steps",
        }
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Month => &MONTHS,
            Self::DayOfWeek => &WEEKDAYS,
            _ => &[],
        }
    }
}

impl fmt::Display for CronField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day-of-month",
            Self::Month => "month",
            Self::DayOfWeek => "day-of-week",
        })
    }
}

/// A set of values from 0 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Values(u64);

impl Values {
    pub(super) fn all_of(first: u8, last: u8) -> Self {
        let mut all = Self::default();
        (first..=last).for_each(|value| all.insert(value));
        all
    }

    pub(super) fn insert(&mut self, value: u8) {
        self.0 |= 1 << value;
    }

    pub(super) fn contains(self, value: u8) -> bool {
        self.0 & (1 << value) != 0
    }

    pub(super) fn iter(self) -> impl DoubleEndedIterator<Item = u8> {
        (0..64).filter(move |value| self.contains(*value))
    }
}

/// What one field allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// Never empty. Sunday is 0 only.
    pub(super) values: Values,
    /// The text begins with `*`. Cron decides by this, not by whether all values are allowed.
    pub(super) starred: bool,
}

impl Field {
    pub(super) fn parse(field: CronField, text: &str) -> Result<Self, InvalidCron> {
        let reader = Reader { field, text };
        let mut values = Values::default();
        for entry in text.split(',') {
            reader.read_entry(entry, &mut values)?;
        }
        if field == CronField::DayOfWeek && values.contains(7) {
            values = Values(values.0 & !(1 << 7) | 1);
        }
        Ok(Self { values, starred: text.starts_with('*') })
    }

    /// Whether every value of the field is allowed.
    pub(super) fn is_all(self, field: CronField) -> bool {
        let last = if field == CronField::DayOfWeek { 6 } else { field.last() };
        self.values == Values::all_of(field.first(), last)
    }
}

/// A field while it is read, for errors that show all of it.
struct Reader<'a> {
    field: CronField,
    text: &'a str,
}

impl Reader<'_> {
    /// `*`, `5`, `5-10`, each of the ranges with an optional `/step`.
    fn read_entry(&self, entry: &str, values: &mut Values) -> Result<(), InvalidCron> {
        let (range, step) = match entry.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (entry, None),
        };
        let (start, end) = if range == "*" {
            (self.field.first(), self.field.last())
        } else if let Some((start, end)) = range.split_once('-') {
            let (start, end) = (self.read_value(start)?, self.read_value(end)?);
            if start > end {
                let (field, value) = (self.field, self.text.to_owned());
                return Err(InvalidCron::BackwardRange { field, value, entry: range.to_owned() });
            }
            (start, end)
        } else {
            let value = self.read_value(range)?;
            if let Some(step) = step {
                self.read_step(step)?;
                return Err(InvalidCron::StepWithoutRange {
                    field: self.field,
                    value: self.text.to_owned(),
                    start: range.to_owned(),
                    step: step.to_owned(),
                });
            }
            (value, value)
        };
        let step = step.map_or(Ok(1), |step| self.read_step(step))?;
        (start..=end).step_by(step).for_each(|value| values.insert(value));
        Ok(())
    }

    /// A step beyond the last value is allowed, as in cron: it leaves the first value only.
    fn read_step(&self, step: &str) -> Result<usize, InvalidCron> {
        match read_digits(step) {
            Some(value) if value > 0 => Ok(value),
            _ => {
                let (field, value) = (self.field, self.text.to_owned());
                Err(InvalidCron::BadStep { field, value, step: step.to_owned() })
            }
        }
    }

    fn read_value(&self, entry: &str) -> Result<u8, InvalidCron> {
        let (field, value) = (self.field, self.text.to_owned());
        if entry.is_empty() {
            return Err(InvalidCron::EmptyEntry { field, value });
        }
        if let Some(name) = (field.first()..).zip(field.names()).find(|(_, name)| name.eq_ignore_ascii_case(entry))
        {
            return Ok(name.0);
        }
        if let Some(mark) = foreign_mark(entry) {
            return Err(InvalidCron::ForeignMark { field, value, mark });
        }
        if !entry.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidCron::NotAValue { field, value, entry: entry.to_owned() });
        }
        read_digits(entry)
            .and_then(|number| u8::try_from(number).ok())
            .filter(|number| (field.first()..=field.last()).contains(number))
            .ok_or_else(|| InvalidCron::OutOfRange { field, value, entry: entry.to_owned() })
    }
}

/// Digits only: the standard parser would take a `+` too.
fn read_digits(text: &str) -> Option<usize> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// A mark that other programs give a meaning to, if that is what keeps `entry` from being a value.
fn foreign_mark(entry: &str) -> Option<char> {
    if let Some(mark) = entry.chars().find(|c| matches!(c, '#' | '?' | '%')) {
        return Some(mark);
    }
    let letters = entry.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
    match letters.as_str() {
        "l" | "lw" | "wl" => Some('L'),
        "w" => Some('W'),
        "h" => Some('H'),
        // As in `fril`, the last Friday.
        _ => letters.strip_suffix('l').filter(|day| WEEKDAYS.contains(day)).map(|_| 'L'),
    }
}
