//! One file for each command.

pub mod apply;
pub mod bench;
pub mod config;
pub mod dead_letters;
pub mod enqueue;
pub mod messages;
pub mod migrate;
pub mod run;
pub mod status;
