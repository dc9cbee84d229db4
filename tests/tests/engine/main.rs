//! What the engine promises, on a real store. Most plugins are played by closures.

#[macro_use]
mod rig;

mod deployments;
mod drain;
mod effects;
mod faults;
mod idle;
mod keys;
mod lanes;
mod leases;
mod markers;
mod outages;
mod outcomes;
mod pace;
mod schedules;
mod transactions;
