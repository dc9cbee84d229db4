//! Each key of the file does what it says: set alone, it changes the one value that it stands for, and no other.

use std::path::Path;
use std::time::Duration;

use jiff::tz::TimeZone;
use laneway_core::{
    BreakerPolicy, Cleanup, CleanupPolicy, CronExpression, Header, MessageId, Missed, Name, NewMessage, Ordering,
    Priority, RetryPolicy, RetrySchedule, Schedule, ScheduleAction, SubscriptionKind, Topic, TopicPattern,
};
use laneway_host::PublicKeys;

use super::secrets::SecretSource;
use super::{Config, PluginSource, REFERENCE, SubscriptionConfig};

const HANDLER: &str = "name = \"s\"\ntopic = \"t.>\"\nhandler = \"h.wasm\"\n";
const PUBLISHER: &str = "name = \"s\"\ntopic = \"t.>\"\npublisher = \"p.wasm\"\n";

/// A key, a value in TOML that is not the default, and what it changes.
type Key<T> = (&'static str, &'static str, fn(&mut T));

/// Keys of a subscription, a handler.
const SUBSCRIPTION: [Key<SubscriptionConfig>; 29] = [
    ("concurrency", "3", |it| it.subscription.concurrency = 3),
    ("claim_batch", "77", |it| it.subscription.claim_batch = 77),
    ("lease", "\"45s\"", |it| it.subscription.lease = Duration::from_secs(45)),
    ("timeout", "\"1m 30s\"", |it| it.subscription.timeout = Duration::from_secs(90)),
    ("lane_threshold", "-50", |it| it.subscription.lane_threshold = Priority::LOW),
    ("idempotent", "false", |it| it.subscription.idempotent = false),
    ("unknown_outcome", "\"review\"", |it| it.subscription.review_unknown_outcome = true),
    ("ordering", "\"key\"", |it| it.subscription.ordering = Ordering::Key),
    ("backfill_min_share", "0.25", |it| it.subscription.backfill_min_share = 0.25),
    ("rate_limit", "7.5", |it| it.subscription.rate_limit = Some(7.5)),
    ("cluster_concurrency", "5", |it| it.subscription.cluster_concurrency = Some(5)),
    ("destination", "\"crm\"", |it| it.subscription.destination = Some(Name::parse("crm").unwrap())),
    ("breaker.failures", "4", |it| {
        it.subscription.breaker = Some(BreakerPolicy { failures: 4, pause: Duration::from_secs(30) });
    }),
    ("throttle_max", "\"5m\"", |it| it.subscription.throttle_max = Duration::from_secs(300)),
    ("reuse", "true", |it| it.spec.reuse = true),
    ("config", "{ a = \"b\" }", |it| {
        it.spec.config.insert("a".to_owned(), "b".to_owned());
    }),
    ("grants.http", "[\"https://x.example\"]", |it| {
        it.spec.grants.http = vec!["https://x.example".parse().unwrap()]
    }),
    ("grants.emit", "[\"a.>\"]", |it| it.spec.grants.emit = vec![TopicPattern::parse("a.>").unwrap()]),
    ("grants.state", "false", |it| it.spec.grants.state = false),
    ("grants.clocks", "true", |it| it.spec.grants.clocks = true),
    ("grants.random", "true", |it| it.spec.grants.random = true),
    ("limits.memory_bytes_max", "4_000_000", |it| it.spec.limits.memory_bytes_max = 4_000_000),
    ("limits.output_bytes_max", "5_000", |it| it.spec.limits.output_bytes_max = 5_000),
    ("limits.effects_max", "6", |it| it.spec.limits.effects_max = 6),
    ("limits.effect_bytes_max", "7_000", |it| it.spec.limits.effect_bytes_max = 7_000),
    ("limits.log_lines_max", "8", |it| it.spec.limits.log_lines_max = 8),
    ("limits.log_line_bytes_max", "900", |it| it.spec.limits.log_line_bytes_max = 900),
    ("limits.http_concurrent_max", "3", |it| it.spec.limits.http_concurrent_max = 3),
    ("limits.http_response_bytes_max", "4_000", |it| it.spec.limits.http_response_bytes_max = 4_000),
];

/// Keys of a subscription's retries.
const RETRY: [Key<RetryPolicy>; 7] = [
    ("schedule", "\"linear\"", |it| it.schedule = RetrySchedule::Linear),
    ("base", "\"3s\"", |it| it.base = Duration::from_secs(3)),
    ("factor", "3.5", |it| it.factor = 3.5),
    ("cap", "\"7m\"", |it| it.cap = Duration::from_secs(420)),
    ("jitter", "0.4", |it| it.jitter = 0.4),
    ("max_attempts", "5", |it| it.max_attempts = 5),
    ("max_elapsed", "\"2h\"", |it| it.max_elapsed = Some(Duration::from_secs(7200))),
];

