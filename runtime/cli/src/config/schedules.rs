//! The parts of the file that say what is done at which times: `[cleanup.*]` and `[[schedule]]`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use jiff::SignedDuration;
use jiff::tz::TimeZone;
use laneway_core::{
    Cleanup, CleanupPolicy, CronExpression, Header, Missed, Name, NewMessage, Priority, Schedule, ScheduleAction,
    Topic,
};
use serde::Deserialize;

use super::SubscriptionConfig;
use super::file::{duration, signed_duration};

/// Begins the names of cleanups, so that no schedule can be taken for one.
const CLEANUP: &str = "cleanup.";
/// Bytes that a schedule's name may have: the time is added to it to make an id.
const NAME_BYTES_MAX: usize = 150;
/// Bytes that the outbox takes of a key or tenant.
const TEXT_BYTES_MAX: usize = 1024;
/// Bytes that the outbox takes of a content type.
const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Bytes of headers as JSON. The outbox takes more; two are added.
const HEADERS_BYTES_MAX: usize = 60_000;
/// Rows of one transaction, if nothing else is said.
pub const BATCH_SIZE: u32 = 5000;
/// Most rows of one transaction.
pub const BATCH_SIZE_MAX: u32 = 100_000;
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);

/// `[cleanup.*]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct CleanupBlock {
    messages: JobBlock,
    markers: JobBlock,
    dead_letters: JobBlock,
    schedule_runs: JobBlock,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct JobBlock {
    schedule: Option<String>,
    time_zone: String,
    #[serde(deserialize_with = "optional_signed")]
    retention: Option<SignedDuration>,
    batch_size: u32,
    #[serde(deserialize_with = "duration")]
    budget: Duration,
}

fn optional_signed<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SignedDuration>, D::Error> {
    signed_duration(deserializer).map(Some)
}

impl Default for JobBlock {
    fn default() -> Self {
        Self {
            schedule: None,
            time_zone: "UTC".to_owned(),
            retention: None,
            batch_size: BATCH_SIZE,
            budget: Duration::from_secs(30 * 60),
        }
    }
}

