//! Making connections: resolve, look at the address, connect.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::address::Kind;
use crate::grant::{Reach, default_port};

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

/// Connects to the addresses that a reach admits. The address that is checked is the one that is connected to: a
/// name that resolves differently the next time gains nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connector {
    pub(crate) reach: Reach,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let reach = self.reach;
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connect(&uri, reach)).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(ConnectError::Timeout),
            }
        })
    }
}

async fn connect(uri: &Uri, reach: Reach) -> Result<TcpStream, ConnectError> {
    let host = uri.host().ok_or(ConnectError::NoHost)?;
    let port = uri.port_u16().unwrap_or(default_port(uri.scheme_str() == Some("https")));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
        Ok(address) => vec![(address, port).into()],
        Err(_) => tokio::net::lookup_host((bare, port))
            .await
            .map_err(|source| ConnectError::Resolve { host: bare.to_owned(), source })?
            .collect(),
    };
    let mut outcome = ConnectError::NoAddress(bare.to_owned());
    for address in addresses {
        let kind = Kind::of(address.ip());
        if !kind.within(reach) {
            outcome = ConnectError::Refused { host: bare.to_owned(), address: address.ip(), kind };
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Requests are written whole: waiting for more to send only adds latency. If the option cannot
                // be set, the connection is slower and no worse.
                drop(stream.set_nodelay(true));
                return Ok(stream);
            }
            Err(source) => outcome = ConnectError::Connect { address, source },
        }
    }
    Err(outcome)
}
