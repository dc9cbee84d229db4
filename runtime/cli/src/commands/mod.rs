//! One file for each command.

pub mod apply;
pub mod bench;
pub mod cleanup;
pub mod config;
pub mod dead_letters;
pub mod dev;
pub mod doctor;
pub mod enqueue;
pub mod idempotency;
pub mod messages;
pub mod migrate;
pub mod plugin;
pub mod replay;
pub mod run;
pub mod schedules;
pub mod status;
