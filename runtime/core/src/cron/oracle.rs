//! Random expressions against a clock that is walked tick by tick, as a cron daemon lives through it.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, civil};

use super::*;

/// Zones whose clocks jump at odd times or by odd amounts, with a time shortly before such a jump.
const JUMPS: [(&str, &str); 16] = [
    ("Europe/Berlin", "2024-03-30T00:00:00Z"),
    ("Europe/Berlin", "2023-10-28T00:00:00Z"),
    ("America/New_York", "2024-03-09T00:00:00Z"),
    ("America/New_York", "2024-11-02T00:00:00Z"),
    ("America/Sao_Paulo", "2018-11-03T00:00:00Z"),
    ("America/Sao_Paulo", "2018-02-16T00:00:00Z"),
    ("Asia/Beirut", "2022-03-26T00:00:00Z"),
    ("Asia/Beirut", "2022-10-29T00:00:00Z"),
    ("Australia/Lord_Howe", "2023-09-29T00:00:00Z"),
    ("Australia/Lord_Howe", "2024-04-05T00:00:00Z"),
    ("Pacific/Apia", "2011-12-28T00:00:00Z"),
    ("Pacific/Kwajalein", "1969-09-29T00:00:00Z"),
    ("Europe/Dublin", "2024-10-25T00:00:00Z"),
    ("Africa/Casablanca", "2024-03-09T00:00:00Z"),
    ("Antarctica/Troll", "2024-03-30T00:00:00Z"),
    ("Antarctica/Troll", "2024-10-26T00:00:00Z"),
];

/// The generator that Steele, Lea and Flood named `SplitMix64`: tiny, and good enough to draw cases.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn in_range(&mut self, first: i8, last: i8) -> i8 {
        first + i8::try_from(self.below(u64::from((last - first).unsigned_abs()) + 1)).unwrap()
    }
}

/// A field made up together with its meaning, so that the parser has no say in it.
struct RandomField {
    text: String,
    values: Vec<i8>,
}

impl RandomField {
    fn new(random: &mut Random, first: i8, last: i8) -> Self {
        let (mut text, mut values) = (String::new(), Vec::new());
        for entry in 0..=[0, 0, 0, 1, 2][usize::try_from(random.below(5)).unwrap()] {
            if entry > 0 {
                text.push(',');
            }
            let start = random.in_range(first, last);
            let end = random.in_range(start, last);
            let step = random.in_range(1, 20);
            let (entry, range, step) = match random.below(6) {
                0 | 1 => ("*".to_owned(), first..=last, 1),
                2 => (format!("*/{step}"), first..=last, step),
                3 => (format!("{start}-{end}"), start..=end, 1),
                4 => (format!("{start}-{end}/{step}"), start..=end, step),
                _ => (start.to_string(), start..=start, 1),
            };
            text.push_str(&entry);
            values.extend(range.step_by(usize::try_from(step).unwrap()));
        }
        Self { text, values }
    }

    fn starred(&self) -> bool {
        self.text.starts_with('*')
    }
}

struct RandomCron {
    /// Second, minute, hour, day, month, weekday.
    fields: [RandomField; 6],
    seconds: bool,
}

impl RandomCron {
    fn new(random: &mut Random, seconds: bool) -> Self {
        let mut fields = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
            .map(|(first, last)| RandomField::new(random, first, last));
        if !seconds {
            fields[0] = RandomField { text: "0".to_owned(), values: vec![0] };
        }
        // Most years hold no such month: a window of days would show nothing.
        if random.below(4) > 0 {
            fields[4] = RandomField { text: "*".to_owned(), values: (1..=12).collect() };
        }
        // Near the jumps, which come in the small hours.
        if random.below(2) > 0 {
            let hour = random.in_range(0, 3);
            fields[2] = RandomField { text: format!("{hour},23"), values: vec![hour, 23] };
        }
        Self { fields, seconds }
    }

    fn text(&self) -> String {
        let texts: Vec<&str> = self.fields.iter().map(|field| field.text.as_str()).collect();
        texts[usize::from(!self.seconds)..].join(" ")
    }

    fn matches(&self, time: civil::DateTime) -> bool {
        let [second, minute, hour, day, month, weekday] = &self.fields;
        let sunday_first = time.weekday().to_sunday_zero_offset();
        let by_day = day.values.contains(&time.day());
        let by_weekday =
            weekday.values.contains(&sunday_first) || (sunday_first == 0 && weekday.values.contains(&7));
        let day_matches =
            if day.starred() || weekday.starred() { by_day && by_weekday } else { by_day || by_weekday };
        day_matches
            && month.values.contains(&time.month())
            && hour.values.contains(&time.hour())
            && minute.values.contains(&time.minute())
            && second.values.contains(&time.second())
    }

