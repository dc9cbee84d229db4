//! Requests to servers on this machine.

use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use laneway_core::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::{Access, Clients, Hooks};
use crate::Limits;

/// A server that answers each path in its own way, and counts connections.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream));
            }
        });
        Self { port, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        head.extend_from_slice(&buffer[..read]);
        if !head.windows(4).any(|window| window == b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
        let answer = match text.split(' ').nth(1).unwrap() {
            "/moved" => {
                "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
            "/large" => "HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n".to_owned(),
            "/endless" => format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(5000)),
            "/stalls" => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_owned(),
            "/silent" => continue,
            _ => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()),
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn hooks(grants: &[String], limits: Limits) -> Hooks {
    let access = Access {
        name: Name::parse("test").unwrap(),
        grants: grants.iter().map(|grant| grant.parse().unwrap()).collect(),
        clients: Arc::new(Clients::default()),
        limits,
    };
    Hooks::new(Some(Arc::new(access)), Instant::now() + Duration::from_secs(20))
}

fn small() -> Limits {
    Limits {
        http_concurrent_max: 2,
        http_response_bytes_max: 1000,
        http_between_bytes_timeout: Duration::from_millis(100),
        ..Limits::default()
    }
}

async fn ask(hooks: &mut Hooks, url: &str, options: RequestOptions) -> Result<hyper::Response<WasiBody>, Error> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let request = Request::builder().uri(url).body(body).unwrap();
    let answer = Box::into_pin(hooks.send_request(request, Some(options), Box::new(ready(Ok(()))))).await;
    answer.map(|(response, _)| response)
}

async fn get(hooks: &mut Hooks, url: &str) -> Result<String, Error> {
    let response = ask(hooks, url, RequestOptions::default()).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body)))
}

#[tokio::test]
async fn a_granted_request_goes_out_over_a_connection_that_is_kept() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    for _ in 0..5 {
        let answer = get(&mut hooks, &format!("{origin}/path?q=1")).await.unwrap();
        assert!(answer.starts_with("200 GET /path?q=1 HTTP/1.1\r\n"), "{answer}");
        assert!(answer.contains(&format!("host: 127.0.0.1:{}", server.port)), "{answer}");
        // The client takes a connection back in a task of its own.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_request_that_no_grant_covers_is_denied_before_it_connects() {
    let server = Server::start().await;
    let port = server.port;
    let mut denied = hooks(&["https://api.example.com".to_owned()], Limits::default());
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        "http://api.example.com/".to_owned(),
        "https://api.example.com:8443/".to_owned(),
        "https://api.example.com.evil.org/".to_owned(),
    ] {
        assert!(matches!(get(&mut denied, &url).await, Err(Error::HttpRequestDenied)), "{url}");
    }
    let user = get(&mut denied, "https://api.example.com@127.0.0.1/").await;
    assert!(matches!(user, Err(Error::HttpRequestUriInvalid)));
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn the_address_is_looked_at_when_the_connection_is_made() {
    let server = Server::start().await;
    let port = server.port;
    // The name is granted, but as one of the public internet.
    let mut public = hooks(&[format!("http://2130706433:{port}")], Limits::default());
    let answer = get(&mut public, &format!("http://2130706433:{port}/")).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    assert_eq!(server.connections(), 0);
    // Granted by its name, and with what lies behind it.
    let access = Access {
        name: Name::parse("test").unwrap(),
        grants: vec![format!("http://2130706433:{port}").parse::<crate::HttpGrant>().unwrap().with_private(true)],
        clients: Arc::new(Clients::default()),
        limits: Limits::default(),
    };
    let mut private = Hooks::new(Some(Arc::new(access)), Instant::now() + Duration::from_secs(20));
    assert!(get(&mut private, &format!("http://2130706433:{port}/")).await.is_ok());
    let mut local = hooks(&[format!("http://localhost:{port}")], Limits::default());
    assert!(get(&mut local, &format!("http://LOCALHOST:{port}/")).await.is_ok());
}

