//! The engine: takes deliveries from a store, runs plugins on them, and settles the outcomes.
//!
//! A delivery's way: [`relay`] claims it, [`lanes`] holds it until a slot is free, [`slot`] runs it, [`verdict`] says
//! what follows, [`settler`] commits that in groups. [`leases`] keeps what is in hand renewed, and [`overlay`] lets
//! messages build on each other's state before it is committed. [`scheduler`] waits for the times of schedules, and
//! [`sweep`] makes changes of many rows in steps. The engine knows neither SQL nor WebAssembly: it sees
//! [`laneway_core::Store`] and [`laneway_core::Invoker`].

mod active;
mod destination;
mod engine;
mod lanes;
mod leases;
mod options;
mod overlay;
mod pace;
mod rate;
mod relay;
mod scheduler;
mod settler;
mod slot;
mod stats;
mod sweep;
mod verdict;

pub use engine::{Binding, DrainReport, Engine};
pub use options::EngineOptions;
pub use scheduler::clean;
pub use stats::{Stats, StatsSnapshot};
pub use sweep::{Sweep, Work};
