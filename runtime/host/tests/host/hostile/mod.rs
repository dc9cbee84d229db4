//! The hostile corpus: components that do harm, each with the way in which it has to end.
//!
//! Each file has those of one theme. A guest may end only itself: with a reason of its own, within its time, and
//! without a trace in the host's memory.

mod answers;
mod calls;
mod code;
mod cpu;
mod memory;
mod requests;
mod run;
mod traps;

use laneway_core::{SubscriptionKind, TopicPattern};
use laneway_host::{Grants, Limits, PluginSpec};

use crate::guest::Guest;
use crate::support::spec;

/// How a hostile component has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Not accepted; the text is part of the error.
    Refused(&'static str),
    /// Its check of the configuration fails with this reason.
    Validate(&'static str),
    /// Its attempt fails with this reason.
    Reason(&'static str),
    /// It does no harm, and succeeds.
    Well,
}

/// One component of the corpus.
pub struct Hostile {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub ends: Ends,
    kind: SubscriptionKind,
    http: bool,
    limits: Limits,
}

impl Hostile {
    pub fn new(name: &'static str, guest: &Guest, ends: Ends) -> Self {
        Self::raw(name, guest.build(), ends)
    }

    pub fn raw(name: &'static str, bytes: Vec<u8>, ends: Ends) -> Self {
        let limits = Limits { validate_timeout: ends.time(), ..Limits::default() };
        Self { name, bytes, ends, kind: SubscriptionKind::Handler, http: false, limits }
    }

    /// A component that is written out, whatever world it is of.
    pub fn component(name: &'static str, text: &str, ends: Ends) -> Self {
        Self::raw(name, wat::parse_str(text).expect("the component's text is well formed"), ends)
    }

    /// A component of no world around a core module: enough for what is found before anybody asks for the world.
    pub fn module(name: &'static str, fields: &str, ends: Ends) -> Self {
        Self::component(name, &format!("(component (core module {fields}))"), ends)
    }

    pub fn publisher(mut self) -> Self {
        self.kind = SubscriptionKind::Publisher;
        self
    }

    pub fn with_http(mut self) -> Self {
        self.http = true;
        self
    }

    pub fn memory(mut self, bytes_max: usize) -> Self {
        self.limits.memory_bytes_max = bytes_max;
        self
    }

    pub fn spec(&self) -> PluginSpec {
        let http = if self.http { vec!["http://127.0.0.1:9".parse().unwrap()] } else { Vec::new() };
        // What is denied would end before it did any harm.
        let emit = vec![TopicPattern::parse(">").unwrap()];
        let grants = Grants { http, emit, clocks: true, random: true, ..Grants::default() };
        PluginSpec { grants, limits: self.limits.clone(), ..spec(self.kind) }
    }
}

/// All of it, cheap to compile.
pub fn corpus() -> Vec<Hostile> {
    [cpu::corpus(), memory::corpus(), traps::corpus(), answers::corpus(), calls::corpus(), requests::corpus()]
        .into_iter()
        .flatten()
        .collect()
}
