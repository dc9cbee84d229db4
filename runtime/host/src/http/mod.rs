//! Outgoing HTTP: only to granted hosts, through pooled connections, with the address checked at connect.

mod address;
mod body;
mod connect;
mod mock;
mod request;
mod target;
#[cfg(test)]
mod tests;
mod trouble;
mod unsent;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use wasmtime_wasi_http::WasiBody;

pub(crate) use request::{Access, Hooks};
pub(crate) use unsent::{FIELDS_BYTES_MAX, link};

use crate::PluginError;
use crate::grant::{HttpGrant, Reach};
use crate::mock::Mock;
use connect::{Connector, Resolver, Shares, SystemResolver};

/// Idle connections that are kept to one host.
const IDLE_PER_HOST_MAX: usize = 16;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Read buffer of a connection, which also bounds the head of a response.
const BUFFER_BYTES_MAX: usize = 256 << 10;
/// Header lines of a response.
const HEADERS_MAX: usize = 1_000;

type PooledClient = Client<HttpsConnector<Connector>, WasiBody>;

/// What the clients of all plugins have in common.
pub(crate) struct Network {
    resolver: Arc<dyn Resolver>,
    /// Answers for the network, if there is to be none.
    mock: Option<Arc<dyn Mock>>,
    tls: OnceLock<Result<rustls::ClientConfig, String>>,
}

impl Default for Network {
    fn default() -> Self {
        Self::resolving(Arc::new(SystemResolver))
    }
}

impl Network {
    /// One whose names this resolver finds.
    pub(crate) fn resolving(resolver: Arc<dyn Resolver>) -> Self {
        Self { resolver, mock: None, tls: OnceLock::new() }
    }

    /// One that this answers for.
    pub(crate) fn mocked(mock: Arc<dyn Mock>) -> Self {
        Self { mock: Some(mock), ..Self::default() }
    }

    /// Makes sure that what these grants need is there.
    pub(crate) fn prepare(&self, grants: &[HttpGrant]) -> Result<(), PluginError> {
        match self.tls() {
            Err(error) if grants.iter().any(HttpGrant::is_https) => Err(PluginError::Http(error.clone())),
            _ => Ok(()),
        }
    }

    fn tls(&self) -> &Result<rustls::ClientConfig, String> {
        self.tls.get_or_init(|| {
            use hyper_rustls::ConfigBuilderExt;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|e| format!("TLS: {e}"))?
                .with_native_roots()
                .map_err(|e| format!("root certificates of this system: {e}"))?;
            Ok(config.with_no_client_auth())
        })
    }
}

/// A plugin's clients, one for each reach: a connection that one grant allowed is not lent to a narrower one, nor to
/// another plugin.
pub(crate) struct Clients {
    network: Arc<Network>,
    shares: Shares,
    made: [OnceLock<PooledClient>; 4],
}

impl Clients {
    /// Clients that have so many connections open at once, those that are kept included.
    pub(crate) fn new(network: Arc<Network>, connections_max: usize) -> Self {
        Self { network, shares: Shares::new(connections_max), made: Default::default() }
    }

    fn mock(&self) -> Option<&Arc<dyn Mock>> {
        self.network.mock.as_ref()
    }

    fn of(&self, reach: Reach) -> &PooledClient {
        let slot = match reach {
            Reach::Public => 0,
            Reach::Loopback => 1,
            Reach::Private => 2,
            Reach::Literal => 3,
        };
        self.made[slot].get_or_init(|| {
            let tls = self.network.tls().clone().unwrap_or_else(|_| without_roots());
            let connector =
                HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(
                    Connector { reach, resolver: Arc::clone(&self.network.resolver), shares: self.shares.clone() },
                );
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
                .http1_max_buf_size(BUFFER_BYTES_MAX)
                .http1_max_headers(HEADERS_MAX)
                // What other clients put up with: a message is not lost, nor sent twice, for an answer that is not well
                // formed.
                .http1_allow_spaces_after_header_name_in_responses(true)
                .http1_allow_obsolete_multiline_headers_in_responses(true)
                .http1_ignore_invalid_headers_in_responses(true)
                .build(connector)
        })
    }
}

/// For a system with no certificates: plain HTTP still works, and every TLS handshake fails.
fn without_roots() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        // The provider and the versions are constants that fit each other.
        .expect("ring speaks the default versions of TLS")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}