/// `[[schedule]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleBlock {
    name: Name,
    cron: String,
    #[serde(default = "utc")]
    time_zone: String,
    #[serde(default)]
    missed: MissedKey,
    topic: String,
    #[serde(default = "empty_object")]
    payload: String,
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    priority: Priority,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn empty_object() -> String {
    "{}".to_owned()
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum MissedKey {
    Skip,
    #[default]
    One,
    All,
}

/// What is done at which times.
#[derive(Default)]
pub struct Schedules {
    /// Everything that is on, cleanups included.
    pub all: Vec<Schedule>,
    /// Whether the file itself says how long markers are kept.
    markers_said: bool,
    /// Cleanups that a retention of nothing, or less, has turned off.
    pub turned_off: Vec<Cleanup>,
    /// What the file says that is not done as it says, and why: for the log.
    pub warnings: Vec<String>,
}

impl Schedules {
    /// Reads both parts.
    pub fn read(cleanup: CleanupBlock, schedules: Vec<ScheduleBlock>, payload_bytes_max: u32) -> Result<Self> {
        let mut read = Self { markers_said: cleanup.markers.retention.is_some(), ..Self::default() };
        let CleanupBlock { messages, markers, dead_letters, schedule_runs } = cleanup;
        // Dead letters are kept until somebody says otherwise.
        for (what, block, times, retention) in [
            (Cleanup::Messages, messages, "0 3 * * *", Some(WEEK)),
            (Cleanup::Markers, markers, "20 3 * * *", Some(WEEK)),
            (Cleanup::DeadLetters, dead_letters, "40 3 * * *", None),
            (Cleanup::ScheduleRuns, schedule_runs, "50 3 * * *", Some(WEEK)),
        ] {
            read.job(what, block, times, retention).with_context(|| format!("cleanup.{}", what.as_str()))?;
        }
        for block in schedules {
            let name = block.name.clone();
            ensure!(
                !read.all.iter().any(|other| other.name == name),
                "schedule `{name}` is declared twice; names are identities"
            );
            read.all.push(block.check(payload_bytes_max).with_context(|| format!("schedule `{name}`"))?);
        }
        Ok(read)
    }

    fn job(&mut self, what: Cleanup, block: JobBlock, times: &str, kept: Option<SignedDuration>) -> Result<()> {
        ensure!(
            (1..=BATCH_SIZE_MAX).contains(&block.batch_size),
            "batch_size is {}; it must lie between 1 and {BATCH_SIZE_MAX}",
            block.batch_size
        );
        ensure!(!block.budget.is_zero(), "budget is 0; such as \"30m\" is meant");
        let zone = zone(&block.time_zone)?;
        let cron = expression("schedule", block.schedule.as_deref().unwrap_or(times))?;
        let Some(retention) = block.retention.or(kept) else {
            ensure!(
                block.schedule.is_none(),
                "it has a schedule and no retention; say how long they are kept, such as retention = \"30d\""
            );
            return Ok(());
        };
        let Some(retention) = Duration::try_from(retention).ok().filter(|retention| !retention.is_zero()) else {
            self.turned_off.push(what);
            return Ok(());
        };
        self.all.push(Schedule {
            name: Name::parse(&format!("{CLEANUP}{}", what.as_str()))?,
            cron,
            zone,
            missed: Missed::One,
            action: ScheduleAction::Clean(CleanupPolicy {
                what,
                retention,
                batch_size: block.batch_size,
                budget: block.budget,
            }),
        });
        Ok(())
    }

    /// The policy of a cleanup that is on.
    pub fn cleanup(&self, what: Cleanup) -> Option<&CleanupPolicy> {
        self.all.iter().find_map(|schedule| match &schedule.action {
            ScheduleAction::Clean(policy) if policy.what == what => Some(policy),
            ScheduleAction::Clean(_) | ScheduleAction::Enqueue(_) => None,
        })
    }

    /// Sees to it that no marker is gone while its message may still be delivered once more: refuses a retention that is
    /// too short, and extends one that nobody has set. One that is too short only for retries which the file leaves to the
    /// defaults is extended with a warning, since it was long enough for those of the first release.
    pub fn check_markers(&mut self, subscriptions: &[SubscriptionConfig]) -> Result<()> {
        let letters = self.cleanup(Cleanup::DeadLetters).map(|letters| letters.retention);
        let said = self.markers_said;
        let policy = self.all.iter_mut().find_map(|schedule| match &mut schedule.action {
            ScheduleAction::Clean(policy) if policy.what == Cleanup::Markers => Some(policy),
            ScheduleAction::Clean(_) | ScheduleAction::Enqueue(_) => None,
        });
        let Some(CleanupPolicy { retention: kept, .. }) = policy else { return Ok(()) };
        let given = *kept;
        for config in subscriptions.iter().filter(|config| config.subscription.idempotent) {
            let name = &config.subscription.name;
            let declared = config.declared().redelivery_horizon();
            ensure!(
                !said || given >= declared,
                "cleanup.markers.retention is {}, but subscription `{name}` may retry a message for {}; \
                 keep markers longer than that, or lower its retry.max_elapsed",
                shown(given),
                shown(declared)
            );
            let horizon = config.subscription.redelivery_horizon();
            if said && given < horizon {
                self.warnings.push(format!(
                    "cleanup.markers.retention is {}, but subscription `{name}` retries a message for {} by default: \
                     markers are kept that long; say so there, or set its retry.max_elapsed",
                    shown(given),
                    shown(horizon)
                ));
            }
            *kept = horizon.max(*kept);
        }
        if let Some(letters) = letters {
            ensure!(
                !said || given >= letters,
                "cleanup.markers.retention is {}, but dead letters can be replayed for {}; keep markers as long as \
                 cleanup.dead_letters.retention",
                shown(given),
                shown(letters)
            );
            *kept = letters.max(*kept);
        }
        Ok(())
    }
}

fn shown(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), |duration| format!("{duration:#}"))
}

