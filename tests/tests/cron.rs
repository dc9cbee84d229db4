//! Our cron expressions against three other programs: 2,000 cases, most of them near a change of some zone's clock.
//!
//! `answers.tsv` holds what the others say; `make.py` beside it made it. Where an answer differs from ours, a rule below
//! must explain each firing that one side has and the other lacks. The rules look at the expression and the zone's
//! clock, never at single cases.
//!
//! Of cronsim, which follows Debian's cron as we do:
//! - *six fields are an interval*: cronsim leaves Debian's rule for clock changes out when there are seconds.
//! - *forgets which pass*: asked in the second pass of a repeated hour, it answers as in the first, before the start.
//! - *whole hours over half an hour*: it looks for an hour in steps of 60 minutes, and passes by the first matches after
//!   a clock has moved by half an hour.
//! - *midnight that was skipped*: it enters a day at midnight, takes 00:00 for 01:00 where a clock jumps over it, and
//!   passes by that hour.
//!
//! Of croniter and cron-parser:
//! - *restricted by a step*: `*/2` in a day field counts as restricted, so either day field is enough. In Vixie cron
//!   the first character decides, and both must match.
//! - *again in the second pass*: a time of day fires in both passes of a repeated hour.
//! - *interval after a jump*: an interval also fires for times that the clock jumps over.
//! - *seconds after a jump*: what the clock jumped over fires late by its seconds, not at once.
//! - *shifted by the jump*: what the clock jumped over fires later by the jump: 02:44 at 03:44.
//! - *once in a repeated hour*: an interval fires in one pass only.
//! - *second midnight*: where midnight comes twice, the day begins with the second.
//! - *whole hours over half an hour*: as cronsim.
//! - *gives up by half an hour*: an error near a change of half an hour.
//! - *no @midnight*: the name is refused.
//! - *no value twice*: a list such as `mon,mon` is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan, civil};
use laneway_core::CronExpression;

const ANSWERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/cron/answers.tsv");
const CASES: usize = 2000;
const FIRINGS: usize = 4;

/// What one side has and the other lacks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Difference {
    /// They fire, we do not.
    Extra(Timestamp),
    /// We fire, they do not.
    Missing(Timestamp),
}

use Difference::{Extra, Missing};

struct Case<'a> {
    text: &'a str,
    cron: CronExpression,
    zone: TimeZone,
    start: Timestamp,
}

/// A clock set forward: it shows `from`, then at once `to`.
struct Jump {
    at: Timestamp,
    from: civil::DateTime,
    to: civil::DateTime,
}

impl Case<'_> {
    fn firings(&self) -> Vec<Timestamp> {
        let mut at = self.start;
        (0..FIRINGS).map_while(|_| self.cron.next_after(at, &self.zone).inspect(|next| at = *next)).collect()
    }

    fn shown(&self, at: Timestamp) -> civil::DateTime {
        self.zone.to_datetime(at)
    }

    /// Whether a civil time matches, clocks aside.
    fn matches(&self, time: civil::DateTime) -> bool {
        self.matches_within(time, time + 1.second())
    }

    /// Whether a civil time from `first` to before `end` matches.
    fn matches_within(&self, first: civil::DateTime, end: civil::DateTime) -> bool {
        let utc = |time: civil::DateTime| TimeZone::UTC.to_timestamp(time).unwrap();
        let before = utc(first) - SignedDuration::from_secs(1);
        self.cron.next_after(before, &TimeZone::UTC).is_some_and(|next| next < utc(end))
    }

    fn is_interval(&self) -> bool {
        let fields: Vec<&str> = self.text.split(' ').rev().collect();
        self.text == "@hourly" || fields.len() > 1 && (fields[3].starts_with('*') || fields[4].starts_with('*'))
    }

    fn has_seconds(&self) -> bool {
        self.text.split(' ').count() == 6
    }

    /// The last change of the clock in the day up to `at`.
    fn change_before(&self, at: Timestamp) -> Option<Timestamp> {
        let change = self.zone.preceding(at + SignedDuration::from_secs(1)).next()?.timestamp();
        (at.duration_since(change) <= SignedDuration::from_hours(24)).then_some(change)
    }

    /// The jump forward in the day up to `at`.
    fn jump_before(&self, at: Timestamp) -> Option<Jump> {
        let change = self.change_before(at)?;
        let from = self.shown(change - SignedDuration::from_secs(1)) + 1.second();
        Some(Jump { at: change, from, to: self.shown(change) }).filter(|jump| jump.from < jump.to)
    }

    /// Whether `at` is in the hour in which a jump landed, and matches with its hour turned back to one jumped over.
    fn shifted_by_jump(&self, at: Timestamp) -> bool {
        let shown = self.shown(at);
        self.jump_before(at)
            .filter(|jump| jump.to.date() == shown.date() && jump.to.hour() == shown.hour())
            .is_some_and(|jump| {
                (1..=24)
                    .map(|hours| shown - hours.hours())
                    .take_while(|time| *time >= jump.from)
                    .any(|time| self.matches(time))
            })
    }

    /// The jump that ends with `at`, where the times jumped over match.
    fn due_by_jump(&self, at: Timestamp) -> Option<Jump> {
        self.jump_before(at).filter(|jump| jump.at == at && self.matches_within(jump.from, jump.to))
    }

    /// 1 or 2 where the clock shows this time twice.
    fn pass(&self, at: Timestamp) -> Option<u8> {
        match self.zone.to_ambiguous_timestamp(self.shown(at)).offset() {
            AmbiguousOffset::Fold { before, .. } => Some(if self.zone.to_offset(at) == before { 1 } else { 2 }),
            _ => None,
        }
    }

    fn midnight_comes_twice(&self, at: Timestamp) -> bool {
        let midnight = self.shown(at).date().at(0, 0, 0, 0);
        matches!(self.zone.to_ambiguous_timestamp(midnight).offset(), AmbiguousOffset::Fold { .. })
    }

    /// Whether the clock moved by a part of an hour in the day up to `at`.
    fn half_hour_before(&self, at: Timestamp) -> bool {
        self.change_before(at).is_some_and(|change| {
            let earlier = self.zone.to_offset(change - SignedDuration::from_secs(1));
            let moved = self.zone.to_offset(change).seconds() - earlier.seconds();
            moved % 3600 != 0
        })
    }
}

