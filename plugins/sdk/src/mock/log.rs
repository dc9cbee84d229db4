//! Log lines, limited as the real host limits them.

use crate::log::Level;

use super::imports::Ended;

/// Lines of one call that are kept; the host's default.
const LINES_MAX: usize = 100;
/// Length of a line with its fields, in bytes; the rest is cut. The host's default.
const LINE_BYTES_MAX: usize = 8 << 10;
/// Dropped log that is put up with before the plugin is ended, in bytes; the host's default.
const FLOOD_BYTES_MAX: usize = 4 << 20;
/// A dropped line counts for at least this many bytes.
const DROPPED_LINE_BYTES_MIN: usize = 100;

/// A line that a plugin wrote to the host's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// How important it is.
    pub level: Level,
    /// The text.
    pub message: String,
    /// Named values beside the text, in order.
    pub fields: Vec<(String, String)>,
}

impl LogLine {
    /// Cut to the limit, with a space for each control character.
    pub(super) fn new(level: Level, message: &str, fields: &[(String, String)]) -> Self {
        let mut room = LINE_BYTES_MAX;
        let mut taken = |text: &str| {
            let taken = clean(text, room);
            room -= taken.len();
            taken
        };
        let message = taken(message);
        let fields = fields.iter().map(|(name, value)| (taken(name), taken(value)));
        Self { level, message, fields: fields.filter(|(name, _)| !name.is_empty()).collect() }
    }

    /// The value of a field, or `None`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Written to stderr, where a test that fails shows it.
    pub(super) fn show(&self) {
        let fields: String = self.fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        eprintln!("{:?}: {}{fields}", self.level, self.message);
    }
}

/// Cuts a text at a character's edge and takes control characters out.
fn clean(text: &str, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max);
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Lines of one call.
#[derive(Debug, Default)]
pub struct Lines {
    pub kept: Vec<LogLine>,
    /// Of the attempt that runs, without those of one that was run again.
    count: usize,
    dropped_bytes: usize,
}

impl Lines {
    /// The limits begin anew; what is kept stays.
    pub fn begin_attempt(&mut self) {
        (self.count, self.dropped_bytes) = (0, 0);
    }

    pub fn write(&mut self, level: Level, message: &str, fields: &[(String, String)]) -> Result<(), Ended> {
        if self.count < LINES_MAX {
            self.count += 1;
            let line = LogLine::new(level, message, fields);
            line.show();
            self.kept.push(line);
            return Ok(());
        }
        let bytes = message.len() + fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        self.dropped_bytes = self.dropped_bytes.saturating_add(bytes.max(DROPPED_LINE_BYTES_MIN));
        if self.dropped_bytes > FLOOD_BYTES_MAX {
            let message = format!("the plugin kept logging after {LINES_MAX} lines were taken");
            return Err(Ended { code: "log_limit", message });
        }
        Ok(())
    }
}