/// Keys of the node.
const NODE: [Key<Config>; 12] = [
    ("node.name", "\"n\"", |it| it.node = Name::parse("n").unwrap()),
    ("node.poll_interval", "\"2s\"", |it| it.poll_interval = Duration::from_secs(2)),
    ("node.grace", "\"3s\"", |it| it.grace = Duration::from_secs(3)),
    ("node.sandbox_threads", "4", |it| it.sandbox_threads = Some(4)),
    ("sandbox.cache_dir", "\"c\"", |it| {
        it.cache_dir = Some("/etc/laneway/c".into());
        it.cache_dir_is_set = true;
    }),
    ("sandbox.instances_max", "5", |it| it.instances_max = 5),
    ("sandbox.memory_bytes_max", "6_000_000", |it| it.memory_bytes_max = 6_000_000),
    ("sandbox.compile_time_max", "\"5m\"", |it| it.compile_limits.time_max = Duration::from_secs(300)),
    ("sandbox.compile_memory_bytes_max", "1_000_000_000", |it| it.compile_limits.memory_bytes_max = 1_000_000_000),
    ("limits.payload_bytes_max", "7", |it| it.payload_bytes_max = 7),
    ("secrets.TOKEN", "{ file = \"t\" }", |it| {
        it.secrets.insert(Name::parse("TOKEN").unwrap(), SecretSource::File("/etc/laneway/t".into()));
    }),
    ("plugins.require_signatures", "[\"RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\"]", |it| {
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".to_owned();
        it.trusted_keys = Some(PublicKeys::parse(&[key]).unwrap());
    }),
];

const SCHEDULED: &str = "[[schedule]]\nname = \"s\"\ncron = \"@daily\"\ntopic = \"t\"\n";

/// Keys of a schedule that have a default.
const SCHEDULE: [Key<Schedule>; 8] = [
    ("time_zone", "\"Asia/Tokyo\"", |it| it.zone = TimeZone::get("Asia/Tokyo").unwrap()),
    ("missed", "\"all\"", |it| it.missed = Missed::All),
    ("payload", "\"[1]\"", |it| message(it).payload = "[1]".into()),
    ("content_type", "\"text/plain\"", |it| message(it).content_type = "text/plain".to_owned()),
    ("key", "\"k\"", |it| message(it).key = Some("k".to_owned())),
    ("tenant", "\"a\"", |it| message(it).tenant = Some("a".to_owned())),
    ("priority", "-50", |it| message(it).priority = Priority::LOW),
    ("headers", "{ a = \"b\" }", |it| {
        message(it).headers = vec![Header { name: "a".to_owned(), value: "b".to_owned() }];
    }),
];

fn message(it: &mut Schedule) -> &mut NewMessage {
    match &mut it.action {
        ScheduleAction::Enqueue(message) => message,
        ScheduleAction::Clean(policy) => panic!("{policy:?} enqueues nothing"),
    }
}

/// Keys of a cleanup.
const CLEANUP: [Key<Schedule>; 5] = [
    ("schedule", "\"@hourly\"", |it| it.cron = CronExpression::parse("@hourly").unwrap()),
    ("time_zone", "\"Asia/Tokyo\"", |it| it.zone = TimeZone::get("Asia/Tokyo").unwrap()),
    ("retention", "\"8d\"", |it| policy(it).retention = Duration::from_secs(8 * 86_400)),
    ("batch_size", "6", |it| policy(it).batch_size = 6),
    ("budget", "\"7m\"", |it| policy(it).budget = Duration::from_secs(420)),
];

fn policy(it: &mut Schedule) -> &mut CleanupPolicy {
    match &mut it.action {
        ScheduleAction::Clean(policy) => policy,
        ScheduleAction::Enqueue(message) => panic!("{message:?} cleans nothing"),
    }
}

/// The schedule of a name. A message's id, drawn anew each time, is left out.
fn schedule(text: &str, name: &str) -> Schedule {
    let mut found = config(text).schedules.all.into_iter().find(|it| it.name.as_str() == name).expect("declared");
    if let ScheduleAction::Enqueue(message) = &mut found.action {
        message.id = MessageId::parse("any").unwrap();
    }
    found
}

