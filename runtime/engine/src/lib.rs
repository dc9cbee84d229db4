//! The engine: takes deliveries from a store, runs plugins on them, and settles the outcomes.
//!
//! A delivery's way: [`relay`] claims it, [`lanes`] holds it until a slot is free, [`slot`] runs it, [`verdict`] says
//! what follows, [`settler`] commits that in groups. [`leases`] keeps what is in hand renewed, and [`overlay`] lets
//! messages build on each other's state before it is committed. The engine knows neither SQL nor WebAssembly: it sees
//! [`laneway_core::Store`] and [`laneway_core::Invoker`].

mod active;
mod engine;
mod lanes;
mod leases;
mod options;
mod overlay;
mod pace;
mod relay;
mod settler;
mod slot;
mod stats;
mod verdict;

pub use engine::{Binding, DrainReport, Engine};
pub use options::EngineOptions;
pub use stats::{Stats, StatsSnapshot};
