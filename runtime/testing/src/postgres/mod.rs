//! Throw-away PostgreSQL: a cluster for a run of the tests, a database for each test.

mod cluster;
mod database;
mod pooler;
mod programs;
mod watchdog;

pub use cluster::Cluster;
pub use database::{POOLER, SERVER_URL, SETUP, TestDatabase, test_database};
pub use pooler::{PoolMode, Pooler};
pub use programs::PROGRAMS;
