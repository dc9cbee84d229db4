//! The `laneway` program as a user meets it.

mod answers;
mod bad_input;
mod clock;
mod databases;
mod deployments;
mod doctor;
mod exchange;
mod flow;
mod plugin_test;
mod plugins;
mod publish;
mod run;
mod schedules;
mod signals;
mod signatures;
mod upkeep;