impl ScheduleBlock {
    fn check(self, payload_bytes_max: u32) -> Result<Schedule> {
        let name = self.name;
        ensure!(!name.as_str().starts_with(CLEANUP), "names that begin with `{CLEANUP}` are those of cleanups");
        ensure!(
            name.as_str().len() <= NAME_BYTES_MAX,
            "its name has {} bytes; at most {NAME_BYTES_MAX} leave room for the time in message ids",
            name.as_str().len()
        );
        ensure!(
            self.payload.len() <= payload_bytes_max as usize,
            "payload has {} bytes; limits.payload_bytes_max is {payload_bytes_max}",
            self.payload.len()
        );
        for (key, value, max) in [
            ("key", &self.key, TEXT_BYTES_MAX),
            ("tenant", &self.tenant, TEXT_BYTES_MAX),
            ("content_type", &self.content_type, CONTENT_TYPE_BYTES_MAX),
        ] {
            let bytes = value.as_ref().map_or(0, String::len);
            ensure!(bytes <= max, "{key} has {bytes} bytes; the outbox takes {max}");
        }
        let bytes = serde_json::to_string(&self.headers)?.len();
        ensure!(bytes <= HEADERS_BYTES_MAX, "headers have {bytes} bytes; at most {HEADERS_BYTES_MAX} are allowed");
        let headers = self.headers.into_iter().map(|(name, value)| Header { name, value }).collect();
        let mut message = NewMessage {
            key: self.key,
            priority: self.priority,
            headers,
            tenant: self.tenant,
            ..NewMessage::new(Topic::parse(&self.topic).context("topic")?, self.payload)
        };
        match self.content_type {
            Some(content_type) => message.content_type = content_type,
            None => {
                serde_json::from_slice::<serde::de::IgnoredAny>(&message.payload)
                    .context("payload is no JSON; give its content_type if it is something else")?;
            }
        }
        Ok(Schedule {
            name,
            cron: expression("cron", &self.cron)?,
            zone: zone(&self.time_zone)?,
            missed: match self.missed {
                MissedKey::Skip => Missed::Skip,
                MissedKey::One => Missed::One,
                MissedKey::All => Missed::All,
            },
            action: ScheduleAction::Enqueue(message),
        })
    }
}

fn expression(key: &str, text: &str) -> Result<CronExpression> {
    CronExpression::parse(text).map_err(|error| anyhow!("{key}: {error}"))
}

