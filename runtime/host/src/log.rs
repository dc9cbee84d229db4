//! Log lines of guests: with the plugin's and the message's name, limited in number and length.

use std::fmt::Write;

use crate::Limits;
use crate::bindings::laneway::plugin::log::{self, Level};
use crate::mock::LogLine;
use crate::session::{Facts, Session};
use crate::wait::Ended;

/// A dropped line costs at least this many bytes of the allowance: empty ones take time too.
const DROPPED_LINE_BYTES_MIN: usize = 100;

/// Log lines of one attempt.
#[derive(Default)]
pub(crate) struct Lines {
    written: u32,
    dropped: u64,
    dropped_bytes: usize,
}

impl Lines {
    /// Whether one more line may be written. Fails when too much was dropped already.
    fn admit(&mut self, bytes: usize, limits: &Limits) -> Result<bool, Ended> {
        if self.written < limits.log_lines_max {
            self.written += 1;
            return Ok(true);
        }
        self.dropped += 1;
        self.drop_bytes(bytes, limits)?;
        Ok(false)
    }

    /// Counts output that is not kept.
    pub(crate) fn drop_bytes(&mut self, bytes: usize, limits: &Limits) -> Result<(), Ended> {
        self.dropped_bytes = self.dropped_bytes.saturating_add(bytes.max(DROPPED_LINE_BYTES_MIN));
        if self.dropped_bytes > limits.log_flood_bytes_max {
            return Err(Ended::LogFlood(self.written));
        }
        Ok(())
    }

    /// Says how many lines are missing.
    pub(crate) fn close(&mut self, facts: &Facts, message_id: Option<&str>) {
        if self.dropped > 0 {
            let text = format!("{} further lines dropped", self.dropped);
            emit(facts, message_id, Level::Warn, &text, "");
            self.dropped = 0;
        }
    }
}

impl Session {
    /// Writes a line of the guest's, if there is room for it.
    pub(crate) fn write_line(
        &mut self,
        level: Level,
        message: &str,
        fields: &[(String, String)],
    ) -> Result<(), Ended> {
        let bytes = message.len() + fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if !self.lines.admit(bytes, &self.facts.limits)? {
            return Ok(());
        }
        if self.facts.mock.is_none() && !enabled(level) {
            return Ok(());
        }
        let max = self.facts.limits.log_line_bytes_max;
        let placeholders = &self.facts.placeholders;
        let text = clean(&placeholders.hide(message), max);
        let mut rest = String::new();
        for (name, value) in fields {
            if text.len() + rest.len() >= max {
                break;
            }
            let space = if rest.is_empty() { "" } else { " " };
            // Writing to a string has no way to fail.
            let _ = write!(
                rest,
                "{space}{}={}",
                clean(&placeholders.hide(name), max),
                clean(&placeholders.hide(value), max)
            );
        }
        let rest = clean(&rest, max.saturating_sub(text.len()));
        emit(&self.facts, self.message_id(), level, &text, &rest);
        Ok(())
    }
}

impl log::Host for Session {
    fn log(&mut self, level: Level, message: String, fields: Vec<(String, String)>) -> wasmtime::Result<()> {
        Ok(self.write_line(level, &message, &fields)?)
    }
}

/// Cuts a text at a character's edge and takes control characters out: a guest must not write lines in
/// another's name.
fn clean(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}

fn enabled(level: Level) -> bool {
    match level {
        Level::Trace => tracing::enabled!(target: "laneway::plugin", tracing::Level::TRACE),
        Level::Debug => tracing::enabled!(target: "laneway::plugin", tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(target: "laneway::plugin", tracing::Level::INFO),
        Level::Warn => tracing::enabled!(target: "laneway::plugin", tracing::Level::WARN),
        Level::Error => tracing::enabled!(target: "laneway::plugin", tracing::Level::ERROR),
    }
}

fn emit(facts: &Facts, message_id: Option<&str>, level: Level, text: &str, fields: &str) {
    if let Some(mock) = &facts.mock {
        return mock.log(LogLine { level: name(level), text: text.to_owned(), fields: fields.to_owned() });
    }
    let fields = (!fields.is_empty()).then_some(fields);
    // The level of an event is part of its call site.
    macro_rules! event {
        ($level:ident) => {
            tracing::event!(
                target: "laneway::plugin",
                tracing::Level::$level,
                subscription = %facts.name,
                // Of a canary, two versions log at the same time.
                plugin = %facts.digest,
                message_id,
                fields,
                "{text}"
            )
        };
    }
    match level {
        Level::Trace => event!(TRACE),
        Level::Debug => event!(DEBUG),
        Level::Info => event!(INFO),
        Level::Warn => event!(WARN),
        Level::Error => event!(ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_cleaned() {
        assert_eq!(clean("a\nb\u{1b}[31m", 100), "a b [31m");
        assert_eq!(clean("ää", 3), "ä");
    }

    #[test]
    fn lines_over_the_limit_are_dropped_and_a_flood_ends() {
        let limits = Limits { log_lines_max: 2, log_flood_bytes_max: 1_000, ..Limits::default() };
        let mut lines = Lines::default();
        assert!(lines.admit(10, &limits).unwrap());
        assert!(lines.admit(10, &limits).unwrap());
        for _ in 0..10 {
            assert!(!lines.admit(0, &limits).unwrap());
        }
        assert!(matches!(lines.admit(0, &limits), Err(Ended::LogFlood(2))));
    }
}
