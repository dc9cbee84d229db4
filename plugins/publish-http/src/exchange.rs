//! One request and its answer, through `wasi:http`.

use std::fmt;
use std::time::Duration;

use laneway_sdk::{Failure, Item, Receipt};
use wasip2::clocks::monotonic_clock;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingResponse, OutgoingBody, OutgoingRequest, RequestOptions,
    Scheme,
};
use wasip2::io::streams::{OutputStream, StreamError};

use crate::answer::{Answer, of_answer, of_error};
use crate::request::headers;
use crate::settings::{Method, Settings, Target};

/// Most bytes of a body that are read, for the error's text.
const ERROR_BODY_BYTES_MAX: usize = 300;
/// Longest wait for them.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// Time since it was started.
pub struct Stopwatch(u64);

impl Stopwatch {
    pub fn start() -> Self {
        Self(monotonic_clock::now())
    }

    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(monotonic_clock::now().saturating_sub(self.0))
    }
}

impl fmt::Display for Target {
    /// Without path and query, which may hold what is not for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }
}

/// Forwards a message, and waits for the head of the response for as long as given.
pub fn send(settings: &Settings, item: &Item, timeout: Duration) -> Result<Receipt, Failure> {
    let target = &settings.target;
    match exchange(settings, item, timeout)? {
        Ok(answer) => of_answer(answer, target),
        Err(error) => Err(of_error(&error, target)),
    }
}

fn exchange(settings: &Settings, item: &Item, timeout: Duration) -> Result<Result<Answer, ErrorCode>, Failure> {
    let request = request(settings, item)?;
    let options = RequestOptions::new();
    // A host that cannot bound these bounds the attempt.
    let _ = options.set_first_byte_timeout(Some(nanos(timeout)));
    let _ = options.set_between_bytes_timeout(Some(nanos(timeout.min(ERROR_BODY_TIMEOUT))));
    let Ok(body) = request.body() else { return Ok(Err(ErrorCode::InternalError(None))) };
    let response = match outgoing_handler::handle(request, Some(options)) {
        Ok(response) => response,
        Err(error) => return Ok(Err(error)),
    };
    let written = write(body, &item.message.body);
    // The response first: who closes the connection early may have said why.
    Ok(match wait(&response) {
        Ok(response) => Ok(read(&response)),
        Err(error) => Err(written.err().flatten().unwrap_or(error)),
    })
}

fn request(settings: &Settings, item: &Item) -> Result<OutgoingRequest, Failure> {
    let fields = Fields::new();
    for (name, value) in headers(item, &settings.headers)? {
        fields
            .append(&name, value.as_bytes())
            .map_err(|error| Failure::misconfigured("bad_header", format_args!("header `{name}`: {error:?}")))?;
    }
    let request = OutgoingRequest::new(fields);
    let target = &settings.target;
    request
        .set_method(&method(settings.method))
        .and_then(|()| request.set_scheme(Some(&if target.https { Scheme::Https } else { Scheme::Http })))
        .and_then(|()| request.set_authority(Some(&target.authority)))
        .and_then(|()| request.set_path_with_query(Some(&target.path_and_query)))
        .map_err(|()| Failure::misconfigured("bad_url", "the host does not accept the configured `url`"))?;
    Ok(request)
}

fn method(method: Method) -> wasip2::http::types::Method {
    use wasip2::http::types::Method as Wasi;
    match method {
        Method::Post => Wasi::Post,
        Method::Put => Wasi::Put,
        Method::Patch => Wasi::Patch,
        Method::Delete => Wasi::Delete,
    }
}

/// Sends the body. The error is the cause, if the host names one.
fn write(body: OutgoingBody, bytes: &[u8]) -> Result<(), Option<ErrorCode>> {
    {
        // Dropped before the body is finished, as the contract of `wasi:http` demands.
        let stream = body.write().map_err(|()| None)?;
        write_all(&stream, bytes).map_err(|error| match error {
            StreamError::LastOperationFailed(error) => wasip2::http::types::http_error_code(&error),
            StreamError::Closed => None,
        })?;
    }
    OutgoingBody::finish(body, None).map_err(Some)
}

fn write_all(stream: &OutputStream, mut bytes: &[u8]) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let room = usize::try_from(stream.check_write()?).unwrap_or(usize::MAX);
        if room == 0 {
            stream.subscribe().block();
            continue;
        }
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        stream.write(now)?;
        bytes = later;
    }
    stream.flush()
}

fn wait(response: &FutureIncomingResponse) -> Result<IncomingResponse, ErrorCode> {
    loop {
        match response.get() {
            Some(Ok(response)) => return response,
            // It was taken before, which cannot be: the first answer ends the loop.
            Some(Err(())) => return Err(ErrorCode::InternalError(None)),
            None => response.subscribe().block(),
        }
    }
}

fn read(response: &IncomingResponse) -> Answer {
    let status = response.status();
    let headers = response.headers();
    let header = |name: &str| headers.get(name).into_iter().next().and_then(|value| String::from_utf8(value).ok());
    Answer {
        status,
        location: header("location"),
        retry_after: header("retry-after"),
        date: header("date"),
        body: if (200..300).contains(&status) { String::new() } else { beginning(response) },
    }
}

/// Beginning of a response's body, as far as it comes.
fn beginning(response: &IncomingResponse) -> String {
    let Ok(body) = response.consume() else { return String::new() };
    let Ok(stream) = body.stream() else { return String::new() };
    let mut bytes = Vec::new();
    while bytes.len() < ERROR_BODY_BYTES_MAX {
        match stream.blocking_read((ERROR_BODY_BYTES_MAX - bytes.len()) as u64) {
            Ok(more) => bytes.extend_from_slice(&more),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
