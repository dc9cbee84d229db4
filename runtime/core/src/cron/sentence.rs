//! A cron expression in English. Sentences come from the values allowed, never from the text, so that they cannot
//! promise what the expression does not do.

use super::field::{CronField, Field, Values};
use super::fields::Fields;

/// Most times of day that are listed one by one.
const TIMES_LISTED_MAX: usize = 6;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Monday first: weeks read better so.
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

pub(super) fn explain(fields: &Fields) -> String {
    let mut sentence = time_of_day(fields);
    let days = days(fields);
    if !days.is_empty() {
        sentence.push(' ');
        sentence.push_str(&days);
    }
    if !fields.month.is_all(CronField::Month) {
        sentence.push_str(", only in ");
        let months: Vec<u8> = fields.month.values.iter().map(|month| month - 1).collect();
        sentence.push_str(&names(&months, &MONTHS));
    }
    sentence
}

/// `at 02:30`, `every 15 minutes`, `at minute 5 of hours 9 through 17`.
fn time_of_day(fields: &Fields) -> String {
    if let Some(times) = listed_times(fields) {
        return format!("at {}", joined(&times));
    }
    let units = [
        (CronField::Second, fields.second, "second"),
        (CronField::Minute, fields.minute, "minute"),
        (CronField::Hour, fields.hour, "hour"),
    ];
    // Second 0 goes without saying, and so do full units that enclose a full unit.
    let skipped = usize::from(fields.second.values.iter().eq([0]));
    let full_from = units.iter().rposition(|(kind, field, _)| !field.is_all(*kind)).map_or(0, |last| last + 1);
    if full_from <= skipped {
        return format!("every {}", units[skipped].2);
    }
    let (kind, field, name) = units[full_from - 1];
    if full_from - 1 == skipped
        && let Some(step) = even_step(kind, field.values)
    {
        return format!("every {step} {name}s");
    }
    // Up to the first full unit: `of every hour` ends the sentence, hours of every day need no end.
    let phrases: Vec<String> = units[skipped..(full_from + 1).min(units.len())]
        .iter()
        .map(|(kind, field, name)| unit(*kind, *field, name))
        .collect();
    let lead = if units[skipped].1.is_all(units[skipped].0) { "" } else { "at " };
    format!("{lead}{}", phrases.join(" of "))
}

/// The times of day, unless there are too many to read.
fn listed_times(fields: &Fields) -> Option<Vec<String>> {
    let mut times = Vec::new();
    for hour in fields.hour.values.iter() {
        for minute in fields.minute.values.iter() {
            for second in fields.second.values.iter() {
                if times.len() == TIMES_LISTED_MAX {
                    return None;
                }
                let seconds =
                    if fields.second.values.iter().eq([0]) { String::new() } else { format!(":{second:02}") };
                times.push(format!("{hour:02}:{minute:02}{seconds}"));
            }
        }
    }
    Some(times)
}

/// The step of values that begin at 0 and stay evenly spaced from one hour or minute to the next.
fn even_step(kind: CronField, values: Values) -> Option<u8> {
    let values: Vec<u8> = values.iter().collect();
    let step = progression(&values)?;
    let span = kind.last() + 1;
    (values[0] == 0 && span.is_multiple_of(step) && usize::from(span / step) == values.len()).then_some(step)
}

/// The distance between neighbours, where there are three values or more and all are as far apart.
fn progression(values: &[u8]) -> Option<u8> {
    let step = values.get(1)? - values[0];
    (values.len() > 2 && values.windows(2).all(|pair| pair[1] - pair[0] == step)).then_some(step)
}

/// `every hour`, `hour 2`, `hours 9 through 17`, `every 2nd hour from 0 through 22`, `hours 2 and 5`.
fn unit(kind: CronField, field: Field, name: &str) -> String {
    if field.is_all(kind) {
        return format!("every {name}");
    }
    let values: Vec<u8> = field.values.iter().collect();
    let (first, last) = (values[0], values[values.len() - 1]);
    match progression(&values) {
        Some(1) => format!("{name}s {first} through {last}"),
        Some(step) => format!("every {} {name} from {first} through {last}", ordinal(step)),
        None if values.len() == 1 => format!("{name} {first}"),
        None => format!("{name}s {}", joined(&values.iter().map(u8::to_string).collect::<Vec<_>>())),
    }
}

/// `on day 1 of the month, or on Monday`; empty when every day will do.
fn days(fields: &Fields) -> String {
    let every_day = fields.day.is_all(CronField::DayOfMonth);
    let every_weekday = fields.weekday.is_all(CronField::DayOfWeek);
    let day = format!("on {} of the month", unit(CronField::DayOfMonth, fields.day, "day"));
    let weekdays: Vec<u8> =
        (0..7).filter(|monday_first| fields.weekday.values.contains((monday_first + 1) % 7)).collect();
    let weekday = names(&weekdays, &WEEKDAYS);
    if fields.either_day() {
        // Either is enough: where one is always true, the other says nothing.
        return if every_day || every_weekday { String::new() } else { format!("{day}, or on {weekday}") };
    }
    match (every_day, every_weekday) {
        (true, true) => String::new(),
        (false, true) => day,
        (true, false) => format!("on {weekday}"),
        (false, false) => format!("{day}, if it is also {}", weekday.replace(" and ", " or ")),
    }
}

/// `Monday`, `Monday through Friday`, `Monday and Friday`; `indexes` from 0.
fn names(indexes: &[u8], all: &[&str]) -> String {
    let name = |index: &u8| all[usize::from(*index)].to_owned();
    match (progression(indexes), indexes) {
        (Some(1), [first, .., last]) => format!("{} through {}", name(first), name(last)),
        _ => joined(&indexes.iter().map(name).collect::<Vec<_>>()),
    }
}

fn joined(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

fn ordinal(number: u8) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}