#[tokio::test]
async fn a_redirect_is_handed_to_the_guest_and_not_followed() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    assert_eq!(get(&mut hooks, &format!("{origin}/moved")).await.unwrap(), "302 ");
}

#[tokio::test]
async fn a_body_is_limited_in_size_and_in_how_long_it_stalls() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), small());
    for path in ["large", "endless"] {
        let answer = get(&mut hooks, &format!("{origin}/{path}")).await;
        assert!(matches!(answer, Err(Error::HttpResponseBodySize(Some(1000)))), "{path}: {answer:?}");
    }
    let answer = get(&mut hooks, &format!("{origin}/stalls")).await;
    assert!(matches!(answer, Err(Error::ConnectionReadTimeout)), "{answer:?}");
}

#[tokio::test]
async fn no_timeout_of_the_guest_outlasts_the_attempt() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    hooks.deadline = Instant::now() + Duration::from_millis(100);
    let hour = Some(Duration::from_secs(3600));
    let options = RequestOptions { connect_timeout: hour, first_byte_timeout: hour, between_bytes_timeout: hour };
    let began = Instant::now();
    let answer = ask(&mut hooks, &format!("{origin}/silent"), options).await;
    assert!(matches!(answer, Err(Error::HttpResponseTimeout)));
    hooks.deadline = Instant::now() + Duration::from_millis(100);
    let response = ask(&mut hooks, &format!("{origin}/stalls"), options).await.unwrap();
    assert!(matches!(response.into_body().collect().await, Err(Error::ConnectionReadTimeout)));
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_request_whose_connection_was_not_made_in_time_was_not_sent() {
    // It takes the connection, and says nothing to the TLS handshake.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    let soon = Some(Duration::from_millis(100));
    let options = RequestOptions { first_byte_timeout: soon, ..RequestOptions::default() };
    let answer = ask(&mut hooks, &origin, options).await.map(drop);
    assert!(matches!(answer, Err(Error::ConnectionTimeout)), "{answer:?}");
}

#[tokio::test]
async fn requests_under_way_are_limited_in_number() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), small());
    let url = format!("{origin}/");
    let first = ask(&mut hooks, &url, RequestOptions::default()).await.unwrap();
    let second = ask(&mut hooks, &url, RequestOptions::default()).await.unwrap();
    let third = ask(&mut hooks, &url, RequestOptions::default()).await;
    assert!(matches!(third, Err(Error::ConnectionLimitReached)));
    drop((first, second));
    assert!(ask(&mut hooks, &url, RequestOptions::default()).await.is_ok());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_from_one_that_breaks_off() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let origin = format!("http://127.0.0.1:{port}");
    let mut gone = hooks(std::slice::from_ref(&origin), Limits::default());
    let answer = get(&mut gone, &origin).await;
    assert!(matches!(answer, Err(Error::ConnectionRefused)), "{answer:?}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            drop(stream.read(&mut buffer).await);
        }
    });
    let mut broken = hooks(std::slice::from_ref(&origin), Limits::default());
    let answer = get(&mut broken, &origin).await;
    assert!(matches!(answer, Err(Error::ConnectionTerminated)), "{answer:?}");
    let mut tls = hooks(&["https://127.0.0.1:1".to_owned()], Limits::default());
    assert!(matches!(get(&mut tls, "https://127.0.0.1:1/").await, Err(Error::ConnectionRefused)));
}

#[test]
fn a_tunnel_is_refused_and_headers_of_the_connection_stay_the_hosts() {
    let mut hooks = hooks(&["http://127.0.0.1:1".to_owned()], Limits::default());
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let request = Request::builder().method("CONNECT").uri("http://127.0.0.1:1/").body(body).unwrap();
    let mut answer = Box::into_pin(hooks.send_request(request, None, Box::new(ready(Ok(())))));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let answer = answer.as_mut().poll(&mut context);
    assert!(matches!(answer, std::task::Poll::Ready(Err(Error::HttpRequestMethodInvalid))));
    for name in &DEFAULT_FORBIDDEN_HEADERS {
        assert!(hooks.is_forbidden_header(name), "{name}");
    }
    assert!(hooks.set_host_header());
}
