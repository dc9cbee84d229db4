//! The line that makes a plugin of a function, and what stands between the two. Only the macros are for use.

use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bindings::laneway::plugin::types;
use crate::log::{Level, log};
use crate::{Attempt, Context, Failure, Item, Message, Payload, Receipt};

/// Makes a handler of a function `fn(impl Payload, &Context) -> Result<(), Failure>`.
///
/// With `validate = check` the configuration is checked when the plugin is deployed, by
/// `fn check() -> Result<(), Vec<String>>`, whose errors are shown to the operator.
///
/// ```
/// use laneway_sdk::prelude::*;
///
/// fn handle(text: String, cx: &Context) -> Result<(), Failure> {
///     cx.state().put("last", text.as_bytes());
///     Ok(())
/// }
///
/// fn check() -> Result<(), Vec<String>> {
///     config::get("url").map(drop).ok_or_else(|| vec!["`url` is missing".to_owned()])
/// }
///
/// laneway_sdk::handler!(handle, validate = check);
/// ```
#[macro_export]
macro_rules! handler {
    ($handle:path) => {
        $crate::handler!($handle, validate = $crate::export::valid);
    };
    ($handle:path, validate = $validate:path) => {
        const _: () = {
            struct Plugin;

            impl $crate::bindings::exports::laneway::plugin::handler::Guest for Plugin {
                fn handle(message: $crate::Message, attempt: $crate::Attempt) -> $crate::export::Handled {
                    $crate::export::handle($handle, message, attempt)
                }
            }

            #[cfg(target_family = "wasm")]
            $crate::bindings::export_handler! { Plugin with_types_in $crate::bindings }
            // Elsewhere nothing is exported, and the function would count as unused.
            #[cfg(not(target_family = "wasm"))]
            const _: fn($crate::Message, $crate::Attempt) -> $crate::export::Handled =
                <Plugin as $crate::bindings::exports::laneway::plugin::handler::Guest>::handle;
        };
        $crate::__lifecycle!($validate);
    };
}

/// Makes a publisher of a function `fn(&Item) -> Result<Receipt, Failure>`, which forwards one message.
///
/// With `batch = publish` the function takes what the host hands over at once and answers for each, in order:
/// `fn(&[Item]) -> Result<Vec<Result<Receipt, Failure>>, Failure>`; a failure of the whole answers for all of them.
/// `validate = check` is as in [`handler!`](crate::handler).
///
/// ```
/// use laneway_sdk::prelude::*;
///
/// fn publish(item: &Item) -> Result<Receipt, Failure> {
///     info!(topic = item.message.topic, "forwarded");
///     Ok(Receipt { reference: None })
/// }
///
/// laneway_sdk::publisher!(publish);
/// ```
#[macro_export]
macro_rules! publisher {
    ($publish:path) => {
        $crate::publisher!($publish, validate = $crate::export::valid);
    };
    ($publish:path, validate = $validate:path) => {
        $crate::publisher!(
            @export |batch: &[$crate::Item]| ::std::result::Result::Ok(batch.iter().map($publish).collect()),
            $validate
        );
    };
    (batch = $publish:path) => {
        $crate::publisher!(batch = $publish, validate = $crate::export::valid);
    };
    (batch = $publish:path, validate = $validate:path) => {
        $crate::publisher!(@export $publish, $validate);
    };
    (@export $publish:expr, $validate:path) => {
        const _: () = {
            struct Plugin;

            impl $crate::bindings::publishing::exports::laneway::plugin::publisher::Guest for Plugin {
                fn publish(batch: $crate::export::Batch) -> $crate::export::Published {
                    $crate::export::publish($publish, batch)
                }
            }

            #[cfg(target_family = "wasm")]
            $crate::bindings::publishing::export_publisher! { Plugin with_types_in $crate::bindings::publishing }
            #[cfg(not(target_family = "wasm"))]
            const _: fn($crate::export::Batch) -> $crate::export::Published =
                <Plugin as $crate::bindings::publishing::exports::laneway::plugin::publisher::Guest>::publish;
        };
        $crate::__lifecycle!($validate);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __lifecycle {
    ($validate:path) => {
        const _: () = {
            struct Plugin;

            impl $crate::bindings::deploying::exports::laneway::plugin::lifecycle::Guest for Plugin {
                fn validate() -> $crate::export::Validated {
                    $crate::export::validate($validate)
                }
            }

            #[cfg(target_family = "wasm")]
            $crate::bindings::deploying::export_lifecycle! { Plugin with_types_in $crate::bindings::deploying }
            #[cfg(not(target_family = "wasm"))]
            const _: fn() -> $crate::export::Validated =
                <Plugin as $crate::bindings::deploying::exports::laneway::plugin::lifecycle::Guest>::validate;
        };
    };
}

/// What the contract's `handle` answers.
pub type Handled = Result<(), types::Failure>;
/// What the contract's `publish` is given.
pub type Batch = Vec<crate::bindings::publishing::exports::laneway::plugin::publisher::Item>;
/// What the contract's `publish` answers.
pub type Published = Result<Vec<Result<Receipt, types::Failure>>, types::Failure>;
/// What the contract's `validate` answers.
pub type Validated = Result<(), Vec<String>>;

/// Runs a handler's function for the host.
///
/// # Errors
/// Those of [`run`].
pub fn handle<P: Payload>(
    handle: impl Fn(P, &Context) -> Result<(), Failure>,
    message: Message,
    attempt: Attempt,
) -> Handled {
    log_panics();
    Ok(run(handle, message, attempt)?)
}

/// Runs a handler's function.
///
/// # Errors
/// The function's own, and those of reading the payload.
pub fn run<P: Payload>(
    handle: impl Fn(P, &Context) -> Result<(), Failure>,
    message: Message,
    attempt: Attempt,
) -> Result<(), Failure> {
    let payload = P::from_message(&message)?;
    handle(payload, &Context::new(message, attempt))
}

/// Runs a publisher's function.
///
/// # Errors
/// The function's own.
pub fn publish(
    publish: impl Fn(&[Item]) -> Result<Vec<Result<Receipt, Failure>>, Failure>,
    batch: Batch,
) -> Published {
    log_panics();
    let batch: Vec<Item> =
        batch.into_iter().map(|item| Item { message: item.message, attempt: item.attempt }).collect();
    let answers = publish(&batch)?;
    Ok(answers.into_iter().map(|answer| answer.map_err(types::Failure::from)).collect())
}

/// Runs a check of the configuration.
///
/// # Errors
/// The function's own.
pub fn validate(validate: impl Fn() -> Validated) -> Validated {
    log_panics();
    validate()
}

/// The check of a plugin that has none.
///
/// # Errors
/// None.
pub fn valid() -> Validated {
    Ok(())
}

/// Has a panic's message written to the host's log before the guest aborts; else the host would know only that it
/// did.
fn log_panics() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if cfg!(target_family = "wasm") && !DONE.swap(true, Ordering::Relaxed) {
        std::panic::set_hook(Box::new(log_panic));
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("");
    match panic.location() {
        Some(at) => log(Level::Error, &format!("panicked at {at}: {text}"), &[]),
        None => log(Level::Error, &format!("panicked: {text}"), &[]),
    }
}
