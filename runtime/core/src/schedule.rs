//! Schedules: what is done again and again, once in a cluster for each of its times.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::{Cleanup, CronExpression, Header, InvalidName, MessageId, Name, NewMessage, StoreError};

/// What becomes of times that passed while no node ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// They are left out.
    Skip,
    /// The last of them is made up for.
    #[default]
    One,
    /// All of them are made up for, in their order.
    All,
}

/// How rows over their retention are removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CleanupPolicy {
    /// Which.
    pub what: Cleanup,
    /// How long they are kept; longer than nothing.
    pub retention: Duration,
    /// Rows of one transaction at most.
    pub batch_size: u32,
    /// Longest time for one run; the next one goes on.
    pub budget: Duration,
}

/// What a schedule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScheduleAction {
    /// Writes this message, with an id made of the schedule and the time.
    Enqueue(NewMessage),
    /// Removes what is over its retention.
    Clean(CleanupPolicy),
}

/// Something to be done at times that an expression names.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Declared name: the stable identity of its runs.
    pub name: Name,
    /// Its times.
    pub cron: CronExpression,
    /// Where the clock hangs that they are read from.
    pub zone: TimeZone,
    /// What becomes of times that passed while no node ran.
    pub missed: Missed,
    /// What is done.
    pub action: ScheduleAction,
}

/// A time is missed if it passed longer ago than this: nodes that start or fail over take a moment.
const LATE: Duration = Duration::from_secs(30);
/// How far the last missed time is looked back for at first.
const FIRST_LOOK_BACK: Duration = Duration::from_secs(60);
/// Most times that are made up for at once; the next look finds the rest.
const MADE_UP_MAX: usize = 1000;

impl Schedule {
    /// Expression and zone as one text: if it changes, no time before the change was missed.
    #[must_use]
    pub fn rule(&self) -> String {
        format!("{} {}", self.cron, self.zone.iana_name().unwrap_or("UTC"))
    }

    /// The first time after this one; `None` if there is none.
    #[must_use]
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        self.cron.next_after(after, &self.zone)
    }

    /// The times after `last` and up to `now` that are to be run now, in their order: those that are not late, and of
    /// those that are, what is made up for.
    #[must_use]
    pub fn due(&self, last: Timestamp, now: Timestamp) -> Vec<Timestamp> {
        let not_late = now.checked_sub(LATE).unwrap_or(Timestamp::MIN).max(last);
        let mut due = match self.missed {
            Missed::Skip => Vec::new(),
            Missed::One => self.last_between(last, not_late).into_iter().collect(),
            Missed::All => self.between(last, not_late).take(MADE_UP_MAX).collect(),
        };
        if due.len() < MADE_UP_MAX {
            due.extend(self.between(not_late, now));
        }
        due
    }

    /// The times after `from` and up to `to`.
    fn between(&self, from: Timestamp, to: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next_after(from), |time| self.next_after(*time))
            .take_while(move |time| *time <= to)
    }

    /// The last time after `from` and up to `to`: looked for from the end, in steps that grow, so that a long time
    /// without nodes need not be walked through second by second.
    fn last_between(&self, from: Timestamp, to: Timestamp) -> Option<Timestamp> {
        let mut span = FIRST_LOOK_BACK;
        let mut end = to;
        while end > from {
            let start = end.checked_sub(span).unwrap_or(Timestamp::MIN).max(from);
            if let Some(found) = self.between(start, end).last() {
                return Some(found);
            }
            end = start;
            span = span.saturating_mul(4);
        }
        None
    }

    /// The message of a time, if it is one to be written. The same time always gives the same id.
    ///
    /// # Errors
    /// [`InvalidName`] if the schedule's name leaves no room for the time.
    pub fn message(&self, time: Timestamp) -> Result<Option<NewMessage>, InvalidName> {
        let ScheduleAction::Enqueue(message) = &self.action else { return Ok(None) };
        let mut message = message.clone();
        message.id = MessageId::parse(&format!("{}/{time}", self.name))?;
        message.headers.push(Header { name: "laneway-schedule".to_owned(), value: self.name.to_string() });
        message.headers.push(Header { name: "laneway-scheduled-for".to_owned(), value: time.to_string() });
        Ok(Some(message))
    }
}

/// Whose rule a schedule goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    /// This node's.
    Ours {
        /// The rule before, if this call has changed it.
        before: Option<String>,
    },
    /// That of other nodes, of which one lives: this node stands back.
    Theirs {
        /// Their rule.
        rule: String,
        /// Since when it has held.
        since: Timestamp,
    },
}

/// Where a schedule stands in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulePosition {
    /// The rule that it goes by.
    pub rule: String,
    /// Since when it has had its rule.
    pub since: Timestamp,
    /// The last time up to now that was run.
    pub last: Option<Timestamp>,
}

