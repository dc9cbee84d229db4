//! WASI 0.2 for the languages that need it, with nothing granted: no files, environment, arguments, sockets or name
//! resolution. Clocks and random numbers are in `ambient.rs`; standard output and error become log lines.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::bindings::io::{poll, streams};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, OutputStream, Pollable, StreamError, StreamResult,
};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::Limits;
use crate::ambient;
use crate::bindings::laneway::plugin::log::Level;
use crate::http::{self, Hooks};
use crate::log::Lines;
use crate::secret::Placeholders;
use crate::session::{Facts, Session};
use crate::wait::{Bounds, Ended};

/// Standard output and error that is kept until the end of a call, together.
const STDIO_BYTES_MAX: usize = 64 << 10;
/// Random bytes that one call may ask for.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// WASI's state of one instance.
pub(crate) struct Wasi {
    ctx: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    captured: Arc<Mutex<Captured>>,
}

impl Wasi {
    pub(crate) fn new(facts: &Facts, deadline: Instant) -> Self {
        let captured = Arc::new(Mutex::new(Captured {
            out: Vec::new(),
            err: Vec::new(),
            lines: Lines::default(),
            limits: facts.limits.clone(),
        }));
        let stream = |error| Stream { captured: Arc::clone(&captured), error };
        let ctx = WasiCtxBuilder::new()
            .stdout(stream(false))
            .stderr(stream(true))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .max_random_size(RANDOM_BYTES_MAX)
            .build();
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(http::FIELDS_BYTES_MAX);
        Self { ctx, http, hooks: Hooks::new(facts.http.clone(), deadline), captured }
    }

    pub(crate) fn renew(&mut self, deadline: Instant) {
        self.hooks.renew(deadline);
        let mut captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.out.clear();
        captured.err.clear();
        captured.lines = Lines::default();
    }

    /// Ends an attempt.
    pub(crate) fn close(&self) {
        self.hooks.close();
    }

    /// Whether the attempt has sent an HTTP request.
    pub(crate) fn has_sent(&self) -> bool {
        self.hooks.has_sent
    }

    /// What came of HTTP requests of the attempt that failed.
    pub(crate) fn failed_requests(&self) -> Option<String> {
        self.hooks.failed()
    }

    /// HTTP requests whose responses the guest holds.
    pub(crate) fn requests(&self) -> usize {
        self.hooks.under_way()
    }

    /// What the guest printed, line by line; standard error as warnings.
    pub(crate) fn take_lines(&self) -> Vec<(Level, String)> {
        let mut captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        for (level, bytes) in
            [(Level::Info, std::mem::take(&mut captured.out)), (Level::Warn, std::mem::take(&mut captured.err))]
        {
            let text = String::from_utf8_lossy(&bytes);
            lines.extend(text.lines().filter(|line| !line.is_empty()).map(|line| (level, line.to_owned())));
        }
        lines
    }

    /// The end of what is on standard error, without secrets: a guest that aborts has said why there.
    pub(crate) fn last_words(&self, bytes_max: usize, placeholders: &Placeholders) -> Option<String> {
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        let all = String::from_utf8_lossy(&captured.err);
        let hidden = placeholders.hide(&all);
        let mut from = hidden.len().saturating_sub(bytes_max);
        while !hidden.is_char_boundary(from) {
            from += 1;
        }
        let text = hidden[from..].trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// Output that waits to be logged.
struct Captured {
    out: Vec<u8>,
    err: Vec<u8>,
    lines: Lines,
    limits: Limits,
}

impl Captured {
    fn write(&mut self, error: bool, bytes: &[u8]) -> Result<(), Ended> {
        let room = STDIO_BYTES_MAX - self.out.len() - self.err.len();
        let (kept, dropped) = bytes.split_at(bytes.len().min(room));
        if error { &mut self.err } else { &mut self.out }.extend_from_slice(kept);
        if dropped.is_empty() { Ok(()) } else { self.lines.drop_bytes(dropped.len(), &self.limits) }
    }
}

/// Standard output or error of one instance.
struct Stream {
    captured: Arc<Mutex<Captured>>,
    error: bool,
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // For WASI 0.3 only, which is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Stream { captured: Arc::clone(&self.captured), error: self.error })
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        captured.write(self.error, &bytes).map_err(|ended| StreamError::Trap(ended.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(STDIO_BYTES_MAX)
    }
}

impl WasiView for Session {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (wasi, table) = self.wasi();
        WasiCtxView { ctx: &mut wasi.ctx, table }
    }
}

impl WasiHttpView for Session {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let (wasi, table) = self.wasi();
        WasiHttpCtxView { hooks: &mut wasi.hooks, table, ctx: &mut wasi.http }
    }
}

/// Links all of WASI 0.2 but HTTP. What waits, waits no longer than the attempt lasts.
pub(crate) fn link(linker: &mut Linker<Session>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    poll::add_to_linker::<_, HasBounded>(linker, bounded)?;
    streams::add_to_linker::<_, HasBounded>(linker, bounded)?;
    ambient::link(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// WASI's input and output, for as long as the attempt lasts: all that a guest can wait for, HTTP included, it
/// waits for here.
struct Bounded<'a> {
    table: &'a mut ResourceTable,
    bounds: &'a Bounds,
}

struct HasBounded;

impl HasData for HasBounded {
    type Data<'a> = Bounded<'a>;
}

fn bounded(session: &mut Session) -> Bounded<'_> {
    Bounded { table: &mut session.table, bounds: &session.bounds }
}

impl Bounded<'_> {
    async fn stream<T>(bounds: &Bounds, wait: impl Future<Output = StreamResult<T>>) -> StreamResult<T> {
        bounds.wait(wait).await.map_err(|ended| StreamError::Trap(ended.into()))?
    }
}

