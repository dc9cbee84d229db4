//! Throw-away PostgreSQL: a cluster for a run of the tests, a database for each test.

mod cluster;
mod database;
mod programs;

pub use cluster::Cluster;
pub use database::{SERVER_URL, SETUP, TestDatabase, test_database};
