//! The `laneway` program as a user meets it.

mod bad_input;
mod databases;
mod flow;
mod run;
