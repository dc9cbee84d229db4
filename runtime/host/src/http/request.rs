//! One request of a guest: is it granted, and what came of it.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::future::{Future, ready};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Response};
use hyper_util::client::legacy::connect::capture_connection;
use laneway_core::{Name, PluginDigest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::body::LimitedBody;
use super::connect::ConnectError;
use super::target::Target;
use super::{Clients, PooledClient, mock, unsent};
use crate::Limits;
use crate::grant::{Allowed, Reach};
use crate::mock::{LogLine, Mock};
use crate::secret::Placeholders;

/// Hosts of refused requests that are logged for one attempt; the other requests are counted.
const DENIALS_MAX: usize = 8;

/// What a plugin may reach, and through what.
pub(crate) struct Access {
    pub(crate) name: Name,
    pub(crate) digest: PluginDigest,
    pub(crate) allowed: Arc<Allowed>,
    pub(crate) placeholders: Arc<Placeholders>,
    pub(crate) clients: Clients,
    pub(crate) limits: Limits,
}

/// Outgoing HTTP of one instance.
pub(crate) struct Hooks {
    access: Option<Arc<Access>>,
    slots: Arc<Semaphore>,
    /// End of the attempt that runs now.
    deadline: Instant,
    denials: Arc<Denials>,
    /// Whether the attempt has sent a request.
    pub(crate) has_sent: bool,
}

type Worker = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(Response<WasiBody>, Worker), Error>;

impl Hooks {
    pub(crate) fn new(access: Option<Arc<Access>>, deadline: Instant) -> Self {
        let slots = access.as_ref().map_or(0, |access| access.limits.http_concurrent_max);
        let slots = Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS)));
        Self { access, slots, deadline, denials: Arc::default(), has_sent: false }
    }

    /// Gets ready for the next attempt.
    pub(crate) fn renew(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.denials = Arc::default();
        self.has_sent = false;
    }

    /// Says how many refused requests the log does not have.
    pub(crate) fn close(&self) {
        let more = std::mem::take(&mut self.denials.noted().more);
        if let Some(access) = &self.access
            && more > 0
        {
            access.warn(&format!("refused {more} further requests"));
        }
    }

    #[cfg(test)]
    pub(crate) fn access(&self) -> Option<&Access> {
        self.access.as_deref()
    }

    fn admit(&self, request: &mut Request<WasiBody>) -> Result<Admitted, Error> {
        let access = Arc::clone(self.access.as_ref().ok_or(Error::HttpRequestDenied)?);
        let target = Target::of(request)?;
        let method = request.method();
        let reach = match access.allowed.request(method, target.https, &target.host, target.port) {
            Ok(reach) => reach,
            Err(why) => {
                self.denials.log(&access, &target, || format!("refused a {method} request to {target}: {why}"));
                return Err(Error::HttpRequestDenied);
            }
        };
        target.write(request)?;
        // Not waited for: a guest that holds all of them would wait for itself.
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Error::ConnectionLimitReached)?;
        Ok(Admitted { access, target, reach, slot, deadline: self.deadline, denials: Arc::clone(&self.denials) })
    }

    fn mock(&self) -> Option<Arc<dyn Mock>> {
        self.access.as_ref().and_then(|access| access.clients.mock().cloned())
    }
}

/// A request that may go out.
struct Admitted {
    access: Arc<Access>,
    target: Target,
    reach: Reach,
    slot: OwnedSemaphorePermit,
    deadline: Instant,
    denials: Arc<Denials>,
}

/// Refused requests of one attempt. A guest may send them by the thousand, and each line has text of its own.
#[derive(Default)]
struct Denials(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    logged: BTreeSet<String>,
    more: u64,
}

impl Denials {
    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the first refusal of a host, and counts the others.
    fn log(&self, access: &Access, target: &Target, text: impl FnOnce() -> String) {
        let origin = target.to_string();
        let mut noted = self.noted();
        if noted.logged.contains(&origin) || noted.logged.len() >= DENIALS_MAX {
            noted.more += 1;
            return;
        }
        noted.logged.insert(origin);
        drop(noted);
        access.warn(&text());
    }
}

impl Access {
    fn warn(&self, text: &str) {
        match self.clients.mock() {
            Some(mock) => mock.log(LogLine { level: "warn", text: text.to_owned(), fields: String::new() }),
            None => tracing::warn!(subscription = %self.name, plugin = %self.digest, "{text}"),
        }
    }
}

