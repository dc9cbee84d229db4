//! The WebAssembly host: runs handlers and publishers as sandboxed components.
//!
//! A [`Host`] is one engine for the process; a [`Plugin`] is one component as one subscription runs it, with its
//! configuration, its grants and its limits. Start at `invoke.rs` for the path of a message.
//!
//! **Boundary:** only this crate names wasmtime. It knows no database, reads no configuration file and decides no
//! policy: a trap is reported with its reason, and the engine decides what becomes of the message.

mod ambient;
mod bindings;
mod cache;
mod compiled;
mod compiler;
mod contract;
mod effects;
mod engine;
mod error;
mod grant;
mod host;
mod http;
mod inspection;
mod instance;
mod invoke;
mod limits;
mod log;
mod manifest;
mod meter;
mod mock;
mod outcome;
mod plugin;
mod pool;
mod secret;
mod session;
mod shape;
mod signature;
mod ticker;
mod wait;
mod wasi;

pub use compiled::Compiled;
pub use compiler::{CompilerProcess, compile_one};
pub use error::{HostError, PluginError};
pub use grant::{Grants, HttpGrant, InvalidGrant};
pub use host::{Host, HostOptions};
pub use inspection::Inspection;
pub use limits::Limits;
pub use manifest::{Asks, HttpAsk, Manifest, SecretAsk};
pub use mock::{HttpAnswer, HttpRequest, LogLine, Mock};
pub use plugin::{Plugin, PluginSpec};
pub use secret::{InvalidSecret, Secret};
pub use signature::{InvalidPublicKey, KeyId, PublicKeys, SignatureError};