#[test]
fn each_key_of_a_schedule_changes_its_own_value() {
    for (key, value, change) in SCHEDULE {
        let mut wanted = schedule(SCHEDULED, "s");
        let before = wanted.clone();
        change(&mut wanted);
        assert_ne!(wanted, before, "{key} = {value} is the default");
        assert_eq!(schedule(&format!("{SCHEDULED}{key} = {value}"), "s"), wanted, "{key}");
    }
    let mut other = schedule(&SCHEDULED.replace("\"@daily\"", "\"@hourly\"").replace("\"t\"", "\"u\""), "s");
    assert_eq!(other.cron.as_str(), "@hourly");
    assert_eq!(message(&mut other).topic, Topic::parse("u").unwrap());
    let missed = |value: &str| schedule(&format!("{SCHEDULED}missed = \"{value}\""), "s").missed;
    assert_eq!(["skip", "one", "all"].map(missed), [Missed::Skip, Missed::One, Missed::All]);
}

#[test]
fn each_key_of_a_cleanup_changes_its_own_value() {
    // Dead letters are kept, unless they have a retention; and no longer than markers.
    let base = "[cleanup.dead_letters]\nretention = \"1d\"\n";
    for what in Cleanup::ALL {
        let name = format!("cleanup.{}", what.as_str());
        for (key, value, change) in CLEANUP {
            if what == Cleanup::DeadLetters && key == "retention" {
                continue;
            }
            let mut wanted = schedule(base, &name);
            assert_eq!(policy(&mut wanted).what, what);
            let before = wanted.clone();
            change(&mut wanted);
            assert_ne!(wanted, before, "{key} = {value} is the default");
            let text = match what {
                Cleanup::DeadLetters => format!("{base}{key} = {value}"),
                _ => format!("{base}[{name}]\n{key} = {value}"),
            };
            assert_eq!(schedule(&text, &name), wanted, "{name}.{key}");
        }
    }
}

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("/etc/laneway"), None).unwrap_or_else(|error| panic!("{text}: {error:#}"))
}

fn subscription(text: &str) -> SubscriptionConfig {
    config(&format!("[[subscription]]\n{text}")).subscriptions.remove(0)
}

/// All that a subscription's block decides.
fn told(it: &SubscriptionConfig) -> String {
    format!("{:#?} {:?} {:#?}", it.subscription, it.source, it.spec)
}

/// All that the other blocks decide.
fn told_of_node(it: &Config) -> String {
    let storage = match &it.storage {
        laneway_store::Storage::Sqlite(options) => format!("{options:?}"),
        laneway_store::Storage::Postgres(options) => options.url.clone(),
    };
    format!(
        "{storage} {} {:?} {:?} {:?} {:?} {} {} {} {:?} {} {:?} {:?}",
        it.node,
        it.poll_interval,
        it.grace,
        it.sandbox_threads,
        it.cache_dir,
        it.cache_dir_is_set,
        it.instances_max,
        it.memory_bytes_max,
        it.compile_limits,
        it.payload_bytes_max,
        it.secrets,
        it.trusted_keys
    )
}

#[test]
fn each_key_of_a_subscription_changes_its_own_value() {
    for (key, value, change) in SUBSCRIPTION {
        let mut wanted = subscription(HANDLER);
        let before = told(&wanted);
        change(&mut wanted);
        assert_ne!(told(&wanted), before, "{key} = {value} is the default");
        assert_eq!(told(&subscription(&format!("{HANDLER}{key} = {value}"))), told(&wanted), "{key}");
    }
}

#[test]
fn secrets_are_granted_by_name() {
    let text = format!("[secrets]\nT = {{ env = \"T\" }}\n[[subscription]]\n{HANDLER}grants.secrets = [\"T\"]");
    let it = config(&text).subscriptions.remove(0);
    assert_eq!(it.spec.grants.secrets, [Name::parse("T").unwrap()].into());
}

#[test]
fn some_keys_mean_something_else_to_a_publisher() {
    let of = |plugin: &str, key: &str| subscription(&format!("{plugin}{key}")).subscription;
    let batches = |plugin: &str| ["", "publish_batch = 9"].map(|key| of(plugin, key).publish_batch);
    assert_eq!((batches(HANDLER), batches(PUBLISHER)), ([1, 1], [1, 9]), "a handler takes one message at a time");
    let marked = |plugin: &str| ["", "idempotent = true"].map(|key| of(plugin, key).idempotent);
    assert_eq!((marked(HANDLER), marked(PUBLISHER)), ([true, true], [false, true]));
}

#[test]
fn a_breakers_pause_is_its_own_and_without_failures_there_is_no_breaker() {
    let of = |keys: &str| subscription(&format!("{HANDLER}breaker = {{ {keys} }}")).subscription.breaker;
    assert_eq!(of("pause = \"7s\""), None);
    let pause = Duration::from_secs(7);
    assert_eq!(of("failures = 2, pause = \"7s\""), Some(BreakerPolicy { failures: 2, pause }));
}