/// Whether a header is between the host and the server that it is connected to, and so never the guest's.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    DEFAULT_FORBIDDEN_HEADERS.contains(name)
        || *name == header::TE
        || *name == header::TRAILER
        || name.as_str().starts_with("proxy-")
}

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_hop_by_hop(name)
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        unsent::BODY_PART_BYTES_MAX
    }

    fn send_request(
        &mut self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _request_errors: Worker,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        let admitted = match self.admit(&mut request) {
            Ok(admitted) => admitted,
            Err(error) => return Box::new(ready(Err(error))),
        };
        self.has_sent = true;
        if let Some(mock) = self.mock() {
            let answer = mock::answer(mock, request, self.deadline);
            return Box::new(async { answer.await.map(|response| (response, Box::new(ready(Ok(()))) as Worker)) });
        }
        Box::new(send(admitted, request, options.unwrap_or_default()))
    }
}

async fn send(admitted: Admitted, mut request: Request<WasiBody>, options: RequestOptions) -> Answer {
    let Admitted { access, target, reach, slot, deadline, denials } = admitted;
    let limits = &access.limits;
    let first_byte = match (options.connect_timeout, options.first_byte_timeout) {
        (Some(connect), Some(first_byte)) => connect.saturating_add(first_byte),
        (_, Some(first_byte)) => first_byte,
        _ => limits.http_first_byte_timeout,
    };
    let between = options.between_bytes_timeout.unwrap_or(limits.http_between_bytes_timeout);
    let until = deadline.min(Instant::now() + first_byte.min(limits.http_first_byte_timeout));
    let client: &PooledClient = access.clients.of(reach);
    let has_secrets = access.placeholders.reveal(request.headers_mut());
    if has_secrets {
        // What comes back compressed could not be looked through.
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    let connection = capture_connection(&mut request);
    let mut response = match tokio::time::timeout_at(until.into(), client.request(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(explain(&access, &target, &denials, &error)),
        // Without a connection (name, address, TLS) nothing was sent, and the guest may say so.
        Err(_) if connection.connection_metadata().is_none() => return Err(Error::ConnectionTimeout),
        Err(_) => return Err(Error::HttpResponseTimeout),
    };
    access.placeholders.conceal(response.headers_mut());
    if has_secrets {
        check_encoding(response.headers())?;
    }
    let max = limits.http_response_bytes_max;
    if response.body().size_hint().lower() > max {
        return Err(Error::HttpResponseBodySize(Some(max)));
    }
    let between = between.min(limits.http_between_bytes_timeout);
    let placeholders = Arc::clone(&access.placeholders);
    let response =
        response.map(|body| LimitedBody::new(body, max, between, deadline, placeholders, slot).boxed_unsync());
    Ok((response, Box::new(ready(Ok(())))))
}

/// Refuses a body that is not as it would be read.
fn check_encoding(headers: &HeaderMap) -> Result<(), Error> {
    let other = |name: HeaderName, plain: &str| {
        let mut values = headers.get_all(name).iter();
        values.find(|value| !value.as_bytes().eq_ignore_ascii_case(plain.as_bytes())).cloned()
    };
    let text = |value: HeaderValue| value.to_str().ok().map(str::to_owned);
    if let Some(coding) = other(header::CONTENT_ENCODING, "identity") {
        return Err(Error::HttpResponseContentCoding(text(coding)));
    }
    if let Some(coding) = other(header::TRANSFER_ENCODING, "chunked") {
        return Err(Error::HttpResponseTransferCoding(text(coding)));
    }
    Ok(())
}

/// Finds the cause in what the client reports.
fn explain(
    access: &Access,
    target: &Target,
    denials: &Denials,
    error: &hyper_util::client::legacy::Error,
) -> Error {
    tracing::debug!(subscription = %access.name, %target, error = error as &dyn StdError, "the request failed");
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(found) = cause {
        if let Some(error) = found.downcast_ref::<ConnectError>() {
            return refused(access, target, denials, error);
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

fn refused(access: &Access, target: &Target, denials: &Denials, error: &ConnectError) -> Error {
    match error {
        ConnectError::Refused { host, address, kind } => {
            denials.log(access, target, || {
                format!(
                    "refused a request to {target}: `{host}` resolves to {address}, which is {}; if that is meant to \
                     be, grant the address itself, or write: {}",
                    kind.as_str(),
                    access.allowed.private_line(target.https, &target.host, target.port)
                )
            });
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
