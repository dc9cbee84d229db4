//! Making connections: resolve, look at the address, connect.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_service::Service;

use super::address::Kind;
use crate::grant::{Reach, default_port};

/// Names of one plugin that are looked up at once.
const LOOKUPS_MAX: usize = 8;
/// Time to resolve a name and connect to one of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    #[error("connect to {address}: {source}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("connecting took longer than {CONNECT_TIMEOUT:?}")]
    Timeout,
    #[error("the URL has no host")]
    NoHost,
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
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(&uri)).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(ConnectError::Timeout),
            }
        })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Stream, ConnectError> {
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let port = uri.port_u16().unwrap_or(default_port(uri.scheme_str() == Some("https")));
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let share = place(&self.shares.connections).await?;
        let addresses: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
            Ok(address) => vec![(address, port).into()],
            Err(_) => self
                .resolver
                .resolve(bare, port, place(&self.shares.lookups).await?)
                .await
                .map_err(|source| ConnectError::Resolve { host: bare.to_owned(), source })?,
        };
        let mut outcome = ConnectError::NoAddress(bare.to_owned());
        for address in addresses {
            let kind = Kind::of(address.ip());
            if !kind.within(self.reach) {
                outcome = ConnectError::Refused { host: bare.to_owned(), address: address.ip(), kind };
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(tcp) => {
                    // Requests are written whole: waiting for more to send only adds latency. If the option cannot
                    // be set, the connection is slower and no worse.
                    drop(tcp.set_nodelay(true));
                    return Ok(Stream { tcp, _share: share });
                }
                Err(source) => outcome = ConnectError::Connect { address, source },
            }
        }
        Err(outcome)
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
