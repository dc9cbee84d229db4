//! The functions that a guest imports, answered by the mock host of the current thread.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::session::Session;

thread_local! {
    /// The host that calls are answered by, while one runs a plugin.
    static CURRENT: RefCell<Option<Session>> = const { RefCell::new(None) };
}

/// Why the host ended the plugin: what the real one would make the failure of.
#[derive(Debug)]
pub struct Ended {
    pub code: &'static str,
    pub message: String,
}

/// Runs a call with this host on the thread. A panic goes on to the test, with the host as it was then.
pub fn within<T>(session: &mut Session, call: impl FnOnce() -> T) -> Result<T, Ended> {
    let outer = CURRENT.replace(Some(std::mem::take(session)));
    let done = catch_unwind(AssertUnwindSafe(call));
    if let Some(inner) = CURRENT.replace(outer) {
        *session = inner;
    }
    done.or_else(|panic: Box<dyn Any + Send>| match panic.downcast::<Ended>() {
        Ok(ended) => Err(*ended),
        Err(panic) => resume_unwind(panic),
    })
}

/// Asks the host of the thread; `None` if there is none.
fn try_ask<T>(question: impl FnOnce(&mut Session) -> Result<T, Ended>) -> Option<T> {
    let answer = CURRENT.with_borrow_mut(|current| current.as_mut().map(question))?;
    // Out of the borrow, past the plugin, without a word on stderr: it is no fault of the test.
    Some(answer.unwrap_or_else(|ended| resume_unwind(Box::new(ended))))
}

#[track_caller]
fn ask<T>(function: &str, question: impl FnOnce(&mut Session) -> Result<T, Ended>) -> T {
    try_ask(question).unwrap_or_else(|| {
        panic!("`{function}` has no host here; in a test, let `laneway_sdk::mock::MockHost` make the call")
    })
}

/// `laneway:plugin/log`.
pub mod log {
    use super::super::log::LogLine;
    use crate::log::Level;

    /// As in the contract. Where there is no host, the line is only shown.
    pub fn log(level: Level, message: &str, fields: &[(String, String)]) {
        let logged = super::try_ask(|session| session.log(level, message, fields));
        if logged.is_none() {
            LogLine::new(level, message, fields).show();
        }
    }
}

/// `laneway:plugin/config`.
pub mod config {
    /// As in the contract.
    #[track_caller]
    pub fn get(key: &str) -> Option<String> {
        super::ask("config.get", |session| Ok(session.config(key)))
    }
}

/// `laneway:plugin/effects`.
pub mod effects {
    use super::ask;
    use crate::Outgoing;
    use crate::bindings::laneway::plugin::effects::{EmitError, Entry};

    /// As in the contract.
    #[track_caller]
    pub fn get(key: &str) -> Option<Entry> {
        ask("effects.get", |session| session.get(key))
    }

    /// As in the contract.
    #[track_caller]
    pub fn put(key: &str, value: &[u8]) {
        ask("effects.put", |session| session.write(key, Some(value)));
    }

    /// As in the contract.
    #[track_caller]
    pub fn delete(key: &str) {
        ask("effects.delete", |session| session.write(key, None));
    }

    /// As in the contract.
    #[track_caller]
    pub fn add(counter: &str, delta: i64) {
        ask("effects.add", |session| session.add(counter, delta));
    }

    /// As in the contract.
    #[track_caller]
    pub fn count(counter: &str) -> i64 {
        ask("effects.count", |session| session.count(counter))
    }

    /// As in the contract.
    ///
    /// # Errors
    /// As in the contract.
    #[track_caller]
    pub fn emit(message: &Outgoing) -> Result<String, EmitError> {
        ask("effects.emit", |session| session.emit(message))
    }

    /// As in the contract.
    ///
    /// # Errors
    /// As in the contract.
    #[track_caller]
    pub fn annotate(metadata: &str) -> Result<(), String> {
        ask("effects.annotate", |session| session.annotate(metadata))
    }
}
