//! What a store promises: one suite, run on SQLite and on PostgreSQL. A test is named as the sentence that it
//! holds.

#[macro_use]
mod fixture;
mod sql;

mod chaos;
mod claim_cost;
mod cleanup;
mod dead_letters;
mod enqueue;
mod histories;
mod keys;
mod lease;
mod lost;
mod markers;
mod order;
mod outbox;
mod plugins;
mod producer;
mod replay;
mod restores;
mod routing;
mod schedules;
mod schema;
mod sessions;
mod settle;
mod state;
mod topology;
mod unreadable;
mod views;
mod wake;
