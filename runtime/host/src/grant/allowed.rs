//! The meet of what a plugin's manifest asks for and what the operator grants. A denial says which line grants it.

use std::collections::BTreeMap;
use std::fmt::Display;

use hyper::Method;
use laneway_core::{Name, Topic};

use super::{Grants, HttpGrant, Reach};
use crate::PluginError;
use crate::manifest::{Asks, Manifest};
use crate::wait::Ended;

/// What one plugin may do.
pub(crate) struct Allowed {
    subscription: Name,
    grants: Grants,
    /// Of its manifest. Without one, it asks for whatever is granted.
    asks: Option<Asks>,
    /// Set, all is granted: nothing of it goes anywhere.
    mocked: Option<Mocked>,
}

/// What stands behind a plugin is a mock.
struct Mocked {
    /// Whether it may send requests, to wherever it likes.
    sends_http: bool,
}

impl Allowed {
    /// # Errors
    /// [`PluginError::Ungranted`] if the plugin cannot do without what it is not given: hosts, secrets, configuration.
    pub(crate) fn new(
        subscription: Name,
        grants: Grants,
        manifest: Option<Manifest>,
        config: &BTreeMap<String, String>,
    ) -> Result<Self, PluginError> {
        if let Some(manifest) = &manifest {
            let (missing, lines) = missing(&manifest.asks, &grants, config);
            if !missing.is_empty() {
                return Err(PluginError::Ungranted {
                    plugin: format!("{}@{}", manifest.name, manifest.version),
                    missing,
                    subscription,
                    lines,
                });
            }
        }
        Ok(Self { subscription, grants, asks: manifest.map(|manifest| manifest.asks), mocked: None })
    }

    /// All that the plugin asks for, with a mock behind it.
    pub(crate) fn anything(subscription: Name, manifest: Option<Manifest>, sends_http: bool) -> Self {
        let asks = manifest.map(|manifest| manifest.asks);
        Self { subscription, grants: Grants::default(), asks, mocked: Some(Mocked { sends_http }) }
    }

