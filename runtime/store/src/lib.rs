//! Storage on SQLite and on PostgreSQL: the outbox, its deliveries, and the handlers' effects.
//!
//! No policy lives here: when to retry, whom to pause and what to run is the engine's. Both halves have the same file
//! names, so that they can be read side by side, and pass the same conformance suite.

mod facade;
mod gone;
mod migrations;
pub mod postgres;
mod refusal;
pub mod sqlite;

pub use facade::{InvalidStorageUrl, Migrated, Storage};
