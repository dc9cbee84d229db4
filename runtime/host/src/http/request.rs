//! One request of a guest: is it granted, and what came of it.

use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, ready};
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Response};
use hyper_util::client::legacy::connect::capture_connection;
use laneway_core::{Name, PluginDigest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::body::{Bounds, LimitedBody};
use super::connect::ConnectError;
use super::target::Target;
use super::{Clients, PooledClient, mock, trouble, unsent};
use crate::Limits;
use crate::grant::{Allowed, Reach};
use crate::mock::{LogLine, Mock};
use crate::secret::Placeholders;

/// Hosts of refused requests that are logged for one attempt; the other requests are counted.
const DENIALS_MAX: usize = 8;
/// Failed requests of one attempt that its error tells of.
const FAILURES_MAX: usize = 3;

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
    journal: Arc<Journal>,
    /// Whether the attempt has sent a request.
    pub(crate) has_sent: bool,
}

type Worker = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(Response<WasiBody>, Worker), Error>;

impl Hooks {
    pub(crate) fn new(access: Option<Arc<Access>>, deadline: Instant) -> Self {
        let slots = Arc::new(Semaphore::new(slots_max(access.as_deref())));
        Self { access, slots, deadline, journal: Arc::default(), has_sent: false }
    }

    /// Requests under way, those included whose responses are not read or dropped yet.
    pub(crate) fn under_way(&self) -> usize {
        slots_max(self.access.as_deref()) - self.slots.available_permits()
    }

    /// Gets ready for the next attempt.
    pub(crate) fn renew(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.journal = Arc::default();
        self.has_sent = false;
        if self.under_way() > 0 {
            // Responses that an earlier attempt has left count for that one.
            self.slots = Arc::new(Semaphore::new(slots_max(self.access.as_deref())));
        }
    }

    /// Says how many refused requests the log does not have.
    pub(crate) fn close(&self) {
        let more = std::mem::take(&mut self.journal.noted().more);
        if let Some(access) = &self.access
            && more > 0
        {
            access.warn(&format!("refused {more} further requests"));
        }
    }

    /// What came of requests that failed, if any did.
    pub(crate) fn failed(&self) -> Option<String> {
        let failed = std::mem::take(&mut self.journal.noted().failed);
        (!failed.is_empty()).then(|| Vec::from(failed).join("; "))
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
                self.journal.denied(&access, &target, || format!("refused a {method} request to {target}: {why}"));
                return Err(Error::HttpRequestDenied);
            }
        };
        target.write(request)?;
        // Not waited for: a guest that holds all of them would wait for itself.
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Error::ConnectionLimitReached)?;
        Ok(Admitted { access, target, reach, slot, deadline: self.deadline, journal: Arc::clone(&self.journal) })
    }

    fn mock(&self) -> Option<Arc<dyn Mock>> {
        self.access.as_ref().and_then(|access| access.clients.mock().cloned())
    }
}

/// Requests that may be under way at once.
fn slots_max(access: Option<&Access>) -> usize {
    access.map_or(0, |access| access.limits.http_concurrent_max).min(Semaphore::MAX_PERMITS)
}

/// A request that may go out.
struct Admitted {
    access: Arc<Access>,
    target: Target,
    reach: Reach,
    slot: OwnedSemaphorePermit,
    deadline: Instant,
    journal: Arc<Journal>,
}

/// What went wrong with the requests of one attempt.
#[derive(Default)]
struct Journal(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    /// Hosts of refused requests that the log has. A guest may send them by the thousand, and each line has text of its
    /// own.
    logged: BTreeSet<String>,
    more: u64,
    /// Requests that failed, in words, the last ones.
    failed: VecDeque<String>,
}

impl Journal {
    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what a failed request came to.
    fn failed(&self, target: &Target, words: &str) {
        let failed = &mut self.noted().failed;
        let text = format!("{target}: {words}");
        if !failed.contains(&text) {
            failed.push_back(text);
        }
        if failed.len() > FAILURES_MAX {
            failed.pop_front();
        }
    }

    /// Logs the first refusal of a host, and counts the others.
    fn denied(&self, access: &Access, target: &Target, text: impl FnOnce() -> String) {
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
    let Admitted { access, target, reach, slot, deadline, journal } = admitted;
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
        Ok(Err(error)) => return Err(explain(&access, &target, &journal, &error)),
        // Without a connection (name, address, TLS) nothing was sent, and the guest may say so.
        Err(_) if connection.connection_metadata().is_none() => return Err(Error::ConnectionTimeout),
        Err(_) => return Err(Error::HttpResponseTimeout),
    };
    access.placeholders.conceal(response.headers_mut());
    // The status is there, whatever is wrong with the body: whether the message has arrived is told by it.
    let unreadable = if has_secrets { check_encoding(response.headers()).err() } else { None };
    let bounds = Bounds {
        bytes_max: limits.http_response_bytes_max,
        between: between.min(limits.http_between_bytes_timeout),
        deadline,
    };
    let placeholders = Arc::clone(&access.placeholders);
    let response =
        response.map(|body| LimitedBody::new(body, bounds, unreadable, placeholders, slot).boxed_unsync());
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
    journal: &Journal,
    error: &hyper_util::client::legacy::Error,
) -> Error {
    let words = trouble::in_words(error);
    tracing::debug!(subscription = %access.name, %target, error = words, "the request failed");
    journal.failed(target, &words);
    for cause in trouble::causes(error) {
        if let Some(error) = cause.downcast_ref::<ConnectError>() {
            return refused(access, target, journal, error);
        }
        if let Some(error) = cause.downcast_ref::<rustls::Error>() {
            return match error {
                rustls::Error::InvalidCertificate(_) => Error::TlsCertificateError,
                rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
                    alert_id: Some(u8::from(*alert)),
                    alert_message: Some(error.to_string()),
                },
                _ => Error::TlsProtocolError,
            };
        }
        if let Some(error) = cause.downcast_ref::<hyper::Error>() {
            return if error.is_parse() { Error::HttpProtocolError } else { Error::ConnectionTerminated };
        }
    }
    if error.is_connect() { Error::DestinationUnavailable } else { Error::ConnectionTerminated }
}

fn refused(access: &Access, target: &Target, journal: &Journal, error: &ConnectError) -> Error {
    match error {
        ConnectError::Refused { host, address, kind } => {
            journal.denied(access, target, || {
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
        ConnectError::Connect { failures, .. } => {
            let all = |kind| failures.iter().all(|(_, error)| error.kind() == kind);
            if all(ErrorKind::ConnectionRefused) {
                Error::ConnectionRefused
            } else if all(ErrorKind::TimedOut) {
                Error::ConnectionTimeout
            } else {
                Error::DestinationUnavailable
            }
        }
        ConnectError::Timeout => Error::ConnectionTimeout,
    }
}
