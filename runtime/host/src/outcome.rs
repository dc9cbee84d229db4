//! What became of a call: the guest's own failures, and the reasons of those that the host ended.

use std::fmt::Write;
use std::time::Duration;

use laneway_core::{ERROR_TEXT_BYTES_MAX, ErrorText, Failure, Reason};
use wasmtime::component::ResourceTableError;
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::bindings::laneway::plugin::types;
use crate::secret::Placeholders;
use crate::session::Session;
use crate::wait::Ended;

/// Pause before a message is tried again that failed for want of something of this node's own.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Most bytes of a backtrace that go into the error's text.
const BACKTRACE_BYTES_MAX: usize = 1500;
/// Most bytes of a function's name in a backtrace.
const FUNCTION_NAME_BYTES_MAX: usize = 120;
/// Most bytes of standard error that go into the error's text.
const LAST_WORDS_BYTES_MAX: usize = 1500;

/// A failure that the guest reported, without secrets. They are taken out before a text is cut: of one across the cut,
/// the beginning would stay.
pub(crate) fn of_guest(failure: types::Failure, placeholders: &Placeholders) -> Failure {
    let text = |text: &str| one_line(&placeholders.hide(text));
    let parts = |detail: types::Detail| (Reason::of_guest(&placeholders.hide(&detail.code)), text(&detail.message));
    match failure {
        types::Failure::Retry(detail) => {
            let (reason, error) = parts(detail);
            Failure::Retry { reason, error }
        }
        types::Failure::Throttled(throttle) => Failure::Throttled {
            after: throttle.after_ms.map(Duration::from_millis),
            error: text(&throttle.message),
        },
        types::Failure::Reject(detail) => {
            let (reason, error) = parts(detail);
            Failure::Reject { reason, error }
        }
        types::Failure::UnknownOutcome(detail) => {
            let (reason, error) = parts(detail);
            Failure::UnknownOutcome { reason, error }
        }
        types::Failure::Misconfigured(detail) => {
            let (reason, error) = parts(detail);
            Failure::Misconfigured { reason, error }
        }
    }
}

/// The host's own failure.
pub(crate) fn of_host(reason: Reason, error: impl AsRef<str>) -> Failure {
    Failure::Retry { reason, error: one_line(error.as_ref()) }
}

