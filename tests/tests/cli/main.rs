//! The `laneway` program as a user meets it.

mod bad_input;
mod clock;
mod databases;
mod flow;
mod publish;
mod run;
mod schedules;
mod upkeep;
