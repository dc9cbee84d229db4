//! A stand-in for the outside world, to try a plugin out: the sandbox is the real one, and nothing leaves it.

use bytes::Bytes;

/// Answers for the network, and takes what a node would log. Called from the threads that run guests; must not block.
pub trait Mock: Send + Sync + 'static {
    /// Answers an HTTP request of a guest. It was granted whatever it asks for, and nothing is sent.
    fn answer(&self, request: HttpRequest) -> HttpAnswer;

    /// Takes a log line of a guest, whatever its level. Lines are limited as they are on a node.
    fn log(&self, line: LogLine);
}

/// An HTTP request that a guest wanted to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// The method, in capitals.
    pub method: String,
    /// The whole URL.
    pub url: String,
    /// Names, in lower case, and values; what is not UTF-8 in a value is replaced.
    pub headers: Vec<(String, String)>,
    /// The beginning of the body: at most 1 MiB.
    pub body: Bytes,
    /// Length of the whole body, in bytes.
    pub body_bytes: u64,
}

/// What a guest gets for its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAnswer {
    /// A response.
    Response {
        /// Its status, from 100 to 999.
        status: u16,
        /// Names and values.
        headers: Vec<(String, String)>,
        /// Its body.
        body: Bytes,
    },
    /// The request was sent, and nothing came back in time. The guest learns it at once.
    Timeout,
    /// Nobody takes connections there.
    Refused,
}

/// A log line of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    /// The text, on one line.
    pub text: String,
    /// Further values as `name=value`, with spaces between; empty if there are none.
    pub fields: String,
}
