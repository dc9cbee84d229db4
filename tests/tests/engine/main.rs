//! What the engine promises, on a real store. Most plugins are played by closures.

mod drain;
mod effects;
mod faults;
mod lanes;
mod leases;
mod markers;
mod outcomes;
mod pace;
mod rig;
mod schedules;
mod transactions;