    fn is_interval(&self) -> bool {
        self.fields[1].starred() || self.fields[2].starred()
    }
}

/// Lives through the time from `start` to `end`, one tick after the other.
fn walk(cron: &RandomCron, zone: &TimeZone, start: Timestamp, end: Timestamp) -> Vec<Timestamp> {
    let tick = SignedDuration::from_secs(if cron.seconds { 1 } else { 60 });
    // Two days earlier, so that clocks set back before the start are known.
    let mut at = start - SignedDuration::from_hours(48);
    let mut latest = zone.to_datetime(at);
    let mut fired = Vec::new();
    while at < end {
        at += tick;
        let shown = zone.to_datetime(at);
        let due_now = if cron.is_interval() {
            cron.matches(shown)
        } else {
            // What the clock skipped is due now; what it repeats is not due again.
            let mut due = false;
            while latest < shown {
                latest += tick;
                due |= cron.matches(latest);
            }
            due
        };
        if due_now && at > start {
            fired.push(at);
        }
    }
    fired
}

fn check(seed: u64, seconds: bool, window: SignedDuration) -> usize {
    let random = &mut Random(seed);
    let (name, near) = JUMPS[usize::try_from(random.below(JUMPS.len() as u64)).unwrap()];
    let zone = TimeZone::get(name).unwrap();
    let made = RandomCron::new(random, seconds);
    let text = made.text();
    let Ok(cron) = CronExpression::parse(&text) else {
        // The only refusal of a well-formed expression: a day that no month has.
        assert!(matches!(CronExpression::parse(&text), Err(InvalidCron::NeverComes { .. })), "seed={seed} {text}");
        return 0;
    };
    let ticks = i64::try_from(random.below(2880)).unwrap();
    let start = near.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(60 * ticks);
    let end = start + window;
    let walked = walk(&made, &zone, start, end);
    let (mut at, mut found) = (start, Vec::new());
    while let Some(next) = cron.next_after(at, &zone).filter(|next| *next <= end) {
        assert!(next > at, "seed={seed} {text} {name}: {next} is not after {at}");
        let again = cron.next_after(next - SignedDuration::from_secs(1), &zone);
        assert_eq!(again, Some(next), "seed={seed} {text} {name}: asked again from a second before");
        found.push(next);
        at = next;
    }
    if walked != found {
        let differs = walked.iter().zip(&found).find(|(a, b)| a != b);
        panic!(
            "seed={seed} {text} {name} from {start}: {} firings walked, {} found, first difference {differs:?}",
            walked.len(),
            found.len()
        );
    }
    found.len()
}

#[test]
fn random_expressions_fire_as_a_walked_clock_says() {
    let fired: usize = (0..600).map(|seed| check(seed, false, SignedDuration::from_hours(12 * 24))).sum();
    assert!(fired > 50_000, "{fired} firings are too few to prove anything");
}

#[test]
fn random_expressions_with_seconds_fire_as_a_walked_clock_says() {
    let fired: usize = (5000..5060).map(|seed| check(seed, true, SignedDuration::from_hours(40))).sum();
    assert!(fired > 5_000, "{fired} firings are too few to prove anything");
}

#[test]
fn expressions_that_are_explained_alike_fire_alike() {
    let mut known: BTreeMap<String, (String, Vec<civil::DateTime>)> = BTreeMap::new();
    let mut alike = 0;
    for seed in 0..4000 {
        let random = &mut Random(seed);
        let made = RandomCron::new(random, false);
        let Ok(cron) = CronExpression::parse(&made.text()) else { continue };
        let mut at: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        let mut times = Vec::new();
        for _ in 0..50 {
            at = cron.next_after(at, &TimeZone::UTC).unwrap();
            times.push(TimeZone::UTC.to_datetime(at));
        }
        let (text, earlier) = known.entry(cron.explain()).or_insert_with(|| (made.text(), times.clone()));
        assert_eq!(*earlier, times, "seed={seed}: {text} and {} are both {}", made.text(), cron.explain());
        alike += usize::from(*text != made.text());
    }
    assert!(alike > 20, "{alike} pairs are too few to prove anything");
}