/// A time zone by its name, such as `Europe/Berlin`.
pub fn zone(name: &str) -> Result<TimeZone> {
    match TimeZone::get(name) {
        Ok(zone) => Ok(zone),
        Err(_) => bail!("time_zone: `{name}` is not known; use a name such as \"UTC\" or \"Europe/Berlin\""),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    const SUBSCRIPTION: &str = "[[subscription]]\nname = \"s\"\ntopic = \"t.>\"\nhandler = \"h.wasm\"\n";

    fn config(text: &str) -> Result<Config> {
        Config::parse(&format!("{text}\n{SUBSCRIPTION}"), Path::new("/"), None)
    }

    fn error(text: &str) -> String {
        match config(text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_week_is_kept_of_all_but_dead_letters() {
        let schedules = config("").unwrap().schedules;
        for what in [Cleanup::Messages, Cleanup::Markers, Cleanup::ScheduleRuns] {
            let policy = schedules.cleanup(what).unwrap();
            assert_eq!((policy.retention, policy.batch_size), (Duration::from_secs(7 * 86_400), 5000), "{what:?}");
        }
        assert!(schedules.cleanup(Cleanup::DeadLetters).is_none() && schedules.turned_off.is_empty());
    }

    #[test]
    fn a_retention_of_nothing_or_less_turns_a_cleanup_off() {
        let text = "[cleanup.messages]\nretention = \"0s\"\n[cleanup.markers]\nretention = \"-3h\"";
        let schedules = config(text).unwrap().schedules;
        assert_eq!(schedules.turned_off, [Cleanup::Messages, Cleanup::Markers]);
        assert!(schedules.cleanup(Cleanup::Messages).is_none() && schedules.cleanup(Cleanup::Markers).is_none());
    }

    #[test]
    fn markers_must_outlast_what_may_come_again() {
        let long = format!("{SUBSCRIPTION}[subscription.retry]\nmax_elapsed = \"8d\"\nmax_attempts = 100_000");
        let refused = |text: &str| match Config::parse(text, Path::new("/"), None) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => format!("{error:#}"),
        };
        let kept = |text: &str| {
            let config = Config::parse(text, Path::new("/"), None).unwrap();
            config.schedules.cleanup(Cleanup::Markers).unwrap().retention.as_secs()
        };
        assert_eq!(kept(&long), 8 * 86_400 + 30, "what nobody has set is long enough");
        let told = refused(&format!("[cleanup.markers]\nretention = \"7d\"\n{long}"));
        assert!(told.contains("cleanup.markers.retention") && told.contains("subscription `s`"), "{told}");
        assert_eq!(kept(&format!("[cleanup.markers]\nretention = \"9d\"\n{long}")), 9 * 86_400);
        let off = long.replace("handler = ", "idempotent = false\nhandler = ");
        assert_eq!(kept(&off), 7 * 86_400, "without markers there is nothing to outlast");
        assert_eq!(kept(&format!("[cleanup.dead_letters]\nretention = \"30d\"\n{SUBSCRIPTION}")), 30 * 86_400);
        let told = error("[cleanup.dead_letters]\nretention = \"30d\"\n[cleanup.markers]\nretention = \"7d\"");
        assert!(told.contains("dead letters can be replayed"), "{told}");
        config("[cleanup.dead_letters]\nretention = \"30d\"\n[cleanup.markers]\nretention = \"30d\"").unwrap();
    }

    #[test]
    fn a_retention_that_was_long_enough_before_retries_went_on_for_days_is_extended_with_a_warning() {
        let text = format!("[cleanup.markers]\nretention = \"1d\"\n{SUBSCRIPTION}");
        let schedules = Config::parse(&text, Path::new("/"), None).unwrap().schedules;
        let [warning] = &schedules.warnings[..] else { panic!("{:?}", schedules.warnings) };
        assert!(warning.contains("cleanup.markers.retention is 24h") && warning.contains("`s`"), "{warning}");
        let kept = schedules.cleanup(Cleanup::Markers).unwrap().retention;
        assert!(kept >= Duration::from_secs(66 * 3600), "{kept:?}");
        let said = format!("{text}retry = {{ max_attempts = 80, cap = \"1h\" }}");
        let error = format!("{:#}", Config::parse(&said, Path::new("/"), None).err().expect("the file says both"));
        assert!(error.contains("may retry a message for"), "{error}");
        assert!(config("[cleanup.markers]\nretention = \"4d\"").unwrap().schedules.warnings.is_empty());
    }

    #[test]
    fn wrong_values_name_their_place() {
        for (text, wants) in [
            ("[cleanup.markers]\nbatch_size = 0", "cleanup.markers: batch_size is 0"),
            ("[cleanup.markers]\nschedule = \"0 3 * *\"", "cleanup.markers: schedule: "),
            ("[cleanup.markers]\ntime_zone = \"Mars/Olympus\"", "`Mars/Olympus` is not known"),
            ("[cleanup.dead_letters]\nschedule = \"@daily\"", "no retention"),
            ("[cleanup.nothing]\nretention = \"1d\"", "unknown field `nothing`"),
            ("[[schedule]]\nname = \"a\"\ncron = \"@daily\"", "missing field `topic`"),
            ("[[schedule]]\nname = \"a\"\ncron = \"61 * * * *\"\ntopic = \"t\"", "schedule `a`: cron: "),
            ("[[schedule]]\nname = \"cleanup.x\"\ncron = \"@daily\"\ntopic = \"t\"", "those of cleanups"),
            ("[[schedule]]\nname = \"a\"\ncron = \"@daily\"\ntopic = \"t\"\npayload = \"hello\"", "no JSON"),
            ("[[schedule]]\nname = \"a\"\ncron = \"@daily\"\ntopic = \"a b\"", "topic"),
            (
                &format!(
                    "[[schedule]]\nname = \"a\"\ncron = \"@daily\"\ntopic = \"t\"\nkey = \"{}\"",
                    "k".repeat(1025)
                ),
                "key has 1025 bytes",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(wants), "{text}: {error}");
        }
        let one = "[[schedule]]\nname = \"a\"\ncron = \"@daily\"\ntopic = \"t\"\n";
        assert!(error(&format!("{one}{one}")).contains("declared twice"));
    }
}