impl poll::Host for Bounded<'_> {
    async fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        self.bounds.wait(poll::Host::poll(self.table, pollables)).await?
    }
}

impl poll::HostPollable for Bounded<'_> {
    async fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        poll::HostPollable::ready(self.table, pollable).await
    }

    async fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        self.bounds.wait(poll::HostPollable::block(self.table, pollable)).await?
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        poll::HostPollable::drop(self.table, pollable)
    }
}

impl streams::Host for Bounded<'_> {
    fn convert_stream_error(&mut self, error: StreamError) -> wasmtime::Result<streams::StreamError> {
        streams::Host::convert_stream_error(self.table, error)
    }
}

impl streams::HostInputStream for Bounded<'_> {
    fn read(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<Vec<u8>> {
        streams::HostInputStream::read(self.table, stream, len)
    }

    async fn blocking_read(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<Vec<u8>> {
        Self::stream(self.bounds, streams::HostInputStream::blocking_read(self.table, stream, len)).await
    }

    fn skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<u64> {
        streams::HostInputStream::skip(self.table, stream, len)
    }

    async fn blocking_skip(&mut self, stream: Resource<DynInputStream>, len: u64) -> StreamResult<u64> {
        Self::stream(self.bounds, streams::HostInputStream::blocking_skip(self.table, stream, len)).await
    }

    fn subscribe(&mut self, stream: Resource<DynInputStream>) -> wasmtime::Result<Resource<DynPollable>> {
        streams::HostInputStream::subscribe(self.table, stream)
    }

    async fn drop(&mut self, stream: Resource<DynInputStream>) -> wasmtime::Result<()> {
        self.bounds.wait(streams::HostInputStream::drop(self.table, stream)).await?
    }
}

impl streams::HostOutputStream for Bounded<'_> {
    fn check_write(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<u64> {
        streams::HostOutputStream::check_write(self.table, stream)
    }

    fn write(&mut self, stream: Resource<DynOutputStream>, bytes: Vec<u8>) -> StreamResult<()> {
        streams::HostOutputStream::write(self.table, stream, bytes)
    }

    async fn blocking_write_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        bytes: Vec<u8>,
    ) -> StreamResult<()> {
        let wait = streams::HostOutputStream::blocking_write_and_flush(self.table, stream, bytes);
        Self::stream(self.bounds, wait).await
    }

    fn flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        streams::HostOutputStream::flush(self.table, stream)
    }

    async fn blocking_flush(&mut self, stream: Resource<DynOutputStream>) -> StreamResult<()> {
        Self::stream(self.bounds, streams::HostOutputStream::blocking_flush(self.table, stream)).await
    }

    fn subscribe(&mut self, stream: Resource<DynOutputStream>) -> wasmtime::Result<Resource<DynPollable>> {
        streams::HostOutputStream::subscribe(self.table, stream)
    }

    fn write_zeroes(&mut self, stream: Resource<DynOutputStream>, len: u64) -> StreamResult<()> {
        streams::HostOutputStream::write_zeroes(self.table, stream, len)
    }

    async fn blocking_write_zeroes_and_flush(
        &mut self,
        stream: Resource<DynOutputStream>,
        len: u64,
    ) -> StreamResult<()> {
        let wait = streams::HostOutputStream::blocking_write_zeroes_and_flush(self.table, stream, len);
        Self::stream(self.bounds, wait).await
    }

    fn splice(
        &mut self,
        stream: Resource<DynOutputStream>,
        source: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        streams::HostOutputStream::splice(self.table, stream, source, len)
    }

    async fn blocking_splice(
        &mut self,
        stream: Resource<DynOutputStream>,
        source: Resource<DynInputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        let wait = streams::HostOutputStream::blocking_splice(self.table, stream, source, len);
        Self::stream(self.bounds, wait).await
    }

    async fn drop(&mut self, stream: Resource<DynOutputStream>) -> wasmtime::Result<()> {
        self.bounds.wait(streams::HostOutputStream::drop(self.table, stream)).await?
    }
}
