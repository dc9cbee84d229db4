//! The host against guests that are good, broken and hostile.

mod busy;
mod contract;
mod effects;
mod guest;
mod log;
mod outcome;
mod reuse;
mod sandbox;
mod storage;
mod support;
mod wasi;