/// A text that may be a guest's, on one line with its control characters written out: in a log, it must not pass for
/// lines of others.
pub(crate) fn one_line(text: &str) -> ErrorText {
    let mut line = String::new();
    for c in text.chars() {
        // What is over the limit is cut by `ErrorText`, which marks the cut.
        if line.len() > ERROR_TEXT_BYTES_MAX {
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    ErrorText::new(line)
}

/// A failure that the host found in a guest that can reach the outside: what it was sending may be out already. If it has
/// sent a request for sure, nothing that the host found passes for an attempt that has not been.
pub(crate) fn maybe_sent(failure: Failure, has_sent: bool) -> Failure {
    match failure {
        Failure::Misconfigured { reason, error } if has_sent => Failure::UnknownOutcome { reason, error },
        Failure::Throttled { error, .. } if has_sent => Failure::UnknownOutcome { reason: Reason::HOST, error },
        Failure::Interrupted => Failure::UnknownOutcome {
            reason: Reason::INTERRUPTED,
            error: ErrorText::new("interrupted while the node was stopping"),
        },
        Failure::Retry { reason, error } if reason != Reason::INSTANTIATION => {
            Failure::UnknownOutcome { reason, error }
        }
        failure => failure,
    }
}

/// Adds to a failure what came of the requests that failed: the guest has an error code, and people need words.
pub(crate) fn with_requests(failure: Failure, failed: Option<&str>) -> Failure {
    let Some(failed) = failed else { return failure };
    let add = |error: ErrorText| one_line(&format!("{error}; failed requests: {failed}"));
    match failure {
        Failure::Retry { reason, error } => Failure::Retry { reason, error: add(error) },
        Failure::Throttled { after, error } => Failure::Throttled { after, error: add(error) },
        Failure::Reject { reason, error } => Failure::Reject { reason, error: add(error) },
        Failure::UnknownOutcome { reason, error } => Failure::UnknownOutcome { reason, error: add(error) },
        Failure::Misconfigured { reason, error } => Failure::Misconfigured { reason, error: add(error) },
        failure @ (Failure::Interrupted | Failure::Stale) => failure,
    }
}

/// Why a call did not begin. It counts as no attempt, and nothing of it can be out.
pub(crate) fn of_unbegun(ended: &Ended) -> Failure {
    if let Ended::Interrupted = ended {
        return Failure::Interrupted;
    }
    let error = "no plugin instance came free within the timeout: all that the subscription may have of \
                 `sandbox.instances_max` are in use; raise that, or see why its messages take so long";
    Failure::Throttled { after: Some(BUSY_PAUSE), error: ErrorText::new(error) }
}

/// Why the host ended the guest, or did not let it go on.
pub(crate) fn of_ended(ended: &Ended) -> Failure {
    let reason = match ended {
        Ended::Interrupted => return Failure::Interrupted,
        Ended::Stale => return Failure::Stale,
        Ended::Timeout => Reason::TIMEOUT,
        Ended::EffectLimit(_) => Reason::EFFECT_LIMIT,
        Ended::LogFlood(_) => Reason::LOG_LIMIT,
        // The database's trouble is not the message's: wait for it, and count no attempt.
        Ended::State(error) if error.transient => {
            return Failure::Throttled { after: Some(BUSY_PAUSE), error: one_line(&ended.to_string()) };
        }
        Ended::Denied(text) => {
            return Failure::Misconfigured { reason: Reason::DENIED, error: one_line(text) };
        }
        Ended::State(_) => Reason::HOST,
        // The guest calls what is not there at that time.
        Ended::NoMessage => Reason::TRAP,
    };
    of_host(reason, ended.to_string())
}

/// Whether what earlier calls left behind in the instance may be why the host ended this one. A timeout is none of these:
/// the time is spent.
pub(crate) fn may_be_of_earlier_calls(failure: &Failure) -> bool {
    let Failure::Retry { reason, .. } = failure else { return false };
    [
        Reason::MEMORY_LIMIT,
        Reason::TABLE_LIMIT,
        Reason::RESOURCE_LIMIT,
        Reason::OUTPUT_LIMIT,
        Reason::EFFECT_LIMIT,
        Reason::LOG_LIMIT,
        Reason::STACK_OVERFLOW,
        Reason::PANIC,
        Reason::TRAP,
    ]
    .contains(reason)
}

/// A call that came to no answer.
pub(crate) fn of_error(error: &wasmtime::Error, session: &Session, instantiated: bool) -> Failure {
    if let Some(ended) = error.downcast_ref::<Ended>() {
        return of_ended(ended);
    }
    let trap = error.downcast_ref::<Trap>().copied();
    if trap == Some(Trap::StackOverflow) {
        return of_host(Reason::STACK_OVERFLOW, with_backtrace("the guest's calls went too deep", error));
    }
    if let Some(refused) = session.meter.refused() {
        return of_host(refused.reason(), with_backtrace(&refused.to_string(), error));
    }
    let text = root(error);
    if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) || text.contains(HANDLES) {
        return of_host(Reason::RESOURCE_LIMIT, with_backtrace(&text, error));
    }
    if text.contains(HOSTCALL_FUEL) {
        let max = session.facts.limits.output_bytes_max;
        return of_host(Reason::OUTPUT_LIMIT, format!("the guest handed over more than {max} bytes in one call"));
    }
    if let Some(trap) = trap {
        let reason = if trap == Trap::UnreachableCodeReached { Reason::PANIC } else { Reason::TRAP };
        return of_host(reason, with_backtrace(&with_last_words(trap.to_string(), session), error));
    }
    if let Some(I32Exit(status)) = error.downcast_ref() {
        let text = with_last_words(format!("the guest exited with status {status}"), session);
        return of_host(Reason::PANIC, text);
    }
    // What is left is a guest that breaks the rules of its interfaces: a pointer out of bounds, a text that is
    // none.
    let reason = if instantiated { Reason::TRAP } else { Reason::INSTANTIATION };
    of_host(reason, with_backtrace(&text, error))
}

/// The engine's errors for these two limits have no public type; tests hold that the texts are still theirs.
const HOSTCALL_FUEL: &str = "fuel allocated for hostcalls has been exhausted";
const HANDLES: &str = "store handle limit exceeded";

fn root(error: &wasmtime::Error) -> String {
    error.root_cause().to_string()
}

fn with_last_words(text: String, session: &Session) -> String {
    let placeholders = &session.facts.placeholders;
    match session.wasi.as_ref().and_then(|wasi| wasi.last_words(LAST_WORDS_BYTES_MAX, placeholders)) {
        Some(words) => format!("{text}: {words}"),
        None => text,
    }
}

/// Adds where the guest was. The backtrace's own `Display` is not used: it unfolds names of C++ without a limit, and
/// a hundred bytes of a hostile name stand for gigabytes.
fn with_backtrace(text: &str, error: &wasmtime::Error) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else { return text.to_owned() };
    let mut lines = format!("{text}; wasm backtrace");
    let end = lines.len() + BACKTRACE_BYTES_MAX;
    for frame in backtrace.frames() {
        lines.push_str("; ");
        if let Some(offset) = frame.module_offset() {
            lines.push_str(&format!("{offset:#x} "));
        }
        match frame.func_name() {
            Some(name) => lines.push_str(&function(name)),
            None => lines.push_str(&format!("function {}", frame.func_index())),
        }
        if lines.len() > end {
            lines.push('…');
            break;
        }
    }
    lines
}

