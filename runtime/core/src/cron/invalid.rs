//! Why a cron expression is refused.

use super::field::CronField;

/// Longest expression, in bytes.
pub(super) const CRON_BYTES_MAX: usize = 256;

/// Why a cron expression is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCron {
    /// The expression is empty.
    #[error("cron expression is empty; write five fields like `30 2 * * *`, which is 02:30 every day")]
    Empty,
    /// The expression is too long.
    #[error("cron expression has {0} bytes; at most {CRON_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Neither five nor six fields.
    #[error(
        "cron expression `{text}` has {found} field(s); write five (minute, hour, day-of-month, month, day-of-week) or \
         six with seconds first"
    )]
    FieldCount {
        /// The expression as given.
        text: String,
        /// How many fields it has.
        found: usize,
    },
    /// `@` and a word that stands for nothing.
    #[error(
        "cron expression `{0}` is not known; the names are @yearly, @annually, @monthly, @weekly, @daily, @midnight \
             and @hourly"
    )]
    UnknownName(String),
    /// `@reboot`, which is no time.
    #[error("cron expression `{0}` is not allowed; a schedule has no reboot, write a time such as @daily")]
    Reboot(String),
    /// A mark of another cron dialect.
    #[error("{field} `{value}` uses `{mark}`, which cron does not know; write {}", .field.allowed())]
    ForeignMark {
        /// The field that is wrong.
        field: CronField,
        /// Its text.
        value: String,
        /// The mark refused.
        mark: char,
    },
    /// An entry of a list, or an end of a range, is missing.
    #[error("{field} `{value}` has an empty entry; write {}", .field.allowed())]
    EmptyEntry {
        /// The field that is wrong.
        field: CronField,
        /// Its text.
        value: String,
    },
    /// Neither a number nor a name of this field.
    #[error("{field} `{value}` contains `{entry}`; write {}", .field.allowed())]
    NotAValue {
        /// The field that is wrong.
        field: CronField,
        /// Its text.
        value: String,
        /// The part that cannot be read.
        entry: String,
    },
    /// A number that the field does not have.
    #[error("{field} `{value}` contains {entry}, which is out of range; write {}", .field.allowed())]
    OutOfRange {
        /// The field that is wrong.
        field: CronField,
        /// Its text.
        value: String,
        /// The number, as written.
        entry: String,
    },
    /// A range whose end comes before its start.
    #[error("{field} `{value}` has the range {entry} backwards; {}", backward_hint(*.field))]
    BackwardRange {
        /// The field that is wrong.
        field: CronField,
        /// Its text.
        value: String,
        /// The range.
        entry: String,
    },
    /// A step that is zero or no number.
    #[error("{field} `{value}` has the step `{step}`; a step is a whole number from 1, as in `*/15`")]
    BadStep {
        /// The field that is wrong.
        field: CronField,
        /// Its text.
        value: String,
        /// The step, as written.
        step: String,
    },
    /// A step after a single value: cron daemons ignore it, other programs read it as a range.
    #[error("{field} `{value}` has a step after the single value {start}; steps follow `*` or a range, write \
             {start}-{}/{step} or {start}", .field.last())]
    StepWithoutRange {
        /// The field that is wrong.
        field: CronField,
        /// Its text.
        value: String,
        /// The single value.
        start: String,
        /// The step.
        step: String,
    },
    /// No month of the expression has such a day.
    #[error(
        "day-of-month `{day}` never comes in month `{month}`; choose a day that at least one of the months has"
    )]
    NeverComes {
        /// The day-of-month field.
        day: String,
        /// The month field.
        month: String,
    },
}

fn backward_hint(field: CronField) -> &'static str {
    match field {
        CronField::DayOfWeek => "write the earlier day first, counting Sunday as 0 or 7, or a list of days",
        _ => "write the smaller value first, or two ranges such as `22-23,0-5`",
    }
}
