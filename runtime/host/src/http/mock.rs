//! Requests that are answered here, and sent nowhere.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::mock::{HttpAnswer, HttpRequest, Mock};

/// What is kept of a request's body, in bytes.
const BODY_KEPT_BYTES: usize = 1 << 20;

/// Reads a request to its end, as the network would, and has it answered.
pub(super) async fn answer(
    mock: Arc<dyn Mock>,
    request: Request<WasiBody>,
    deadline: Instant,
) -> Result<Response<WasiBody>, Error> {
    let read = tokio::time::timeout_at(deadline.into(), read(request)).await;
    match mock.answer(read.map_err(|_| Error::HttpResponseTimeout)??) {
        HttpAnswer::Timeout => Err(Error::HttpResponseTimeout),
        HttpAnswer::Refused => Err(Error::ConnectionRefused),
        HttpAnswer::Response { status, headers, body } => respond(status, headers, body),
    }
}

async fn read(request: Request<WasiBody>) -> Result<HttpRequest, Error> {
    let (head, mut body) = request.into_parts();
    let (mut kept, mut body_bytes) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            body_bytes += data.len() as u64;
            kept.extend_from_slice(&data[..data.len().min(BODY_KEPT_BYTES - kept.len())]);
        }
    }
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    Ok(HttpRequest {
        method: head.method.to_string(),
        url: head.uri.to_string(),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect(),
        body: kept.freeze(),
        body_bytes,
    })
}

fn respond(status: u16, headers: Vec<(String, String)>, body: Bytes) -> Result<Response<WasiBody>, Error> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    // A status or a header that no server could send.
    response.body(body).map_err(|_| Error::HttpProtocolError)
}
