//! The `laneway` program as a user meets it.

mod bad_input;
mod clock;
mod databases;
mod deployments;
mod doctor;
mod flow;
mod plugin_test;
mod plugins;
mod publish;
mod run;
mod schedules;
mod signatures;
mod upkeep;
