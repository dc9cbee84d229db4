//! The host against guests that are good, broken and hostile.

mod busy;
mod compat;
mod components;
mod contract;
mod effects;
mod grants;
mod guest;
mod hostile;
mod log;
mod outcome;
mod reuse;
mod sandbox;
mod secrets;
mod shares;
mod smith;
mod storage;
mod support;
mod usage;
mod wasi;
