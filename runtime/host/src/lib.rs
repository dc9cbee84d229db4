//! The WebAssembly host: runs handlers and publishers as sandboxed components.
//!
//! A [`Host`] is one engine for the process; a [`Plugin`] is one component as one subscription runs it, with its
//! configuration, its grants and its limits. Start at `invoke.rs` for the path of a message.
//!
//! **Boundary:** only this crate names wasmtime. It knows no database, reads no configuration file and decides no
//! policy: a trap is reported with its reason, and the engine decides what becomes of the message.

mod bindings;
mod cache;
mod contract;
mod effects;
mod engine;
mod error;
mod grant;
mod host;
mod http;
mod instance;
mod invoke;
mod limits;
mod log;
mod meter;
mod outcome;
mod plugin;
mod session;
mod ticker;
mod wait;
mod wasi;

pub use error::{HostError, PluginError};
pub use grant::{Grants, HttpGrant, InvalidGrant};
pub use host::{Host, HostOptions};
pub use limits::Limits;
pub use plugin::{Plugin, PluginSpec};
