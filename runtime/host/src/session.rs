//! What the host holds for one guest instance while it runs: the data of its store.

use std::collections::BTreeMap;
use std::sync::Arc;

use laneway_core::{Effects, Message, Name, PluginDigest, StateView, SubscriptionKind};
use wasmtime::component::ResourceTable;

use crate::Limits;
use crate::bindings::laneway::plugin::{config, types};
use crate::effects::Buffer;
use crate::grant::Allowed;
use crate::http::Access;
use crate::log::Lines;
use crate::meter::Meter;
use crate::mock::Mock;
use crate::secret::Placeholders;
use crate::wait::Bounds;
use crate::wasi::Wasi;

/// What stays the same for all calls of a plugin.
pub(crate) struct Facts {
    pub(crate) name: Name,
    pub(crate) digest: PluginDigest,
    pub(crate) kind: SubscriptionKind,
    /// With placeholders where the operator's names secrets.
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) limits: Limits,
    pub(crate) payload_bytes_max: u64,
    pub(crate) allowed: Arc<Allowed>,
    pub(crate) placeholders: Arc<Placeholders>,
    pub(crate) http: Option<Arc<Access>>,
    /// Takes log lines in place of the node's log.
    pub(crate) mock: Option<Arc<dyn Mock>>,
}

/// What an instance holds of what its limits are for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Held {
    memory_bytes: usize,
    table_elements: usize,
    resources: usize,
    requests: usize,
}

impl Held {
    /// Whether enough is free for another message. Of memory and tables that is half of what was free after the first one:
    /// what a language's runtime takes at its start is no sign of growth, however much of the limit it is.
    pub(crate) fn leaves_room(self, after_first: Self, limits: &Limits) -> bool {
        let half_way = |first: usize, max: usize| first + max.saturating_sub(first) / 2;
        self.memory_bytes <= half_way(after_first.memory_bytes, limits.memory_bytes_max)
            && self.table_elements <= half_way(after_first.table_elements, limits.table_elements_max)
            && self.resources <= limits.resources_max / 2
            && self.requests <= limits.http_concurrent_max / 2
    }
}

/// The message that a handler's instance is at work on.
pub(crate) struct Subject {
    pub(crate) message: Arc<Message>,
    pub(crate) state: Arc<dyn StateView>,
}

/// The store's data.
pub(crate) struct Session {
    pub(crate) facts: Arc<Facts>,
    /// None for a publisher's batch, and while a configuration is checked.
    pub(crate) subject: Option<Subject>,
    pub(crate) bounds: Bounds,
    pub(crate) meter: Meter,
    pub(crate) lines: Lines,
    pub(crate) effects: Buffer,
    pub(crate) table: ResourceTable,
    /// Made when the guest first touches WASI, as many never do.
    pub(crate) wasi: Option<Box<Wasi>>,
}

impl Session {
    pub(crate) fn new(facts: Arc<Facts>, subject: Option<Subject>, bounds: Bounds) -> Self {
        let meter = Meter::new(facts.limits.memory_bytes_max, facts.limits.table_elements_max);
        let mut table = ResourceTable::new();
        table.set_max_capacity(facts.limits.resources_max);
        Self {
            facts,
            subject,
            bounds,
            meter,
            lines: Lines::default(),
            effects: Buffer::default(),
            table,
            wasi: None,
        }
    }

    /// Gets an instance that is used again ready for its next call.
    pub(crate) fn renew(&mut self, subject: Option<Subject>, bounds: Bounds) {
        if let Some(wasi) = &mut self.wasi {
            wasi.renew(bounds.deadline);
        }
        self.subject = subject;
        self.bounds = bounds;
        self.meter.reset();
        self.lines = Lines::default();
        self.effects = Buffer::default();
    }

    /// Whether the attempt may have had an effect outside: it has sent a request.
    pub(crate) fn has_sent(&self) -> bool {
        self.wasi.as_ref().is_some_and(|wasi| wasi.has_sent())
    }

    /// What came of HTTP requests that failed, in words.
    pub(crate) fn failed_requests(&self) -> Option<String> {
        self.wasi.as_ref().and_then(|wasi| wasi.failed_requests())
    }

    /// What calls have left behind in the instance.
    pub(crate) fn held(&mut self) -> Held {
        Held {
            memory_bytes: self.meter.memory_bytes(),
            table_elements: self.meter.table_elements(),
            resources: self.table.iter_mut().count(),
            requests: self.wasi.as_ref().map_or(0, |wasi| wasi.requests()),
        }
    }

    /// Ends a call: writes what is left to log, lets go of the message and hands out its effects.
    pub(crate) fn finish(&mut self, success: bool) -> Effects {
        if let Some(wasi) = &self.wasi {
            wasi.close();
            for (level, text) in wasi.take_lines() {
                // Over the limit it is dropped; an attempt that is over is not failed for it.
                drop(self.write_line(level, &text, &[]));
            }
        }
        let message_id = self.subject.as_ref().map(|subject| subject.message.id.as_str());
        self.lines.close(&self.facts, message_id);
        let effects = std::mem::take(&mut self.effects).into_effects(success);
        self.subject = None;
        effects
    }

    pub(crate) fn message_id(&self) -> Option<&str> {
        self.subject.as_ref().map(|subject| subject.message.id.as_str())
    }

    /// WASI's part, made now if it was not before.
    pub(crate) fn wasi(&mut self) -> (&mut Wasi, &mut ResourceTable) {
        let Self { facts, bounds, wasi, table, .. } = self;
        (wasi.get_or_insert_with(|| Box::new(Wasi::new(facts, bounds.deadline))), table)
    }
}

impl types::Host for Session {}

impl config::Host for Session {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.facts.config.get(&key).cloned())
    }
}
