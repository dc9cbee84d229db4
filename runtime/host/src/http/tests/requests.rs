//! Requests as guests may make them.

use hyper::header::{HeaderName, TE, TRAILER};
use wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS;

use super::*;

#[test]
fn a_tunnel_is_refused_and_headers_of_the_connection_stay_the_hosts() {
    let mut hooks = hooks(&["http://127.0.0.1:1".to_owned()], Limits::default());
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let request = Request::builder().method("CONNECT").uri("http://127.0.0.1:1/").body(body).unwrap();
    let mut answer = Box::into_pin(hooks.send_request(request, None, Box::new(ready(Ok(())))));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let answer = answer.as_mut().poll(&mut context);
    assert!(matches!(answer, std::task::Poll::Ready(Err(Error::HttpRequestMethodInvalid))));
    for name in DEFAULT_FORBIDDEN_HEADERS.iter().chain(&[TE, TRAILER, HeaderName::from_static("proxy-anything")]) {
        assert!(hooks.is_forbidden_header(name), "{name}");
    }
    assert!(hooks.set_host_header());
}

#[tokio::test]
async fn a_request_that_could_be_read_as_another_one_is_not_sent() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let authority = origin.strip_prefix("http://").unwrap();
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    for headers in [
        vec![("host", "evil.org")],
        vec![("host", authority), ("host", "evil.org")],
        vec![("transfer-encoding", "chunked")],
        vec![("content-length", "5"), ("content-length", "6")],
        vec![("content-length", "+5")],
        vec![("content-length", "5, 6")],
        vec![("connection", "x-secret")],
        vec![("keep-alive", "timeout=9")],
        vec![("te", "trailers")],
        vec![("trailer", "content-length")],
        vec![("upgrade", "h2c")],
        vec![("http2-settings", "x")],
        vec![("proxy-authorization", "x")],
        vec![("proxy-connection", "x")],
        vec![("proxy-status", "x")],
    ] {
        let mut request = Request::builder().uri(&origin);
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let answer = send(&mut hooks, request).await;
        assert!(matches!(answer, Err(Error::HttpProtocolError)), "{headers:?}: {answer:?}");
    }
    // The line breaks that would begin another header or another request are no part of any value, name or URL.
    assert!(Request::builder().header("a", "b\r\nc: d").body(()).is_err());
    assert!(Request::builder().header("a\r\nc", "d").body(()).is_err());
    assert!(Request::builder().uri(format!("{origin}/a b\r\nc: d")).body(()).is_err());
    for path in ["http://169.254.169.254/", "*", "evil.org:80"] {
        let uri = hyper::Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
        let Ok(uri) = uri else { continue };
        let answer = send(&mut hooks, Request::builder().uri(uri)).await;
        assert!(matches!(answer, Err(Error::HttpRequestUriInvalid)), "{path}: {answer:?}");
    }
    assert_eq!(server.connections(), 0);
    send(&mut hooks, Request::builder().uri(&origin).header("host", authority)).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_let_through_has_been_sent_and_one_that_is_refused_has_not() {
    let grant: HttpGrant = "https://crm.example.com".parse().unwrap();
    let network = Network::resolving(Names::of(&[("crm.example.com", &["10.0.0.5"])]));
    let mut hooks = hooks_of(vec![grant], Limits::default(), network, Placeholders::default());
    drop(get(&mut hooks, "https://x.example.org/").await);
    assert!(!hooks.has_sent);
    drop(get(&mut hooks, "https://crm.example.com/").await);
    assert!(hooks.has_sent);
    hooks.renew(Instant::now());
    assert!(!hooks.has_sent, "the next attempt has sent nothing yet");
}
