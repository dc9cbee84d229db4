//! Guest SDK of Laneway: what a plugin written in Rust is made with. The host's side is not here, and neither is
//! time, randomness nor I/O: a guest has what the contract (`wit/laneway.wit`) gives it.
//!
//! A handler is a function and one line:
//!
//! ```
//! use laneway_sdk::prelude::*;
//!
//! #[derive(Deserialize)]
//! struct Departed {
//!     carrier: String,
//!     dep_delay: Option<f64>,
//! }
//!
//! fn handle(flight: Json<Departed>, cx: &Context) -> Result<(), Failure> {
//!     cx.state().add(&format!("departures/{}", flight.carrier), 1);
//!     if flight.dep_delay.is_some_and(|minutes| minutes > 60.0) {
//!         cx.emit(Outgoing::json("alerts.delay", &flight.carrier)?)?;
//!         info!(carrier = flight.carrier, "departed late");
//!     }
//!     Ok(())
//! }
//!
//! laneway_sdk::handler!(handle);
//! ```
//!
//! A publisher is the same, see [`publisher!`]. The payload arrives as what the function asks for: see [`Payload`].
//! What the function answers decides what becomes of the message: see [`Failure`].
//!
//! What a plugin asks for, it says with [`manifest!`].
//!
//! The crate of a plugin is a `cdylib`, depends on `laneway-sdk` and `serde`, and compiles for `wasm32-wasip2` and
//! for `wasm32-unknown-unknown`. On other targets it compiles too, and `mock` stands for the host there, so that the
//! plugin's own `cargo test` needs no WebAssembly.

#[doc(hidden)]
pub mod bindings;
pub mod config;
mod context;
#[doc(hidden)]
pub mod export;
mod failure;
mod host;
pub mod log;
#[doc(hidden)]
pub mod manifest;
#[cfg(not(target_family = "wasm"))]
pub mod mock;
mod outgoing;
mod payload;
pub mod priority;
mod state;

pub use crate::bindings::laneway::plugin::effects::Outgoing;
pub use crate::bindings::laneway::plugin::types::{Attempt, Detail, Header, Lane, Message, Receipt, Throttle};
pub use crate::context::Context;
pub use crate::failure::Failure;
pub use crate::payload::{Json, Payload};
pub use crate::state::State;

/// One message to forward, and facts of the attempt.
#[derive(Debug, Clone)]
pub struct Item {
    /// The message.
    pub message: Message,
    /// The attempt.
    pub attempt: Attempt,
}

/// What the module of a plugin wants to have in scope. `Deserialize` and `Serialize` come with their derive macros,
/// which need `serde` among the plugin's own dependencies.
pub mod prelude {
    pub use serde::{Deserialize, Serialize};

    pub use crate::{Attempt, Context, Failure, Item, Json, Lane, Message, Outgoing, Payload, Receipt, State};
    pub use crate::{config, priority};
    pub use crate::{debug, error, info, trace, warn};
}
