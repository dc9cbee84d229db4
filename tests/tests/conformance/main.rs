//! What a store promises: one suite, run on SQLite and on PostgreSQL. A test is named as the sentence that it
//! holds.

#[macro_use]
mod fixture;
mod sql;

mod chaos;
mod claim_cost;
mod dead_letters;
mod enqueue;
mod histories;
mod lease;
mod markers;
mod order;
mod producer;
mod routing;
mod schema;
mod settle;
mod state;
mod topology;
mod views;
mod wake;