type Rule = (&'static str, fn(&Case, Difference) -> bool);

/// An extra firing must at least be of a matching civil time.
fn extra_in_pass(case: &Case, difference: Difference, pass: u8) -> bool {
    matches!(difference, Extra(at) if case.pass(at) == Some(pass) && case.matches(case.shown(at)))
}

fn missing_by_half_hour(case: &Case, difference: Difference) -> bool {
    matches!(difference, Missing(at) if case.half_hour_before(at))
}

/// We fire only because the clock jumped.
fn missing_jump(case: &Case, difference: Difference) -> bool {
    matches!(difference, Missing(at) if case.due_by_jump(at).is_some() && !case.matches(case.shown(at)))
}

const CRONSIM: &[Rule] = &[
    ("six fields are an interval", |case, difference| {
        case.has_seconds() && (extra_in_pass(case, difference, 2) || missing_jump(case, difference))
    }),
    ("forgets which pass", |case, difference| {
        matches!(difference, Extra(at) if at <= case.start) && case.pass(case.start) == Some(2)
    }),
    ("whole hours over half an hour", missing_by_half_hour),
    ("midnight that was skipped", |case, difference| {
        let Missing(at) = difference else {
            return false;
        };
        case.jump_before(at).is_some_and(|jump| {
            jump.from.time() == civil::Time::midnight()
                && at.duration_since(jump.at) < SignedDuration::from_hours(1)
        })
    }),
];

const CRONITER: &[Rule] = &[
    ("again in the second pass", |case, difference| !case.is_interval() && extra_in_pass(case, difference, 2)),
    (
        "interval after a jump",
        |case, difference| matches!(difference, Extra(at) if case.is_interval() && case.due_by_jump(at).is_some()),
    ),
    ("seconds after a jump", |case, difference| match difference {
        Extra(at) => {
            case.has_seconds()
                && case
                    .jump_before(at)
                    .is_some_and(|jump| at.duration_since(jump.at) < SignedDuration::from_secs(60))
        }
        Missing(_) => case.has_seconds() && missing_jump(case, difference),
    }),
    ("whole hours over half an hour", missing_by_half_hour),
];

const CRON_PARSER: &[Rule] = &[
    ("second midnight", |case, difference| match difference {
        Missing(at) => case.pass(at) == Some(1) && case.midnight_comes_twice(at),
        Extra(at) => extra_in_pass(case, difference, 2) && case.midnight_comes_twice(at),
    }),
    ("again in the second pass", |case, difference| !case.is_interval() && extra_in_pass(case, difference, 2)),
    ("shifted by the jump", |case, difference| match difference {
        Extra(at) => case.shifted_by_jump(at),
        Missing(_) => missing_jump(case, difference),
    }),
    (
        "once in a repeated hour",
        |case, difference| matches!(difference, Missing(at) if case.is_interval() && case.pass(at) == Some(2)),
    ),
    ("whole hours over half an hour", missing_by_half_hour),
];

struct Tally {
    program: &'static str,
    rules: &'static [Rule],
    counts: BTreeMap<&'static str, usize>,
    unexplained: Vec<String>,
}

impl Tally {
    fn new(program: &'static str, rules: &'static [Rule]) -> Self {
        Self { program, rules, counts: BTreeMap::new(), unexplained: Vec::new() }
    }

    fn count(&mut self, class: &'static str) {
        *self.counts.entry(class).or_default() += 1;
    }

    /// Compares one answer and counts the case under each class that it needs.
    fn compare(&mut self, case: &Case, answer: &str) {
        if answer == "!" {
            match refusal(self.program, case) {
                Some(class) => self.count(class),
                None => self.unexplained.push(format!("{} refuses {} in {:?}", self.program, case.text, case.zone)),
            }
            return;
        }
        let theirs: Vec<Timestamp> =
            answer.split(',').map(|at| Timestamp::from_second(at.parse().unwrap()).unwrap()).collect();
        let ours = case.firings();
        if ours == theirs {
            return self.count("same");
        }
        let reread = (self.program != "cronsim").then(|| as_restricted(case.text)).flatten();
        let mut classes = BTreeSet::new();
        let reading = reread.map(|text| {
            classes.insert("restricted by a step");
            CronExpression::parse(&text).unwrap()
        });
        let case = &Case { cron: reading.unwrap_or_else(|| case.cron.clone()), zone: case.zone.clone(), ..*case };
        for difference in differences(&case.firings(), &theirs) {
            let Some((class, _)) = self.rules.iter().find(|(_, explains)| explains(case, difference)) else {
                let (does, at) = match difference {
                    Extra(at) => ("fires", at),
                    Missing(at) => ("does not fire", at),
                };
                let at = at.to_zoned(case.zone.clone());
                self.unexplained
                    .push(format!("{} {does} at {at} for {} from {}", self.program, case.text, case.start));
                return;
            };
            classes.insert(class);
        }
        for class in classes {
            self.count(class);
        }
    }
}

fn refusal(program: &str, case: &Case) -> Option<&'static str> {
    if program != "cron-parser" {
        return None;
    }
    let repeats = |field: &str| {
        let entries: Vec<&str> = field.split(',').collect();
        entries.iter().collect::<BTreeSet<_>>().len() < entries.len()
    };
    let day = SignedDuration::from_hours(24);
    let end = case.firings().last().copied()? + day;
    let mut changes =
        case.zone.following(case.start - day).map(|change| change.timestamp()).take_while(|at| *at < end);
    match case.text {
        "@midnight" => Some("no @midnight"),
        text if text.split(' ').any(repeats) => Some("no value twice"),
        _ if changes.any(|at| case.half_hour_before(at)) => Some("gives up by half an hour"),
        _ => None,
    }
}

