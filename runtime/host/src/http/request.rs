//! One request of a guest: is it granted, and what came of it.

use std::error::Error as StdError;
use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::connect::capture_connection;
use laneway_core::Name;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::body::LimitedBody;
use super::connect::ConnectError;
use super::{Clients, PooledClient};
use crate::Limits;
use crate::grant::{HttpGrant, Reach, default_port};

/// What a plugin may reach, and through what.
pub(crate) struct Access {
    pub(crate) name: Name,
    pub(crate) grants: Vec<HttpGrant>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) limits: Limits,
}

/// Outgoing HTTP of one instance.
pub(crate) struct Hooks {
    access: Option<Arc<Access>>,
    slots: Arc<Semaphore>,
    /// End of the attempt that runs now.
    pub(crate) deadline: Instant,
}

type Worker = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(Response<WasiBody>, Worker), Error>;

impl Hooks {
    pub(crate) fn new(access: Option<Arc<Access>>, deadline: Instant) -> Self {
        let slots = access.as_ref().map_or(0, |access| access.limits.http_concurrent_max);
        Self { access, slots: Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS))), deadline }
    }

    fn admit(&self, request: &Request<WasiBody>) -> Result<(Arc<Access>, Reach, OwnedSemaphorePermit), Error> {
        let access = self.access.as_ref().ok_or(Error::HttpRequestDenied)?;
        let reach = access.reach(request)?;
        // Not waited for: a guest that holds all of them would wait for itself.
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Error::ConnectionLimitReached)?;
        Ok((Arc::clone(access), reach, slot))
    }
}

impl Access {
    /// How far a request may reach; fails if no grant covers it.
    fn reach(&self, request: &Request<WasiBody>) -> Result<Reach, Error> {
        let uri = request.uri();
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(Error::HttpRequestUriInvalid);
        }
        if request.method() == Method::CONNECT {
            // A tunnel would let the host at its end decide where the request goes.
            return Err(Error::HttpRequestMethodInvalid);
        }
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(Error::HttpRequestUriInvalid),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = match authority.port_u16() {
            Some(port) => port,
            // A port that is there and no number.
            None if authority.port().is_some() => return Err(Error::HttpRequestUriInvalid),
            None => default_port(https),
        };
        self.grants.iter().filter_map(|grant| grant.covers(https, &host, port)).max().ok_or_else(|| {
            let scheme = if https { "https" } else { "http" };
            tracing::warn!(
                subscription = %self.name,
                "refused a request to {scheme}://{authority}; to grant it, add: \
                 grants.http = [\"{scheme}://{authority}\"]"
            );
            Error::HttpRequestDenied
        })
    }
}

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _request_errors: Worker,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        match self.admit(&request) {
            Ok((access, reach, slot)) => {
                Box::new(send(access, reach, request, options.unwrap_or_default(), self.deadline, slot))
            }
            Err(error) => Box::new(ready(Err(error))),
        }
    }
}

async fn send(
    access: Arc<Access>,
    reach: Reach,
    mut request: Request<WasiBody>,
    options: RequestOptions,
    deadline: Instant,
    slot: OwnedSemaphorePermit,
) -> Answer {
    let limits = &access.limits;
    let first_byte = match (options.connect_timeout, options.first_byte_timeout) {
        (Some(connect), Some(first_byte)) => connect.saturating_add(first_byte),
        (_, Some(first_byte)) => first_byte,
        _ => limits.http_first_byte_timeout,
    };
    let between = options.between_bytes_timeout.unwrap_or(limits.http_between_bytes_timeout);
    let until = deadline.min(Instant::now() + first_byte.min(limits.http_first_byte_timeout));
    let client: &PooledClient = access.clients.of(reach);
    let origin = format!("{}://{}", request.uri().scheme_str().unwrap_or_default(), authority_of(&request));
    let connection = capture_connection(&mut request);
    let response = match tokio::time::timeout_at(until.into(), client.request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(explain(&access.name, &origin, &error)),
        // Without a connection (name, address, TLS) nothing was sent, and the guest may say so.
        Err(_) if connection.connection_metadata().is_none() => return Err(Error::ConnectionTimeout),
        Err(_) => return Err(Error::HttpResponseTimeout),
    };
    let max = limits.http_response_bytes_max;
    if response.body().size_hint().lower() > max {
        return Err(Error::HttpResponseBodySize(Some(max)));
    }
    let between = between.min(limits.http_between_bytes_timeout);
    let response = response.map(|body| LimitedBody::new(body, max, between, deadline, slot).boxed_unsync());
    Ok((response, Box::new(ready(Ok(())))))
}

fn authority_of(request: &Request<WasiBody>) -> String {
    request.uri().authority().map(ToString::to_string).unwrap_or_default()
}

/// Finds the cause in what the client reports.
fn explain(name: &Name, origin: &str, error: &hyper_util::client::legacy::Error) -> Error {
    tracing::debug!(subscription = %name, origin, error = error as &dyn StdError, "the request failed");
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(found) = cause {
        if let Some(error) = found.downcast_ref::<ConnectError>() {
            return refused(name, origin, error);
        }
        if let Some(error) = found.downcast_ref::<rustls::Error>() {
            return match error {
                rustls::Error::InvalidCertificate(_) => Error::TlsCertificateError,
                _ => Error::TlsProtocolError,
            };
        }
        if let Some(error) = found.downcast_ref::<hyper::Error>() {
            return if error.is_parse() { Error::HttpProtocolError } else { Error::ConnectionTerminated };
        }
        // An I/O error names as its source the source of what it wraps, and so hides that itself.
        cause = match found.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => found.source(),
        };
    }
    if error.is_connect() { Error::DestinationUnavailable } else { Error::ConnectionTerminated }
}

fn refused(name: &Name, origin: &str, error: &ConnectError) -> Error {
    match error {
        ConnectError::Refused { host, address, kind } => {
            tracing::warn!(
                subscription = %name,
                "refused a request to {origin}: `{host}` resolves to {address}, which is {}; if that is meant to \
                 be, grant the address itself, or add: grants.http = [{{ url = \"{origin}\", private = true }}]",
                kind.as_str()
            );
            Error::DestinationIpProhibited
        }
        ConnectError::Resolve { source, .. } => {
            Error::DnsError { rcode: Some(source.to_string()), info_code: None }
        }
        ConnectError::NoAddress(_) | ConnectError::NoHost => Error::DestinationNotFound,
        ConnectError::Connect { source, .. } if source.kind() == std::io::ErrorKind::ConnectionRefused => {
            Error::ConnectionRefused
        }
        ConnectError::Connect { .. } => Error::DestinationUnavailable,
        ConnectError::Timeout => Error::ConnectionTimeout,
    }
}