    /// Whether it may send requests at all; if not, what would let it.
    pub(crate) fn sends_http(&self) -> Result<(), &'static str> {
        if let Some(Mocked { sends_http: false }) = self.mocked {
            Err("it has no use for it")
        } else if self.mocked.is_none() && self.grants.http.is_empty() {
            Err("grants.http = [\"https://host\"], with the hosts that it may send requests to")
        } else if self.asks.as_ref().is_some_and(|asks| asks.http.is_empty()) {
            Err("\"http\" to the `asks` of its manifest: the configuration grants it already")
        } else {
            Ok(())
        }
    }

    pub(crate) fn http_grants(&self) -> &[HttpGrant] {
        &self.grants.http
    }

    /// How far a request may reach. The error says what is missing. `host` is in lower case, without brackets.
    pub(crate) fn request(&self, method: &Method, https: bool, host: &str, port: u16) -> Result<Reach, String> {
        let reach = |grant: &HttpGrant| grant.covers(https, host, port);
        let granted = match self.mocked {
            // It goes nowhere.
            Some(_) => Some(Reach::Public),
            None => self.grants.http.iter().filter(|grant| grant.allows(method)).filter_map(reach).max(),
        };
        let Some(granted) = granted else { return Err(self.ungranted_request(method, https, host, port)) };
        if let Some(asks) = &self.asks
            && !asks.http.iter().any(|ask| ask.covers(method, https, host, port))
        {
            return Err(
                "it is granted, but the plugin's manifest does not ask for it; add it to its `asks`, under \
                        \"http\", and pack the plugin again"
                    .to_owned(),
            );
        }
        Ok(granted)
    }

    fn ungranted_request(&self, method: &Method, https: bool, host: &str, port: u16) -> String {
        let mut written = Vec::with_capacity(self.grants.http.len() + 1);
        let mut mended = false;
        for grant in &self.grants.http {
            // The host is granted with other methods.
            if !mended && grant.covers(https, host, port).is_some() {
                mended = true;
                let wider = grant.clone().with_methods([method.as_str()]);
                written.push(wider.as_ref().unwrap_or(grant).written());
            } else {
                written.push(grant.written());
            }
        }
        if mended {
            return self.line("its method is not granted", "grants.http", &written);
        }
        let brackets = if host.contains(':') { ["[", "]"] } else { ["", ""] };
        let scheme = if https { "https" } else { "http" };
        let url = format!("{scheme}://{}{host}{}:{port}", brackets[0], brackets[1]);
        match url.parse::<HttpGrant>() {
            Ok(grant) => written.push(grant.written()),
            Err(error) => return format!("no grant can cover it: {error}"),
        }
        self.line("its host is not granted", "grants.http", &written)
    }

    /// The line that would grant addresses that are not public, and nothing else: the grants that cover the host keep
    /// their methods.
    pub(crate) fn private_line(&self, https: bool, host: &str, port: u16) -> String {
        let written = self.grants.http.iter().map(|grant| match grant.covers(https, host, port) {
            Some(_) => grant.clone().with_private(true).written(),
            None => grant.written(),
        });
        format!("grants.http = [{}]", written.collect::<Vec<_>>().join(", "))
    }

    /// Whether a handler may emit under a topic.
    pub(crate) fn emit(&self, topic: &Topic) -> Result<(), Ended> {
        if self.mocked.is_none() && !self.grants.emit.iter().any(|pattern| pattern.matches(topic)) {
            let patterns = self.grants.emit.iter().map(|pattern| pattern.as_str());
            let written: Vec<String> = patterns.chain([topic.as_str()]).map(|it| format!("\"{it}\"")).collect();
            let what = format!("emitting under the topic `{topic}` is not granted");
            return Err(Ended::Denied(self.line(&what, "grants.emit", &written)));
        }
        match &self.asks {
            Some(asks) if !asks.emit.iter().any(|pattern| pattern.matches(topic)) => {
                Err(unasked(&format!("emitting under the topic `{topic}`"), &format!("\"emit\": [\"{topic}\"]")))
            }
            _ => Ok(()),
        }
    }

    /// Whether a handler may touch its state.
    pub(crate) fn state(&self) -> Result<(), Ended> {
        self.switch("the state", "state", self.grants.state, |asks| asks.state)
    }

    /// Whether it may read the time of day.
    pub(crate) fn wall_clock(&self) -> Result<(), Ended> {
        self.switch("reading a clock", "clocks", self.grants.clocks, |asks| asks.clocks)
    }

    /// Whether it may read the time that has passed. Who may send requests can learn it from any server.
    pub(crate) fn monotonic_clock(&self) -> Result<(), Ended> {
        if self.sends_http().is_ok() { Ok(()) } else { self.wall_clock() }
    }

    /// Whether it may draw random numbers.
    pub(crate) fn random(&self) -> Result<(), Ended> {
        self.switch("drawing random numbers", "random", self.grants.random, |asks| asks.random)
    }

    /// Whether requests may carry a secret; if not, what would let them.
    pub(crate) fn secret(&self, name: &Name) -> Result<(), String> {
        if !self.grants.secrets.contains(name) {
            let names = self.grants.secrets.iter().chain([name]);
            let written: Vec<String> = names.map(|it| format!("\"{it}\"")).collect();
            return Err(self.line("it is not granted", "grants.secrets", &written));
        }
        match &self.asks {
            Some(asks) if !asks.secrets.iter().any(|ask| ask.covers(name)) => Err(format!(
                "it is granted, but the plugin's manifest does not ask for it; add to its `asks`: \
                 \"secrets\": [\"{name}\"]"
            )),
            _ => Ok(()),
        }
    }

    fn switch(&self, what: &str, key: &str, granted: bool, asked: fn(&Asks) -> bool) -> Result<(), Ended> {
        if self.mocked.is_none() && !granted {
            let subscription = &self.subscription;
            return Err(Ended::Denied(format!(
                "{what} is not granted; to grant it, write in the subscription `{subscription}`: grants.{key} = true"
            )));
        }
        match &self.asks {
            Some(asks) if !asked(asks) => Err(unasked(what, &format!("\"{key}\": true"))),
            _ => Ok(()),
        }
    }

    fn line(&self, what: &str, key: &str, values: &[String]) -> String {
        format!(
            "{what}; to grant it, write in the subscription `{}`: {key} = [{}]",
            self.subscription,
            values.join(", ")
        )
    }
}

fn unasked(what: &str, ask: &str) -> Ended {
    Ended::Denied(format!(
        "{what} is granted, but the plugin's manifest does not ask for it; add to its `asks`: {ask}"
    ))
}

/// What the manifest asks for and cannot do without, and is not given; with the lines that give it.
fn missing(asks: &Asks, grants: &Grants, config: &BTreeMap<String, String>) -> (Vec<String>, Vec<String>) {
    let (mut missing, mut lines) = (Vec::new(), Vec::new());
    let list = |values: Vec<String>| format!("[{}]", values.join(", "));
    let quoted = |value: &dyn Display| format!("\"{value}\"");

    let mut http: Vec<String> = grants.http.iter().map(HttpGrant::written).collect();
    let before = missing.len();
    for ask in asks.http.iter().filter(|ask| !ask.is_met_by(&grants.http)) {
        missing.push(format!("HTTP to {ask}"));
        http.push(ask.written());
    }
    if missing.len() > before {
        lines.push(format!("grants.http = {}", list(http)));
    }

    let mut secrets: Vec<String> = grants.secrets.iter().map(|name| quoted(name)).collect();
    let before = missing.len();
    for name in asks.secrets.iter().filter_map(|ask| ask.name()).filter(|name| !grants.secrets.contains(name)) {
        missing.push(format!("the secret `{name}`"));
        secrets.push(quoted(name));
    }
    if missing.len() > before {
        lines.push(format!("grants.secrets = {}", list(secrets)));
    }

    for key in asks.config.iter().filter(|key| !config.contains_key(*key)) {
        missing.push(format!("the configuration `{key}`"));
        lines.push(format!("config.{} = \"...\"", toml_key(key)));
    }
    (missing, lines)
}

/// A key as TOML takes it.
fn toml_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if bare { key.to_owned() } else { format!("{key:?}") }
}
