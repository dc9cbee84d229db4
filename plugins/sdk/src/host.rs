//! The host's functions: in a guest those that the contract imports, elsewhere those of the mock.

#[cfg(target_family = "wasm")]
pub use crate::bindings::laneway::plugin::{config, effects, log};
#[cfg(not(target_family = "wasm"))]
pub use crate::mock::imports::{config, effects, log};
