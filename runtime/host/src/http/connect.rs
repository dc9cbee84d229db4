//! Making connections: resolve, look at the addresses, connect to whichever answers first.

use std::fmt::Write;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tower_service::Service;

use super::address::Kind;
use crate::grant::{Reach, default_port};

/// Names of one plugin that are looked up at once.
const LOOKUPS_MAX: usize = 8;
/// Time to resolve a name and connect to one of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that an address has to answer before the next one is tried beside it, as RFC 8305 has it.
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the address of `{host}`, {address}, is {}", kind.as_str())]
    Refused { host: String, address: IpAddr, kind: Kind },
    #[error("resolve `{host}`: {source}")]
    Resolve {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("`{0}` has no address")]
    NoAddress(String),
    #[error("connect to `{host}`: {}", listed(failures))]
    Connect {
        host: String,
        /// What came of each address.
        failures: Vec<(SocketAddr, io::Error)>,
    },
    #[error("connecting took longer than {CONNECT_TIMEOUT:?}")]
    Timeout,
    #[error("the URL has no host")]
    NoHost,
}

fn listed(failures: &[(SocketAddr, io::Error)]) -> String {
    let mut text = String::new();
    for (address, error) in failures {
        let separator = if text.is_empty() { "" } else { "; " };
        // Writing to a string does not fail.
        let _ = write!(text, "{separator}{address}: {error}");
    }
    text
}

/// Finds the addresses of names.
#[async_trait]
pub(crate) trait Resolver: Send + Sync {
    /// The place is given back when the lookup is over, which may be long after anybody waits for it.
    async fn resolve(&self, host: &str, port: u16, place: OwnedSemaphorePermit) -> io::Result<Vec<SocketAddr>>;
}

/// Asks the system.
pub(crate) struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str, port: u16, place: OwnedSemaphorePermit) -> io::Result<Vec<SocketAddr>> {
        let host = host.to_owned();
        // Nothing ends a call of the system: it keeps its thread when this future is dropped, and so its place too.
        let lookup = tokio::task::spawn_blocking(move || {
            let _place = place;
            (host.as_str(), port).to_socket_addrs().map(Iterator::collect)
        });
        lookup.await.map_err(io::Error::other)?
    }
}

/// What one plugin takes of what all share: the threads that look up names, and the process's descriptors.
#[derive(Clone)]
pub(crate) struct Shares {
    lookups: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Shares {
    pub(crate) fn new(connections_max: usize) -> Self {
        let connections = connections_max.min(Semaphore::MAX_PERMITS);
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)), connections: Arc::new(Semaphore::new(connections)) }
    }
}

/// A place in a plugin's share. Waited for, as long as the connection may take.
async fn place(share: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ConnectError> {
    // Never closed; were it, there would be no connection.
    Arc::clone(share).acquire_owned().await.map_err(|_| ConnectError::Timeout)
}

/// Connects to the addresses that a reach admits. A name is resolved once for a connection, and the address that is
/// checked is the one that is connected to: a name that resolves differently the next time gains nothing.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) reach: Reach,
    pub(crate) resolver: Arc<dyn Resolver>,
    pub(crate) shares: Shares,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await.map(TokioIo::new) })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Stream, ConnectError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let port = uri.port_u16().unwrap_or(default_port(uri.scheme_str() == Some("https")));
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let ready = tokio::time::timeout_at(deadline.into(), async {
            let share = place(&self.shares.connections).await?;
            Ok((share, self.addresses(bare, port).await?))
        });
        let (share, addresses) = ready.await.unwrap_or(Err(ConnectError::Timeout))?;
        match race(addresses, deadline).await {
            Ok(tcp) => {
                // Requests are written whole: waiting for more to send only adds latency. If the option cannot
                // be set, the connection is slower and no worse.
                drop(tcp.set_nodelay(true));
                Ok(Stream { tcp, _share: share })
            }
            Err(failures) => Err(ConnectError::Connect { host: bare.to_owned(), failures }),
        }
    }

    /// The addresses that may be connected to. There is at least one.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
            Ok(address) => vec![(address, port).into()],
            Err(_) => self
                .resolver
                .resolve(host, port, place(&self.shares.lookups).await?)
                .await
                .map_err(|source| ConnectError::Resolve { host: host.to_owned(), source })?,
        };
        let mut refused = ConnectError::NoAddress(host.to_owned());
        let mut admitted = Vec::with_capacity(addresses.len());
        for address in addresses {
            let kind = Kind::of(address.ip());
            if kind.within(self.reach) {
                admitted.push(address);
            } else {
                refused = ConnectError::Refused { host: host.to_owned(), address: address.ip(), kind };
            }
        }
        if admitted.is_empty() { Err(refused) } else { Ok(admitted) }
    }
}

/// Connects to whichever address answers first. Each has a head start over the next: one that does not answer, as that of
/// a family that does not work here, costs that and not the whole time.
///
/// The client library has such a race too. It races families only, so that a dead address holds up the next one of its own
/// family; it does not name the addresses that failed; and an address in a URL gets past the resolver, where it would
/// have to be checked.
async fn race(addresses: Vec<SocketAddr>, deadline: Instant) -> Result<TcpStream, Vec<(SocketAddr, io::Error)>> {
    let mut next = alternating(addresses).into_iter();
    let mut tries = JoinSet::new();
    let mut waiting: Vec<SocketAddr> = Vec::new();
    let mut failures = Vec::new();
    loop {
        if let Some(address) = next.next() {
            waiting.push(address);
            tries.spawn(async move { (address, TcpStream::connect(address).await) });
        }
        let until = if next.len() > 0 { deadline.min(Instant::now() + HEAD_START) } else { deadline };
        match tokio::time::timeout_at(until.into(), tries.join_next()).await {
            Ok(Some(Ok((_, Ok(tcp))))) => return Ok(tcp),
            Ok(Some(Ok((address, Err(error))))) => {
                waiting.retain(|other| *other != address);
                failures.push((address, error));
            }
            // It panicked; its address is still among those that have not answered.
            Ok(Some(Err(_))) => {}
            Err(_) if Instant::now() < deadline => {}
            Ok(None) if next.len() > 0 => {}
            Ok(None) | Err(_) => {
                let silent = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
                failures.extend(waiting.into_iter().chain(next).map(|address| (address, silent())));
                return Err(failures);
            }
        }
    }
}

/// The addresses in the order in which they are tried: as they came, but the families by turns.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let starts_with_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == starts_with_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] || all.len() >= ADDRESSES_MAX {
            all.truncate(ADDRESSES_MAX);
            return all;
        }
        all.extend(pair.into_iter().flatten());
    }
}

/// A connection, which has its place in the plugin's share until it is closed.
pub(crate) struct Stream {
    tcp: TcpStream,
    _share: OwnedSemaphorePermit,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.tcp.connected()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses<const N: usize>(texts: [&str; N]) -> Vec<SocketAddr> {
        texts.map(|text| SocketAddr::new(text.parse().unwrap(), 80)).to_vec()
    }

    #[test]
    fn a_family_that_does_not_work_is_left_after_one_try() {
        let mixed = addresses(["::1", "::2", "::3", "10.0.0.1", "10.0.0.2"]);
        assert_eq!(alternating(mixed), addresses(["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]));
        let mixed = addresses(["10.0.0.1", "10.0.0.2", "::1"]);
        assert_eq!(alternating(mixed), addresses(["10.0.0.1", "::1", "10.0.0.2"]));
        let many = vec![addresses(["10.0.0.1"])[0]; ADDRESSES_MAX + 1];
        assert_eq!(alternating(many).len(), ADDRESSES_MAX);
    }
}