#[test]
fn name_topic_and_plugin_are_what_the_file_says() {
    let it = subscription(PUBLISHER);
    assert_eq!((it.subscription.name.as_str(), it.spec.name.as_str()), ("s", "s"));
    assert_eq!(it.subscription.pattern, TopicPattern::parse("t.>").unwrap());
    assert_eq!((it.subscription.kind, it.spec.kind), (SubscriptionKind::Publisher, SubscriptionKind::Publisher));
    assert_eq!(it.source, PluginSource::File("/etc/laneway/p.wasm".into()));
    let it = subscription(HANDLER);
    assert_eq!((it.subscription.kind, it.spec.kind), (SubscriptionKind::Handler, SubscriptionKind::Handler));
    assert_eq!(it.source, PluginSource::File("/etc/laneway/h.wasm".into()));
    let file = |text: &str| PluginSource::File(format!("/etc/laneway/{text}").into());
    let deployed = |text: &str| PluginSource::Deployed(Name::parse(text).unwrap());
    for (text, source) in
        [("h", deployed("h")), ("h.v2", deployed("h.v2")), ("./h", file("./h")), ("d/h", file("d/h"))]
    {
        let it = subscription(&format!("name = \"s\"\ntopic = \"t.>\"\nhandler = \"{text}\""));
        assert_eq!(it.source, source, "{text}");
    }
}

#[test]
fn each_key_of_the_retries_changes_its_own_value() {
    for (key, value, change) in RETRY {
        let mut wanted = RetryPolicy::default();
        change(&mut wanted);
        assert_ne!(wanted, RetryPolicy::default(), "{key} = {value} is the default");
        assert_eq!(subscription(&format!("{HANDLER}retry.{key} = {value}")).subscription.retry, wanted, "{key}");
    }
}

#[test]
fn each_schedule_is_the_one_of_its_name() {
    for (name, wanted) in [
        ("none", RetrySchedule::None),
        ("constant", RetrySchedule::Constant),
        ("linear", RetrySchedule::Linear),
        ("exponential", RetrySchedule::Exponential),
    ] {
        let found = subscription(&format!("{HANDLER}retry.schedule = \"{name}\"")).subscription.retry.schedule;
        assert_eq!(found, wanted, "{name}");
    }
}

#[test]
fn each_key_of_the_node_changes_its_own_value() {
    let named = "node.name = \"always-the-same\"\n";
    for (key, value, change) in NODE {
        let base = if key == "node.name" { "" } else { named };
        let mut wanted = config(base);
        let before = told_of_node(&wanted);
        change(&mut wanted);
        assert_ne!(told_of_node(&wanted), before, "{key} = {value} is the default");
        assert_eq!(told_of_node(&config(&format!("{base}{key} = {value}"))), told_of_node(&wanted), "{key}");
    }
    let found = config("storage.url = \"sqlite://other.db\"").storage;
    assert!(matches!(found, laneway_store::Storage::Sqlite(it) if it.path == Path::new("/etc/laneway/other.db")));
    assert_eq!(subscription(&format!("{HANDLER}[limits]\npayload_bytes_max = 7")).spec.payload_bytes_max, 7);
}

#[test]
fn no_key_of_the_reference_is_without_a_test() {
    let mut block = String::new();
    let mut keys = Vec::new();
    for line in REFERENCE.lines() {
        if let Some(header) = line.strip_prefix('[') {
            block = header.trim_matches(['[', ']']).to_owned();
        }
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            keys.push(format!("{block}.{key}"));
        }
    }
    let of = |block: &str, keys: &[&str]| keys.iter().map(|key| format!("{block}{key}")).collect::<Vec<_>>();
    let mut tested = of("", &["storage.url"]);
    tested.extend(of("", &NODE.map(|(key, ..)| key)));
    tested.extend(of("subscription.", &["name", "topic", "handler", "publisher", "publish_batch"]));
    tested.extend(of("subscription.", &["breaker.pause", "grants.secrets"]));
    tested.extend(of("subscription.", &SUBSCRIPTION.map(|(key, ..)| key)));
    tested.extend(of("subscription.retry.", &RETRY.map(|(key, ..)| key)));
    tested.extend(of("schedule.", &["name", "cron", "topic"]));
    tested.extend(of("schedule.", &SCHEDULE.map(|(key, ..)| key)));
    for what in Cleanup::ALL {
        tested.extend(of(&format!("cleanup.{}.", what.as_str()), &CLEANUP.map(|(key, ..)| key)));
    }
    let missing: Vec<_> = keys.iter().filter(|key| !tested.contains(key)).collect();
    assert!(keys.len() > 30 && missing.is_empty(), "{missing:?} of {keys:?}");
}
