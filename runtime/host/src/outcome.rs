//! What became of a call: the guest's own failures, and the reasons of those that the host ended.

use std::time::Duration;

use laneway_core::{ERROR_TEXT_BYTES_MAX, ErrorText, Failure, Reason};
use wasmtime::component::ResourceTableError;
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::bindings::laneway::plugin::types;
use crate::session::Session;
use crate::wait::Ended;

/// Most bytes of a backtrace that go into the error's text.
const BACKTRACE_BYTES_MAX: usize = 1500;
/// Most bytes of standard error that go into the error's text.
const LAST_WORDS_BYTES_MAX: usize = 1500;

/// A failure that the guest reported.
pub(crate) fn of_guest(failure: types::Failure) -> Failure {
    let parts = |detail: types::Detail| (Reason::of_guest(&detail.code), one_line(&detail.message));
    match failure {
        types::Failure::Retry(detail) => {
            let (reason, error) = parts(detail);
            Failure::Retry { reason, error }
        }
        types::Failure::Throttled(throttle) => Failure::Throttled {
            after: throttle.after_ms.map(Duration::from_millis),
            error: one_line(&throttle.message),
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

/// A failure that the host found in a guest that can reach the outside: what it was sending may be out already.
pub(crate) fn maybe_sent(failure: Failure) -> Failure {
    match failure {
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

/// Why a call did not begin. It counts as no attempt, and nothing of it can be out.
pub(crate) fn of_unbegun(ended: &Ended) -> Failure {
    if let Ended::Interrupted = ended {
        return Failure::Interrupted;
    }
    let error = "no plugin instance came free within the timeout; `instances_max` are in use";
    Failure::Throttled { after: None, error: ErrorText::new(error) }
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
            return Failure::Throttled { after: None, error: one_line(&ended.to_string()) };
        }
        Ended::State(_) => Reason::HOST,
        Ended::NoMessage => Reason::HOST,
    };
    of_host(reason, ended.to_string())
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
    match session.wasi.as_ref().and_then(|wasi| wasi.last_words(LAST_WORDS_BYTES_MAX)) {
        Some(words) => format!("{text}: {words}"),
        None => text,
    }
}

fn with_backtrace(text: &str, error: &wasmtime::Error) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else { return text.to_owned() };
    let backtrace = backtrace.to_string();
    let mut end = backtrace.len().min(BACKTRACE_BYTES_MAX);
    while !backtrace.is_char_boundary(end) {
        end -= 1;
    }
    let lines: Vec<&str> = backtrace[..end].lines().map(str::trim).collect();
    format!("{text}; {}", lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_guest_is_one_line_and_is_cut() {
        let text = one_line("no\n2026-01-01 ERROR forged\r\u{1b}[2J\u{2028}ä");
        assert_eq!(text.as_str(), r"no\n2026-01-01 ERROR forged\r\u{1b}[2J\u{2028}ä");
        let text = one_line(&"\n".repeat(1_000_000));
        assert!(text.as_str().len() <= ERROR_TEXT_BYTES_MAX && text.as_str().ends_with('…'));
    }
}