/// The expression with a step such as `*/2` in a day field spelled out, where the other day field is restricted too.
fn as_restricted(text: &str) -> Option<String> {
    let mut fields: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let weekday = fields.len().checked_sub(1)?;
    let day = weekday.checked_sub(2)?;
    if fields[day] == "*" || fields[weekday] == "*" {
        return None;
    }
    let mut starred = false;
    for (index, values) in [(day, "1-31"), (weekday, "0-7")] {
        if let Some(step) = fields[index].strip_prefix("*/") {
            fields[index] = format!("{values}/{step}");
            starred = true;
        }
    }
    starred.then(|| fields.join(" "))
}

/// What differs up to the last firing that both lists reach.
fn differences(ours: &[Timestamp], theirs: &[Timestamp]) -> Vec<Difference> {
    let end = *ours.last().min(theirs.last()).expect("both have firings");
    let missing = ours.iter().filter(|at| **at <= end && !theirs.contains(at)).map(|at| Missing(*at));
    let extra = theirs.iter().filter(|at| **at <= end && !ours.contains(at)).map(|at| Extra(*at));
    missing.chain(extra).collect()
}

#[test]
fn other_programs_differ_only_where_a_rule_explains_it() {
    let answers = fs::read_to_string(ANSWERS).expect("the answers are part of the repository");
    let mut tallies =
        [Tally::new("cronsim", CRONSIM), Tally::new("croniter", CRONITER), Tally::new("cron-parser", CRON_PARSER)];
    let mut cases = 0;
    for line in answers.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        let [text, zone, start, answers @ ..] = columns.as_slice() else { panic!("too few columns: {line}") };
        let case = Case {
            text,
            cron: CronExpression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")),
            zone: TimeZone::get(zone).unwrap(),
            start: Timestamp::from_second(start.parse().unwrap()).unwrap(),
        };
        assert_eq!(answers.len(), tallies.len(), "{line}");
        for (tally, answer) in tallies.iter_mut().zip(answers) {
            tally.compare(&case, answer);
        }
        cases += 1;
    }
    for tally in &tallies {
        println!("{}: {:?}, unexplained {}", tally.program, tally.counts, tally.unexplained.len());
    }
    // A rule that explains nothing would hide the next mistake.
    for tally in &tallies {
        for (class, _) in tally.rules {
            assert!(tally.counts.contains_key(class), "{}: no case is of the class {class}", tally.program);
        }
    }
    let unexplained: Vec<&String> = tallies.iter().flat_map(|tally| &tally.unexplained).collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}");
    assert_eq!(cases, CASES);
}
