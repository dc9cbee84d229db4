//! Clocks and random numbers. Many toolchains import them blindly, so they are always linked; who uses them without
//! the grant is ended.

use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime_wasi::clocks::WasiClocksView;
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::clocks::{monotonic_clock, wall_clock};
use wasmtime_wasi::p2::bindings::random::{insecure, random};
use wasmtime_wasi::random::WasiRandomView;

use crate::session::Session;

/// Puts these in the place of WASI's own.
pub(crate) fn link(linker: &mut Linker<Session>) -> wasmtime::Result<()> {
    wall_clock::add_to_linker::<_, HasSelf<Session>>(linker, |session| session)?;
    monotonic_clock::add_to_linker::<_, HasSelf<Session>>(linker, |session| session)?;
    random::add_to_linker::<_, HasSelf<Session>>(linker, |session| session)?;
    insecure::add_to_linker::<_, HasSelf<Session>>(linker, |session| session)
}

impl wall_clock::Host for Session {
    fn now(&mut self) -> wasmtime::Result<wall_clock::Datetime> {
        self.facts.allowed.wall_clock()?;
        wall_clock::Host::now(&mut self.clocks())
    }

    fn resolution(&mut self) -> wasmtime::Result<wall_clock::Datetime> {
        self.facts.allowed.wall_clock()?;
        wall_clock::Host::resolution(&mut self.clocks())
    }
}

impl monotonic_clock::Host for Session {
    fn now(&mut self) -> wasmtime::Result<u64> {
        self.facts.allowed.monotonic_clock()?;
        monotonic_clock::Host::now(&mut self.clocks())
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        self.facts.allowed.monotonic_clock()?;
        monotonic_clock::Host::resolution(&mut self.clocks())
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.facts.allowed.monotonic_clock()?;
        monotonic_clock::Host::subscribe_instant(&mut self.clocks(), when)
    }

    /// Waiting says no time, and the attempt's own time bounds it.
    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        monotonic_clock::Host::subscribe_duration(&mut self.clocks(), duration)
    }
}

impl random::Host for Session {
    fn get_random_bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        self.facts.allowed.random()?;
        random::Host::get_random_bytes(self.random(), length)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.facts.allowed.random()?;
        random::Host::get_random_u64(self.random())
    }
}

impl insecure::Host for Session {
    fn get_insecure_random_bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        self.facts.allowed.random()?;
        insecure::Host::get_insecure_random_bytes(self.random(), length)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.facts.allowed.random()?;
        insecure::Host::get_insecure_random_u64(self.random())
    }
}
