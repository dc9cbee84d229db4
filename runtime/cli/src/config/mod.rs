//! `laneway.toml`: read, checked, and turned into what the crates take. Only this crate reads configuration.

mod file;
#[cfg(test)]
mod keys;
pub mod schedules;
pub mod secrets;
mod suggest;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use laneway_core::{Name, RetryPolicy, Subscription, Topology};
use laneway_host::{PluginSpec, PublicKeys};
use laneway_store::Storage;

use crate::compiler::CompileLimits;

pub use file::{PAYLOAD_BYTES_MAX, REFERENCE, default_cache_dir, duration_argument, host};

/// A checked configuration.
pub struct Config {
    /// Where messages are.
    pub storage: Storage,
    /// This node's name.
    pub node: Name,
    /// Longest time between two looks for due messages.
    pub poll_interval: Duration,
    /// How long running messages may finish at a stop.
    pub grace: Duration,
    /// Threads that run plugins; `None` is one for each processor.
    pub sandbox_threads: Option<usize>,
    /// Where compiled plugins are kept, if anywhere.
    pub cache_dir: Option<PathBuf>,
    /// Whether the file says so. A default that cannot be used is done without.
    pub cache_dir_is_set: bool,
    /// Plugin instances that may exist at once.
    pub instances_max: u32,
    /// Largest memory that any plugin may be given, in bytes.
    pub memory_bytes_max: usize,
    /// What compiling one plugin may take.
    pub compile_limits: CompileLimits,
    /// Largest payload, in bytes.
    pub payload_bytes_max: u32,
    /// Where the node's secrets come from, by name.
    pub secrets: BTreeMap<Name, secrets::SecretSource>,
    /// Keys of which one must have signed a plugin; `None` runs plugins without a signature too.
    pub trusted_keys: Option<PublicKeys>,
    /// The subscriptions with their plugins.
    pub subscriptions: Vec<SubscriptionConfig>,
    /// What is done at which times.
    pub schedules: schedules::Schedules,
}

/// A subscription with the plugin that it runs.
pub struct SubscriptionConfig {
    /// Its declaration.
    pub subscription: Subscription,
    /// Its retries as the first release reads the file: the topology's text has these.
    pub declared_retry: RetryPolicy,
    /// Where its component comes from.
    pub source: PluginSource,
    /// How the component is run.
    pub spec: PluginSpec,
}

/// Where a subscription's component comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginSource {
    /// From this file, when the node starts.
    File(PathBuf),
    /// From the database: whatever version of the plugin of this name is deployed.
    Deployed(Name),
}

impl SubscriptionConfig {
    /// The subscription as the first release reads the file.
    #[must_use]
    pub fn declared(&self) -> Subscription {
        Subscription { retry: self.declared_retry.clone(), ..self.subscription.clone() }
    }
}

impl Config {
    /// Reads a file. `storage` comes before the file's own address.
    ///
    /// # Errors
    /// Names the file, the key and what is wrong with it.
    pub fn load(path: &Path, storage: Option<&Storage>) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("failed to read the configuration {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder, storage).with_context(|| format!("configuration {}", path.display()))
    }

    /// Reads a text, with paths relative to `folder`.
    ///
    /// # Errors
    /// Names the key and what is wrong with it.
    pub fn parse(text: &str, folder: &Path, storage: Option<&Storage>) -> Result<Self> {
        let file: file::File = toml::from_str(text).map_err(|error| suggest::improve(&error))?;
        file.check(folder, storage)
    }

    /// The topology that this configuration declares.
    #[must_use]
    pub fn topology(&self) -> Topology {
        Topology {
            subscriptions: self.subscriptions.iter().map(SubscriptionConfig::declared).collect(),
            payload_bytes_max: self.payload_bytes_max,
        }
    }

    /// Messages that this node runs at once, by subscription.
    #[must_use]
    pub fn concurrency(&self) -> BTreeMap<Name, u32> {
        self.subscriptions.iter().map(|s| (s.subscription.name.clone(), s.subscription.concurrency)).collect()
    }

