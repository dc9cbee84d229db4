//! The engine: takes deliveries from a store, runs plugins on them, and settles the outcomes.
//!
//! A delivery's way: [`poll`] sees that it is due, [`relay`] claims it, [`lanes`] holds it until a slot is free, [`slot`]
//! runs it, [`verdict`] says what follows, [`settler`] commits that in groups. What may have ended a node before is noted
//! by [`begin`] first. [`leases`] keeps what is in hand renewed, and [`overlay`] lets
//! messages build on each other's state before it is committed. [`scheduler`] waits for the times of schedules, and
//! [`sweep`] makes changes of many rows in steps, as [`load`] allows. [`versions`] says which version of its plugin an
//! attempt runs on, and [`deployer`] follows what is deployed; [`trial`] judges a canary. [`health`]
//! notices a database that was restored or has failed over. The engine knows neither SQL nor WebAssembly: it sees
//! [`laneway_core::Store`] and [`laneway_core::Invoker`].

mod active;
mod arrears;
mod begin;
mod deployer;
mod destination;
mod engine;
mod health;
mod lanes;
mod leases;
mod load;
mod options;
mod outage;
mod overlay;
mod pace;
mod poll;
mod rate;
mod refusals;
mod relay;
mod scheduler;
mod settler;
mod slot;
mod stats;
mod sweep;
mod trial;
mod verdict;
mod versions;

pub use engine::{ALIVE_FOR, Binding, DrainReport, Engine, Runs};
pub use options::EngineOptions;
pub use scheduler::{Cleaned, clean, said_of_kept};
pub use stats::{Stats, StatsSnapshot};
pub use sweep::{Sweep, Sweeps, Work};
