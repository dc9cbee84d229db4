//! What the engine promises, on a real store with plugins played by closures.

mod drain;
mod effects;
mod faults;
mod lanes;
mod leases;
mod outcomes;
mod rig;
