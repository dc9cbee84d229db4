//! What the tests of Laneway stand on: throw-away databases, faults, seeded randomness.
//!
//! Nothing here is used in production. No SQL driver is named: PostgreSQL is reached through its own programs.

pub mod faults;
pub mod postgres;
mod random;
mod skip;
pub mod sqlite;
mod target;

pub use random::{Random, seed};
pub use skip::skip;
pub use target::target_dir;