impl SchedulePosition {
    /// The time after which nothing was run or left out yet.
    #[must_use]
    pub fn after(&self) -> Timestamp {
        self.last.map_or(self.since, |last| last.max(self.since))
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunOutcome {
    /// All was done, or as much as its budget allowed.
    Done,
    /// It failed; the next time tries again.
    Failed,
}

impl RunOutcome {
    /// The outcome's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// A run as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScheduleRunView {
    /// Which schedule.
    pub schedule: Name,
    /// The time that it was for.
    pub fire_at: Timestamp,
    /// The node that ran it.
    pub node: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended; `None` while it runs, or if its node died.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<String>,
    /// What it did, or why it failed.
    pub detail: Option<String>,
}

/// The runs of schedules, each time once, whichever node comes first.
#[async_trait]
pub trait ScheduleRuns: Send + Sync + 'static {
    /// Says by which rule a node, named by its id, runs a schedule, and answers whose rule the schedule goes by.
    ///
    /// A rule that no node has had within the last week is new, and holds from now on: who changes a schedule need not
    /// wait for the last node. Any other holds once no node lives that has the rule which holds. So a node that comes back with an old configuration changes nothing. From a
    /// change on, no earlier time counts as missed.
    async fn declare_schedule(
        &self,
        schedule: &Name,
        rule: &str,
        node: &Name,
        alive_for: Duration,
    ) -> Result<Declared, StoreError>;

    /// Where a schedule stands; `Ok(None)` if it was never declared.
    async fn schedule_position(&self, schedule: &Name) -> Result<Option<SchedulePosition>, StoreError>;

    /// Begins the run of a time. With a message, writes it and ends the run in the same transaction. Answers `false`,
    /// having done nothing, if that time was begun before, or if a rule is given that is not the one that holds.
    async fn begin_run(
        &self,
        schedule: &Name,
        rule: Option<&str>,
        fire_at: Timestamp,
        node: &Name,
        message: Option<&NewMessage>,
    ) -> Result<bool, StoreError>;

    /// Notes how a run ended.
    async fn end_run(
        &self,
        schedule: &Name,
        fire_at: Timestamp,
        outcome: RunOutcome,
        detail: &str,
    ) -> Result<(), StoreError>;

    /// The last runs of a schedule, newest first.
    async fn schedule_runs(&self, schedule: &Name, limit: u32) -> Result<Vec<ScheduleRunView>, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cron: &str, missed: Missed) -> Schedule {
        let topic = crate::Topic::parse("t").unwrap();
        Schedule {
            name: Name::parse("s").unwrap(),
            cron: CronExpression::parse(cron).unwrap(),
            zone: TimeZone::UTC,
            missed,
            action: ScheduleAction::Enqueue(NewMessage::new(topic, "{}")),
        }
    }

    fn due(cron: &str, missed: Missed, last: &str, now: &str) -> Vec<String> {
        let at = |time: &str| format!("2026-01-{time}Z").parse().unwrap();
        let due = schedule(cron, missed).due(at(last), at(now));
        due.iter().map(|time| time.to_string()["2026-01-".len()..].trim_end_matches('Z').to_owned()).collect()
    }

    #[test]
    fn what_passed_without_a_node_follows_the_policy() {
        let (last, now) = ("01T00:00:00", "01T05:30:00");
        let none: [&str; 0] = [];
        assert_eq!(due("@hourly", Missed::Skip, last, now), none);
        assert_eq!(due("@hourly", Missed::One, last, now), ["01T05:00:00"]);
        let all = ["01T01:00:00", "01T02:00:00", "01T03:00:00", "01T04:00:00", "01T05:00:00"];
        assert_eq!(due("@hourly", Missed::All, last, now), all);
        assert_eq!(due("@monthly", Missed::One, last, now), none);
    }

    #[test]
    fn a_time_that_is_not_late_is_run_whatever_the_policy() {
        for missed in [Missed::Skip, Missed::One, Missed::All] {
            assert_eq!(due("@hourly", missed, "01T05:00:00", "01T06:00:10"), ["01T06:00:00"], "{missed:?}");
            let seconds = due("* * * * * *", missed, "01T00:00:00", "01T00:00:04");
            assert_eq!(seconds, ["01T00:00:01", "01T00:00:02", "01T00:00:03", "01T00:00:04"], "{missed:?}");
        }
        assert_eq!(due("@hourly", Missed::Skip, "01T05:00:00", "01T06:00:31").len(), 0);
        assert_eq!(due("@hourly", Missed::One, "01T04:00:00", "01T06:00:10"), ["01T05:00:00", "01T06:00:00"]);
    }

    #[test]
    fn a_long_time_is_made_up_for_in_parts() {
        let times = due("* * * * * *", Missed::All, "01T00:00:00", "02T00:00:00");
        assert_eq!((times.len(), times[999].as_str()), (MADE_UP_MAX, "01T00:16:40"));
        let one = due("* * * * * *", Missed::One, "01T00:00:00", "31T00:00:00");
        assert_eq!((one.len(), one[0].as_str()), (31, "30T23:59:30"));
    }

    #[test]
    fn a_times_message_has_the_same_id_each_time() {
        let schedule = schedule("@daily", Missed::One);
        let time = "2026-01-01T00:00:00Z".parse().unwrap();
        let message = schedule.message(time).unwrap().unwrap();
        assert_eq!(message.id.as_str(), "s/2026-01-01T00:00:00Z");
        assert_eq!(message.id, schedule.message(time).unwrap().unwrap().id);
        assert!(message.headers.iter().any(|h| h.name == "laneway-schedule" && h.value == "s"));
    }
}