/// A function's name as its source has it, if that was Rust, and its beginning if it is long.
fn function(name: &str) -> String {
    let mut short = Short(String::new());
    // It fails once there is no more room, and that ends the demangling too.
    let _ = match rustc_demangle::try_demangle(name) {
        Ok(name) => write!(short, "{name:#}"),
        Err(_) => short.write_str(name),
    };
    short.0
}

/// Text that ends at its limit.
struct Short(String);

impl Write for Short {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = FUNCTION_NAME_BYTES_MAX.saturating_sub(self.0.len());
        let mut end = text.len().min(room);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.0.push_str(&text[..end]);
        if end < text.len() { Err(std::fmt::Error) } else { Ok(()) }
    }
}

/// What a panic says.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_named_as_in_its_source_and_in_short() {
        assert_eq!(function("_ZN3foo3barE"), "foo::bar");
        assert_eq!(function("plain"), "plain");
        assert_eq!(function(&"ä".repeat(10_000)).len(), FUNCTION_NAME_BYTES_MAX);
        assert_eq!(function(&format!("_RNv{}1f", "C1a".repeat(100))).len(), FUNCTION_NAME_BYTES_MAX);
    }

    #[test]
    fn what_the_host_finds_after_a_request_is_sent_is_no_attempt_that_has_not_been() {
        let error = ErrorText::new("x");
        let denied = || Failure::Misconfigured { reason: Reason::DENIED, error: error.clone() };
        let busy = || Failure::Throttled { after: None, error: error.clone() };
        for failure in [denied(), busy()] {
            assert_eq!(maybe_sent(failure.clone(), false), failure, "nothing is out: it counts as no attempt");
        }
        let unknown = |reason| Failure::UnknownOutcome { reason, error: error.clone() };
        assert_eq!(maybe_sent(denied(), true), unknown(Reason::DENIED));
        assert_eq!(maybe_sent(busy(), true), unknown(Reason::HOST));
    }

    #[test]
    fn a_text_of_a_guest_is_one_line_and_is_cut() {
        let text = one_line("no\n2026-01-01 ERROR forged\r\u{1b}[2J\u{2028}ä");
        assert_eq!(text.as_str(), r"no\n2026-01-01 ERROR forged\r\u{1b}[2J\u{2028}ä");
        let text = one_line(&"\n".repeat(1_000_000));
        assert!(text.as_str().len() <= ERROR_TEXT_BYTES_MAX && text.as_str().ends_with('…'));
    }
}