    /// What to know of a node on which not all subscriptions can have as many instances at once as they may run messages.
    #[must_use]
    pub fn crowded(&self) -> Option<String> {
        let wanted: u64 = self.concurrency().values().map(|&wants| u64::from(wants)).sum();
        (wanted > u64::from(self.instances_max)).then(|| {
            format!(
                "the `concurrency` of the {} subscriptions adds up to {wanted}, and sandbox.instances_max is {}: each has \
                 instances of its own, but while many are busy at once, some run fewer messages than they may; raise \
                 sandbox.instances_max, or lower `concurrency` where fewer do",
                self.subscriptions.len(),
                self.instances_max
            )
        })
    }
}

/// The storage of a command: from `--storage`, else from the configuration.
///
/// # Errors
/// Neither is given, or the configuration cannot be read.
pub fn storage(given: Option<&Storage>, config: &Path) -> Result<Storage> {
    match given {
        Some(storage) => Ok(storage.clone()),
        None if config.exists() => Ok(Config::load(config, None)?.storage),
        None => bail!(
            "no storage: {} does not exist; give --storage URL, set LANEWAY_STORAGE_URL, or name a file with --config",
            config.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/etc/laneway"), None)
    }

    #[test]
    fn a_node_says_when_the_concurrency_of_all_is_more_than_the_instances() {
        let subscriptions = |count: u32| {
            let block = |n| format!("[[subscription]]\nname = \"s{n}\"\ntopic = \"a\"\nhandler = \"a.wasm\"\n");
            parse(&(0..count).map(block).collect::<String>()).unwrap()
        };
        assert_eq!(subscriptions(32).crowded(), None, "32 times 8 are 256");
        let crowded = subscriptions(33).crowded().unwrap();
        assert!(crowded.contains("adds up to 264, and sandbox.instances_max is 256"), "{crowded}");
        assert_eq!(subscriptions(33).concurrency().len(), 33);
    }

    fn error(text: &str) -> String {
        match parse(text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => format!("{error:#}"),
        }
    }

    const MINIMAL: &str = r#"
        [[subscription]]
        name = "s"
        topic = "orders.>"
        handler = "s.wasm"
    "#;

    #[test]
    fn the_reference_holds_the_defaults() {
        let reference = parse(REFERENCE).unwrap();
        let defaults = parse(MINIMAL).unwrap();
        assert_eq!(reference.poll_interval, defaults.poll_interval);
        assert_eq!(reference.grace, defaults.grace);
        assert_eq!(reference.instances_max, defaults.instances_max);
        assert_eq!(reference.memory_bytes_max, defaults.memory_bytes_max);
        assert_eq!(reference.compile_limits, defaults.compile_limits);
        assert_eq!(reference.payload_bytes_max, defaults.payload_bytes_max);
        assert_eq!((&reference.trusted_keys, &defaults.trusted_keys), (&None, &None));
        let mut example = reference.subscriptions[0].subscription.clone();
        example.name = defaults.subscriptions[0].subscription.name.clone();
        assert_eq!(example, defaults.subscriptions[0].subscription);
        assert_eq!(reference.subscriptions[0].spec.limits, defaults.subscriptions[0].spec.limits);
    }

    #[test]
    fn a_file_makes_the_topology_that_it_made_in_the_first_release() {
        let text = parse(MINIMAL).unwrap().topology().canonical();
        let wanted = r#"{"subscriptions":[{"name":"s","pattern":"orders.>","kind":"handler","lane_threshold":0,"ordering":"none","idempotent":true,"retry":{"schedule":"exponential","base":{"secs":1,"nanos":0},"factor":2.0,"cap":{"secs":900,"nanos":0},"jitter":0.2,"max_attempts":10,"max_elapsed":null},"lease":{"secs":30,"nanos":0},"timeout":{"secs":30,"nanos":0},"concurrency":8,"claim_batch":512,"publish_batch":1,"review_unknown_outcome":false,"backfill_min_share":0.0,"rate_limit":null,"cluster_concurrency":null,"destination":null,"breaker":null}],"payload_bytes_max":1048576}"#;
        assert_eq!(text, wanted);
        let more = format!("{MINIMAL}throttle_max = \"5m\"\nretry = {{ cap = \"20m\", max_attempts = 12 }}");
        let text = parse(&more).unwrap().topology().canonical();
        for wants in [r#""cap":{"secs":1200,"#, r#""max_attempts":12,"#, r#""throttle_max":{"secs":300,"#] {
            assert!(text.contains(wants), "{text}");
        }
    }

    #[test]
    fn every_key_of_the_reference_is_known() {
        // Uncomment the examples too.
        let text: String = REFERENCE
            .lines()
            .filter(|line| !line.starts_with("# publisher"))
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") && !rest.contains(". ") && !rest.starts_with('"') => {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        for key in ["max_elapsed", "sandbox_threads", "cache_dir", "require_signatures", "idempotent"] {
            assert!(text.contains(&format!("\n{key} = ")), "{key}");
        }
        let config = parse(&text).unwrap();
        assert_eq!(config.subscriptions[0].subscription.retry.max_elapsed, Some(Duration::from_secs(86_400)));
        assert_eq!(config.node.as_str(), "node-1");
        assert_eq!(config.cache_dir.as_deref(), Some(Path::new("/etc/laneway/cache")));
    }

    #[test]
    fn unknown_keys_come_with_a_suggestion() {
        let error = error(&format!("{MINIMAL}\nconcurency = 4"));
        assert!(error.contains("unknown field `concurency`"), "{error}");
        assert!(error.contains("did you mean `concurrency`?"), "{error}");
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (text, wants) in [
            ("name = \"s s\"\ntopic = \"a\"\nhandler = \"h\"", "contains ' '"),
            ("name = \"s\"\ntopic = \"a..b\"\nhandler = \"h\"", "empty segment"),
            ("name = \"s\"\ntopic = \"a\"", "neither `handler` nor `publisher`"),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\npublisher = \"p\"", "both `handler` and `publisher`"),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\nlease = \"soon\"", "lease"),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\nlease = \"10ms\"", "lease"),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\nconcurrency = 0", "concurrency"),
            (
                "name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\nconcurrency = 257",
                "concurrency is 257, over sandbox.instances_max, which is 256",
            ),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\nretry = { max_attempts = 0 }", "max_attempts"),
            (
                "name = \"s\"\ntopic = \"a\"\npublisher = \"h\"\ngrants = { http = [\"nonsense\"] }",
                "HTTP grant `nonsense`",
            ),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\nlimits = { memory_bytes_max = 999999999 }", "memory"),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\nlimits = { http_concurrent_max = 0 }", "between 1 and"),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\ngrants = { emit = [\"a.>.b\"] }", "before its end"),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\ngrants = { emits = [\"a\"] }", "did you mean `emit`"),
            ("name = \"s\"\ntopic = \"a\"\nhandler = \"h\"\ngrants = { secrets = [\"T\"] }", "T = { env = \"T\" }"),
        ] {
            let error = error(&format!("[[subscription]]\n{text}"));
            assert!(error.contains(wants), "{text}: {error}");
        }
        let keys = error("[plugins]\nrequire_signatures = []");
        assert!(keys.contains("plugins.require_signatures") && keys.contains("at least one"), "{keys}");
        let keys = error("[plugins]\nrequire_signatures = [\"not a key\"]");
        assert!(keys.contains("key 1 is no minisign public key") && !keys.contains("not a key"), "{keys}");
        let of = |name: &str, failures: u32| {
            format!(
                "[[subscription]]\nname = \"{name}\"\ntopic = \"t.>\"\nhandler = \"h.wasm\"\n\
                 destination = \"crm\"\nbreaker.failures = {failures}\n"
            )
        };
        let differ = error(&format!("{}{}", of("a", 3), of("b", 4)));
        assert!(differ.contains("`a` and `b`") && differ.contains("different breakers"), "{differ}");
        let twice = error(&format!("{MINIMAL}{MINIMAL}"));
        assert!(twice.contains("declared twice"), "{twice}");
        assert!(error("[storage]\nurl = \"mysql://x\"").contains("unknown scheme"));
    }
}
