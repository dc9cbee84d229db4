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
use wasip2::io::poll::poll;
use wasip2::io::streams::{OutputStream, StreamError};

use crate::answer::{Answer, of_answer, of_error};
use crate::request::{credentials, headers};
use crate::settings::{Method, Settings, Target};

/// Most bytes of a body that are read, for the error's text.
const ERROR_BODY_BYTES_MAX: usize = 300;
/// Longest wait for all of them together: what the status says must not be lost to a body that trickles in.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(1);

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

/// Forwards a message, for as long as given: the head of the response is waited for no longer than the settings say.
pub fn send(settings: &Settings, item: &Item, time: Duration) -> Result<Receipt, Failure> {
    let target = &settings.target;
    match exchange(settings, item, time)? {
        Ok(answer) => of_answer(answer, credentials(item, &settings.headers), target),
        Err(error) => Err(of_error(&error, target)),
    }
}

fn exchange(settings: &Settings, item: &Item, time: Duration) -> Result<Result<Answer, ErrorCode>, Failure> {
    let watch = Stopwatch::start();
    let request = request(settings, item)?;
    let options = RequestOptions::new();
    // A host that cannot bound these bounds the attempt.
    let _ = options.set_first_byte_timeout(Some(nanos(time.min(settings.timeout))));
    let _ = options.set_between_bytes_timeout(Some(nanos(ERROR_BODY_TIMEOUT)));
    let Ok(body) = request.body() else { return Ok(Err(ErrorCode::InternalError(None))) };
    let response = match outgoing_handler::handle(request, Some(options)) {
        Ok(response) => response,
        Err(error) => return Ok(Err(error)),
    };
    let written = write(body, &item.message.body);
    // The response first: who closes the connection early may have said why.
    Ok(match wait(&response) {
        Ok(response) => Ok(read(&response, time.saturating_sub(watch.elapsed()).min(ERROR_BODY_TIMEOUT))),
        Err(error) => Err(written.err().flatten().unwrap_or(error)),
    })
}

fn request(settings: &Settings, item: &Item) -> Result<OutgoingRequest, Failure> {
    let fields = Fields::new();
    for (name, value) in headers(item, &settings.headers)? {
        fields.append(&name, value.as_bytes()).map_err(|error| {
            let text = format!("header `{name}`: {error:?}");
            // One of the message's own must not stop the others.
            match settings.headers.iter().any(|(other, _)| *other == name) {
                true => Failure::misconfigured("bad_header", text),
                false => Failure::reject("bad_header", text),
            }
        })?;
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

/// What a response says. The body of a success is not read.
fn read(response: &IncomingResponse, time: Duration) -> Answer {
    let headers = response.headers();
    let header =
        |name: &str| headers.get(name).into_iter().next().map(|value| String::from_utf8_lossy(&value).into_owned());
    let mut answer = Answer {
        status: response.status(),
        location: header("location"),
        retry_after: header("retry-after"),
        date: header("date"),
        body: String::new(),
    };
    if !answer.is_success() {
        answer.body = beginning(response, time);
    }
    answer
}

/// Beginning of a response's body, as far as it comes in time. What goes wrong with it changes nothing about what the
/// status says.
fn beginning(response: &IncomingResponse, time: Duration) -> String {
    let watch = Stopwatch::start();
    let Ok(body) = response.consume() else { return String::new() };
    let Ok(stream) = body.stream() else { return String::new() };
    let mut bytes = Vec::new();
    while bytes.len() < ERROR_BODY_BYTES_MAX {
        match stream.read((ERROR_BODY_BYTES_MAX - bytes.len()) as u64) {
            Ok(more) if more.is_empty() => {
                let left = time.saturating_sub(watch.elapsed());
                if left.is_zero() {
                    break;
                }
                let over = monotonic_clock::subscribe_duration(nanos(left));
                poll(&[&stream.subscribe(), &over]);
            }
            Ok(more) => bytes.extend_from_slice(&more),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
