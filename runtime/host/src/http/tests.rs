//! Requests to servers on this machine.

use std::collections::{BTreeMap, HashMap};
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::header::{HeaderName, TE, TRAILER};
use laneway_core::{Name, PluginDigest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::connect::{Resolver, SystemResolver};
use super::{Access, Clients, Hooks, Network};
use crate::grant::Allowed;
use crate::manifest::Manifest;
use crate::mock::{HttpAnswer, HttpRequest, LogLine, Mock};
use crate::secret::Placeholders;
use crate::{Grants, HttpGrant, Limits, Secret};

/// A server that answers each path in its own way, and counts connections.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let heads = Arc::default();
        let kept = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&kept)));
            }
        });
        Self { port, connections, heads }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, heads: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        head.extend_from_slice(&buffer[..read]);
        if !head.windows(4).any(|window| window == b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
        heads.lock().unwrap().push(text.clone());
        let answer = match text.split(' ').nth(1).unwrap() {
            "/moved" => {
                "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
            "/echo" => {
                let sent = text.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap();
                format!("HTTP/1.1 200 OK\r\nx-sent: <{sent}>\r\ncontent-length: 0\r\n\r\n")
            }
            "/packed" => "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "/spaced" => "HTTP/1.1 200 OK\r\nX-Foo : bar\r\nContent-Length : 2\r\n\r\nok".to_owned(),
            "/folded" => "HTTP/1.1 200 OK\r\nx-foo: a\r\n\tb\r\n c\r\ncontent-length: 2\r\n\r\nok".to_owned(),
            "/misnamed" => "HTTP/1.1 200 OK\r\nx foo: bar\r\n{}: x\r\ncontent-length: 2\r\n\r\nok".to_owned(),
            "/many" => format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", "x-foo: bar\r\n".repeat(990)),
            "/too-many" => format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-foo: bar\r\n".repeat(1_001)),
            "/failed" => format!("HTTP/1.1 503 Busy\r\ncontent-length: 5000\r\n\r\n{}", "x".repeat(5000)),
            "/just" => format!("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{}", "x".repeat(1000)),
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
    let grants = grants.iter().map(|grant| grant.parse().unwrap()).collect();
    hooks_of(grants, limits, Network::default(), Placeholders::default())
}

fn hooks_of(http: Vec<HttpGrant>, limits: Limits, network: Network, placeholders: Placeholders) -> Hooks {
    let grants = Grants { http, ..Grants::default() };
    let allowed = Allowed::new(Name::parse("test").unwrap(), grants, None, &BTreeMap::new()).unwrap();
    hooks_allowed(allowed, limits, Arc::new(network), placeholders)
}

fn hooks_allowed(allowed: Allowed, limits: Limits, network: Arc<Network>, placeholders: Placeholders) -> Hooks {
    let access = Access {
        name: Name::parse("test").unwrap(),
        digest: PluginDigest::from_hex("5e1f"),
        allowed: Arc::new(allowed),
        placeholders: Arc::new(placeholders),
        clients: Clients::new(network, limits.http_connections_max),
        limits,
    };
    Hooks::new(Some(Arc::new(access)), Instant::now() + Duration::from_secs(20))
}

/// Names that are there for a test: each lookup of a name takes the next of its answers, the last one for ever.
#[derive(Default)]
struct Names {
    answers: Mutex<HashMap<String, Vec<IpAddr>>>,
    lookups: AtomicUsize,
}

impl Names {
    fn of(names: &[(&str, &[&str])]) -> Arc<Self> {
        let answers = names.iter().map(|(name, addresses)| {
            ((*name).to_owned(), addresses.iter().rev().map(|address| address.parse().unwrap()).collect())
        });
        Arc::new(Self { answers: Mutex::new(answers.collect()), lookups: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, host: &str, port: u16, _: OwnedSemaphorePermit) -> std::io::Result<Vec<SocketAddr>> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let Some(left) = answers.get_mut(host) else { return Err(std::io::ErrorKind::NotFound.into()) };
        let address = if left.len() > 1 { left.pop() } else { left.last().copied() };
        Ok(address.map(|address| (address, port).into()).into_iter().collect())
    }
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
    let at = |reach: HttpGrant| {
        let network = Network::resolving(Names::of(&[("inner.example.com", &["127.0.0.1"])]));
        hooks_of(vec![reach], Limits::default(), network, Placeholders::default())
    };
    let url = format!("http://inner.example.com:{port}/");
    // The name is granted, but as one of the public internet.
    let public: HttpGrant = format!("http://inner.example.com:{port}").parse().unwrap();
    let answer = get(&mut at(public.clone()), &url).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    assert_eq!(server.connections(), 0);
    // Granted by its name, and with what lies behind it.
    get(&mut at(public.with_private(true)), &url).await.unwrap();
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
    for (path, status, bytes) in [("large", 200, 0), ("endless", 200, 1000), ("failed", 503, 1000)] {
        let mut response = ask(&mut hooks, &format!("{origin}/{path}"), RequestOptions::default()).await.unwrap();
        assert_eq!(response.status(), status, "the status comes, however large the body");
        let mut read = 0;
        let error = loop {
            match response.body_mut().frame().await.expect("an error, and no end") {
                Ok(frame) => read += frame.data_ref().unwrap().len(),
                Err(error) => break error,
            }
        };
        if path == "large" {
            // It says 2,000 bytes and sends none.
            assert!(matches!(error, Error::ConnectionReadTimeout), "{error:?}");
        } else {
            assert!(matches!(error, Error::HttpResponseBodySize(Some(1000))), "{path}: {error:?}");
        }
        assert_eq!(read, bytes, "{path}: what fits");
        assert!(response.body_mut().frame().await.is_none());
    }
    let just = get(&mut hooks, &format!("{origin}/just")).await.unwrap();
    assert_eq!(just.len(), "200 ".len() + 1000);
    let answer = get(&mut hooks, &format!("{origin}/stalls")).await;
    assert!(matches!(answer, Err(Error::ConnectionReadTimeout)), "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_well_formed_is_read_as_other_clients_read_it() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    for path in ["spaced", "folded", "misnamed", "many"] {
        let response = ask(&mut hooks, &format!("{origin}/{path}"), RequestOptions::default()).await;
        let response = response.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        assert_eq!(response.status(), 200, "{path}");
        let foo = response.headers().get("x-foo").map(|value| value.to_str().unwrap().to_owned());
        match path {
            "misnamed" => assert_eq!(foo, None),
            "folded" => assert!(foo.is_some_and(|foo| foo.starts_with('a') && foo.ends_with('c'))),
            _ => assert_eq!(foo.as_deref(), Some("bar"), "{path}"),
        }
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok", "{path}");
    }
    let answer = get(&mut hooks, &format!("{origin}/too-many")).await;
    assert!(matches!(answer, Err(Error::HttpProtocolError)), "{answer:?}");
    let failed = hooks.failed().unwrap();
    assert!(failed.starts_with(&origin) && failed.contains("head is too large"), "{failed}");
}

#[tokio::test]
async fn no_timeout_of_the_guest_outlasts_the_attempt() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    hooks.renew(Instant::now() + Duration::from_millis(100));
    let hour = Some(Duration::from_secs(3600));
    let options = RequestOptions { connect_timeout: hour, first_byte_timeout: hour, between_bytes_timeout: hour };
    let began = Instant::now();
    let answer = ask(&mut hooks, &format!("{origin}/silent"), options).await;
    assert!(matches!(answer, Err(Error::HttpResponseTimeout)));
    hooks.renew(Instant::now() + Duration::from_millis(100));
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
    for name in DEFAULT_FORBIDDEN_HEADERS.iter().chain(&[TE, TRAILER, HeaderName::from_static("proxy-anything")]) {
        assert!(hooks.is_forbidden_header(name), "{name}");
    }
    assert!(hooks.set_host_header());
}

#[tokio::test]
async fn no_name_leads_to_an_address_that_is_not_public() {
    let server = Server::start().await;
    let port = server.port;
    for address in [
        "127.0.0.1",
        "127.8.9.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
    ] {
        let network = Network::resolving(Names::of(&[("x.example.com", &[address])]));
        let grant = format!("http://*.example.com:{port}").parse().unwrap();
        let mut hooks = hooks_of(vec![grant], Limits::default(), network, Placeholders::default());
        let answer = get(&mut hooks, &format!("http://x.example.com:{port}/")).await;
        assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{address}: {answer:?}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn numbers_that_some_read_as_addresses_are_no_hosts() {
    let server = Server::start().await;
    let port = server.port;
    // All of them are 127.0.0.1 to somebody, or hide it. The widest grants that can be written do not cover them.
    let mut hooks = hooks(
        &[
            format!("http://*.example.com:{port}"),
            format!("http://localhost:{port}"),
            format!("http://127.0.0.2:{port}"),
        ],
        Limits::default(),
    );
    for host in [
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "127.0.0.1.example.org",
        "localhost.",
    ] {
        let answer = get(&mut hooks, &format!("http://{host}:{port}/")).await;
        assert!(matches!(answer, Err(Error::HttpRequestDenied)), "{host}: {answer:?}");
        assert!(
            host.starts_with('[')
                || host.ends_with("org")
                || format!("http://{host}").parse::<HttpGrant>().is_err(),
            "{host}"
        );
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_name_that_resolves_differently_the_next_time_gains_nothing() {
    let server = Server::start().await;
    let port = server.port;
    // What stands for the good address must be one that a test can connect to.
    let names = Names::of(&[("localhost", &["127.0.0.1", "10.0.0.1"])]);
    let network = Network::resolving(names.clone());
    let grant = format!("http://localhost:{port}").parse().unwrap();
    let mut hooks = hooks_of(vec![grant], small(), network, Placeholders::default());
    let url = format!("http://localhost:{port}");
    // It has no length, and so its connection is not used again.
    let answer = get(&mut hooks, &format!("{url}/endless")).await;
    assert!(matches!(answer, Err(Error::HttpResponseBodySize(_))), "{answer:?}");
    assert_eq!(names.lookups.load(Ordering::SeqCst), 1, "what was checked is what was connected to");
    let answer = get(&mut hooks, &url).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    assert_eq!((names.lookups.load(Ordering::SeqCst), server.connections()), (2, 1));
}

/// A request as it is made by hand.
async fn send(hooks: &mut Hooks, request: hyper::http::request::Builder) -> Result<String, Error> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let request = request.body(body).unwrap();
    let (response, _) = Box::into_pin(hooks.send_request(request, None, Box::new(ready(Ok(()))))).await?;
    let headers = format!("{:?}", response.headers());
    let body = response.into_body().collect().await?.to_bytes();
    Ok(format!("{headers} {}", String::from_utf8_lossy(&body)))
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
async fn a_method_that_is_not_granted_is_denied() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let grant = origin.parse::<HttpGrant>().unwrap().with_methods(["POST"]).unwrap();
    let mut hooks = hooks_of(vec![grant], Limits::default(), Network::default(), Placeholders::default());
    let of = |method: &str| Request::builder().method(method).uri(&origin);
    assert!(matches!(send(&mut hooks, of("GET")).await, Err(Error::HttpRequestDenied)));
    assert_eq!(server.connections(), 0);
    send(&mut hooks, of("POST")).await.unwrap();
    let access = hooks.access().unwrap();
    let port = server.port;
    let why = access.allowed.request(&hyper::Method::GET, false, "127.0.0.1", port).unwrap_err();
    let line = format!("grants.http = [{{ url = \"{origin}\", methods = [\"POST\", \"GET\"] }}]");
    assert!(why.contains(&line), "{why}");
    let why = access.allowed.request(&hyper::Method::GET, true, "x.org", 443).unwrap_err();
    assert!(why.contains("methods = [\"POST\"] }, \"https://x.org\"]"), "{why}");
}

#[tokio::test]
async fn a_secret_is_in_what_the_server_gets_and_in_nothing_that_the_guest_gets() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let token = Name::parse("TOKEN").unwrap();
    let secrets = BTreeMap::from([(token.clone(), Secret::new("s3cr3t-t0k3n").unwrap())]);
    let mut config = BTreeMap::from([("auth".to_owned(), "Bearer {secret:TOKEN}".to_owned())]);
    let grants = Grants { secrets: [token].into(), ..Grants::default() };
    let allowed = Allowed::new(Name::parse("test").unwrap(), grants, None, &config).unwrap();
    let placeholders = Placeholders::fill(&mut config, &secrets, &allowed).unwrap();
    let shown = &config["auth"];
    assert!(!shown.contains("s3cr3t"));
    let mut hooks = hooks_of(vec![origin.parse().unwrap()], Limits::default(), Network::default(), placeholders);
    let answer = send(&mut hooks, Request::builder().uri(&origin).header("authorization", shown)).await.unwrap();
    let head = server.heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("authorization: Bearer s3cr3t-t0k3n\r\n"), "{head}");
    // This server answers with the head that it got.
    assert!(answer.contains("authorization: Bearer ************"), "{answer}");
    // And here with a header of its own.
    let echo = Request::builder().uri(format!("{origin}/echo")).header("authorization", shown);
    let answer = send(&mut hooks, echo).await.unwrap();
    assert!(answer.contains(shown.as_str()) && !answer.contains("s3cr3t"), "{answer}");
    // Not in the path: a URL is logged on its way.
    let path = format!("{origin}/{}", shown.strip_prefix("Bearer ").unwrap());
    get(&mut hooks, &path).await.unwrap();
    let head = server.heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("GET /laneway-secret-") && !head.contains("s3cr3t"), "{head}");
}

/// Answers with what it was asked, or as the path says.
struct Echo;

impl Mock for Echo {
    fn answer(&self, request: HttpRequest) -> HttpAnswer {
        match request.url.rsplit('/').next() {
            Some("late") => HttpAnswer::Timeout,
            Some("gone") => HttpAnswer::Refused,
            Some("odd") => HttpAnswer::Response {
                status: 200,
                headers: vec![("a b".to_owned(), String::new())],
                body: Bytes::new(),
            },
            _ => {
                let headers = vec![("x-method".to_owned(), request.method)];
                HttpAnswer::Response { status: 418, headers, body: Bytes::from(request.url) }
            }
        }
    }

    fn log(&self, _: LogLine) {}
}

#[tokio::test]
async fn a_mock_answers_for_hosts_that_nobody_granted_and_that_are_not_there() {
    let network = Network::mocked(Arc::new(Echo));
    let anything = Allowed::anything(Name::parse("test").unwrap(), None, true);
    let mut hooks = hooks_allowed(anything, Limits::default(), Arc::new(network), Placeholders::default());
    assert_eq!(get(&mut hooks, "https://nowhere.invalid/x").await.unwrap(), "418 https://nowhere.invalid/x");
    for (path, wants) in [
        ("late", Error::HttpResponseTimeout),
        ("gone", Error::ConnectionRefused),
        ("odd", Error::HttpProtocolError),
    ] {
        let answer = get(&mut hooks, &format!("https://nowhere.invalid/{path}")).await.unwrap_err();
        assert_eq!(format!("{answer:?}"), format!("{wants:?}"), "{path}");
    }
}

/// Knows one name, and is asked for others for ever: as a name server that does not answer, it keeps each place.
#[derive(Default)]
struct Silent {
    places: Mutex<Vec<OwnedSemaphorePermit>>,
}

#[async_trait]
impl Resolver for Silent {
    async fn resolve(
        &self,
        host: &str,
        port: u16,
        place: OwnedSemaphorePermit,
    ) -> std::io::Result<Vec<SocketAddr>> {
        if host == "there.example.com" {
            return Ok(vec![([127, 0, 0, 1], port).into()]);
        }
        self.places.lock().unwrap().push(place);
        std::future::pending().await
    }
}

#[tokio::test]
async fn names_that_nobody_answers_for_keep_no_more_than_their_plugins_lookups() {
    let server = Server::start().await;
    let port = server.port;
    let silent = Arc::new(Silent::default());
    let network = Arc::new(Network::resolving(silent.clone()));
    let plugin = || {
        let grant = format!("http://*.example.com:{port}").parse::<HttpGrant>().unwrap().with_private(true);
        let grants = Grants { http: vec![grant], ..Grants::default() };
        let allowed = Allowed::new(Name::parse("test").unwrap(), grants, None, &BTreeMap::new()).unwrap();
        hooks_allowed(allowed, Limits::default(), Arc::clone(&network), Placeholders::default())
    };
    let (mut hostile, mut neighbour) = (plugin(), plugin());
    // It does not wait for any of them.
    let now = RequestOptions { first_byte_timeout: Some(Duration::from_nanos(1)), ..RequestOptions::default() };
    for i in 0..100 {
        let answer = ask(&mut hostile, &format!("http://n{i}.example.com:{port}/"), now).await.map(drop);
        assert!(matches!(answer, Err(Error::ConnectionTimeout)), "{answer:?}");
    }
    assert_eq!(silent.places.lock().unwrap().len(), 8);
    get(&mut neighbour, &format!("http://there.example.com:{port}/")).await.unwrap();
    silent.places.lock().unwrap().clear();
    get(&mut hostile, &format!("http://there.example.com:{port}/")).await.unwrap();
}

#[test]
fn a_lookup_that_nobody_waits_for_any_longer_has_its_place_until_it_is_over() {
    // The only thread for what blocks is taken: the lookup stays in the queue.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (free, taken) = std::sync::mpsc::channel::<()>();
        let blocked = tokio::task::spawn_blocking(move || taken.recv().is_err());
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let lookup = SystemResolver.resolve("localhost", 80, place);
        assert!(tokio::time::timeout(Duration::from_millis(20), lookup).await.is_err());
        assert_eq!(places.available_permits(), 0);
        drop(free);
        blocked.await.unwrap();
        drop(tokio::time::timeout(Duration::from_secs(20), places.acquire()).await.unwrap());
    });
}

#[tokio::test]
async fn one_host_has_one_spelling_and_its_connection_is_used_again() {
    let server = Server::start().await;
    let port = server.port;
    let origins = [format!("http://localhost:{port}"), format!("http://127.0.0.1:{port}")];
    let mut hooks = hooks(&origins, Limits::default());
    for authority in [
        format!("localhost:0{port}"),
        format!("localhost:+{port}"),
        format!("localhost:00000000{port}"),
        format!("[127.0.0.1]:{port}"),
        format!("[127.0.0.1]admin.corp:{port}"),
        "localhost:".to_owned(),
        "localhost:99999".to_owned(),
        "localhost:abc".to_owned(),
    ] {
        let uri = hyper::Uri::builder().scheme("http").authority(authority.as_str()).path_and_query("/").build();
        let Ok(uri) = uri else { continue };
        let answer = send(&mut hooks, Request::builder().uri(uri)).await;
        assert!(matches!(answer, Err(Error::HttpRequestUriInvalid)), "{authority}: {answer:?}");
    }
    assert_eq!(server.connections(), 0);
    for host in ["localhost", "LOCALHOST", "LocalHost"] {
        let uri = format!("http://{host}:{port}/");
        let answer = send(&mut hooks, Request::builder().uri(&uri).header("host", format!("{host}:{port}"))).await;
        assert!(answer.unwrap().contains(&format!("host: localhost:{port}\r\n")));
        // The client takes a connection back in a task of its own.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn connections_of_one_plugin_are_limited_those_that_are_kept_included() {
    let server = Server::start().await;
    let port = server.port;
    let names: Vec<String> = (0..5).map(|i| format!("n{i}.example.com")).collect();
    let answers: Vec<(&str, &[&str])> =
        names.iter().map(|name| (name.as_str(), ["127.0.0.1"].as_slice())).collect();
    let grant = format!("http://*.example.com:{port}").parse::<HttpGrant>().unwrap().with_private(true);
    let limits = Limits { http_connections_max: 2, ..Limits::default() };
    let mut hooks = hooks_of(vec![grant], limits, Network::resolving(Names::of(&answers)), Placeholders::default());
    let soon = Some(Duration::from_millis(200));
    let options = RequestOptions { first_byte_timeout: soon, ..RequestOptions::default() };
    for (i, name) in names.iter().enumerate() {
        let answer = ask(&mut hooks, &format!("http://{name}:{port}/"), options).await;
        match answer {
            Ok(response) => drop(response.into_body().collect().await.unwrap()),
            Err(Error::ConnectionTimeout) if i >= 2 => {}
            Err(error) => panic!("{i}: {error:?}"),
        }
    }
    assert_eq!(server.connections(), 2);
    // What is open already is used.
    get(&mut hooks, &format!("http://{}:{port}/", names[0])).await.unwrap();
}

/// Every name has these addresses.
struct Everything(Vec<IpAddr>);

impl Everything {
    fn at(addresses: &[&str]) -> Network {
        Network::resolving(Arc::new(Self(addresses.iter().map(|address| address.parse().unwrap()).collect())))
    }
}

#[async_trait]
impl Resolver for Everything {
    async fn resolve(&self, _: &str, port: u16, _: OwnedSemaphorePermit) -> std::io::Result<Vec<SocketAddr>> {
        Ok(self.0.iter().map(|address| (*address, port).into()).collect())
    }
}

/// Takes no connection at this address and says nothing: its queue is full.
async fn black_hole(address: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(0).unwrap();
    let mut inside = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        inside.push(connected.unwrap());
    }
    (listener, inside)
}

#[tokio::test]
async fn a_dead_address_of_a_name_costs_its_head_start_only() {
    let server = Server::start().await;
    let port = server.port;
    let _silent = black_hole(SocketAddr::from(([127, 0, 0, 2], port))).await;
    for addresses in [
        ["::1", "127.0.0.1"].as_slice(),
        &["127.0.0.2", "127.0.0.1"],
        &["127.0.0.3", "127.0.0.2", "::1", "127.0.0.1"],
    ] {
        let grant = format!("http://x.example.com:{port}").parse::<HttpGrant>().unwrap().with_private(true);
        let network = Everything::at(addresses);
        let mut hooks = hooks_of(vec![grant], Limits::default(), network, Placeholders::default());
        let began = Instant::now();
        let answer = get(&mut hooks, &format!("http://x.example.com:{port}/")).await;
        assert!(answer.is_ok(), "{addresses:?}: {answer:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "{addresses:?}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn when_no_address_of_a_name_answers_the_error_names_each() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let grant = format!("http://x.example.com:{port}").parse::<HttpGrant>().unwrap().with_private(true);
    let network = Everything::at(&["127.0.0.1", "127.0.0.3", "127.0.0.4"]);
    let mut hooks = hooks_of(vec![grant], Limits::default(), network, Placeholders::default());
    let answer = get(&mut hooks, &format!("http://x.example.com:{port}/")).await;
    assert!(matches!(answer, Err(Error::ConnectionRefused)), "{answer:?}");
    let failed = hooks.failed().unwrap();
    for address in ["127.0.0.1", "127.0.0.3", "127.0.0.4"] {
        assert!(failed.contains(&format!("{address}:{port}: ")), "{failed}");
    }
    assert_eq!(hooks.failed(), None, "it is told once");
}

#[tokio::test]
async fn each_address_of_a_name_is_looked_at_before_any_is_connected_to() {
    let server = Server::start().await;
    let port = server.port;
    let url = format!("http://localhost:{port}/");
    let asked = async |addresses: &[&str]| {
        let grant = vec![format!("http://localhost:{port}").parse().unwrap()];
        let mut hooks = hooks_of(grant, Limits::default(), Everything::at(addresses), Placeholders::default());
        get(&mut hooks, &url).await
    };
    let answer = asked(&["10.0.0.5", "169.254.169.254"]).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    // Of these, it goes to the one that is granted.
    assert!(asked(&["10.0.0.5", "127.0.0.1", "169.254.169.254"]).await.is_ok());
    let public: HttpGrant = format!("http://x.example.com:{port}").parse().unwrap();
    let network = Everything::at(&["127.0.0.1", "::1"]);
    let mut hooks = hooks_of(vec![public], Limits::default(), network, Placeholders::default());
    let answer = get(&mut hooks, &format!("http://x.example.com:{port}/")).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    assert_eq!(server.connections(), 1);
}

/// A server that speaks TLS with this certificate, and the network of a node that trusts its authority.
struct Secure {
    port: u16,
    certificate: rustls::pki_types::CertificateDer<'static>,
}

impl Secure {
    fn start(names: &[&str], edit: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        edit(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        let config = Arc::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            for stream in listener.incoming().flatten() {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream);
                // A client that does not trust the certificate goes away in the middle of the handshake.
                if stream.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
                }
            }
        });
        Self { port, certificate }
    }

    /// Asks it, as a node that trusts its certificate or not. Answers with what the error says.
    async fn ask(&self, trusts: bool) -> Result<String, (Error, String)> {
        let mut roots = rustls::RootCertStore::empty();
        if trusts {
            roots.add(self.certificate.clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut network = Network::resolving(Arc::new(SystemResolver));
        network.tls = Ok(config).into();
        let origin = format!("https://localhost:{}", self.port);
        let grants = vec![origin.parse().unwrap()];
        let mut hooks = hooks_of(grants, Limits::default(), network, Placeholders::default());
        match get(&mut hooks, &origin).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err((error, hooks.failed().unwrap())),
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_is_told_with_the_reason() {
    assert_eq!(Secure::start(&["localhost"], |_| {}).ask(true).await.unwrap(), "204 ");
    let told = async |server: Secure, trusts| match server.ask(trusts).await {
        Err((Error::TlsCertificateError, words)) => words,
        other => panic!("{other:?}"),
    };
    let words = told(Secure::start(&["localhost"], |_| {}), false).await;
    assert!(words.contains("of an authority that this system does not know"), "{words}");
    let words = told(Secure::start(&["a.example.com", "b.example.com"], |_| {}), true).await;
    assert!(words.contains("is for `a.example.com`, `b.example.com`, and not for `localhost`"), "{words}");
    let words =
        told(Secure::start(&["localhost"], |it| it.not_after = rcgen::date_time_ymd(2020, 2, 3)), true).await;
    assert!(words.contains("expired at 2020-02-03T00:00:00Z"), "{words}");
    let words =
        told(Secure::start(&["localhost"], |it| it.not_before = rcgen::date_time_ymd(2999, 1, 1)), true).await;
    assert!(words.contains("is not valid before 2999-01-01T00:00:00Z"), "{words}");
}

/// Takes what is logged.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn begin(&self) -> tracing::subscriber::DefaultGuard {
        let logged = self.clone();
        let writer = move || logged.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(writer).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn refused_requests_are_logged_once_for_each_host_of_an_attempt() {
    let logged = Logged::default();
    let _guard = logged.begin();
    let mut hooks = hooks(&["https://api.example.com".to_owned()], Limits::default());
    for _ in 0..2 {
        for i in 0..1_000 {
            let answer = get(&mut hooks, &format!("https://n{}.example.org/", i % 3)).await;
            assert!(matches!(answer, Err(Error::HttpRequestDenied)));
        }
        hooks.close();
        let text = logged.text();
        assert_eq!(text.matches("refused a GET request to https://n1.example.org: ").count(), 1, "{text}");
        assert!(text.lines().count() == 4 && text.contains("refused 997 further requests"), "{text}");
        assert!(text.lines().all(|line| line.contains("subscription=test plugin=5e1f")), "{text}");
        for i in 0..1_000 {
            drop(get(&mut hooks, &format!("https://m{i}.example.org/")).await);
        }
        assert!(logged.text().lines().count() < 10);
        // As before the next attempt.
        hooks.renew(Instant::now() + Duration::from_secs(20));
    }
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

#[tokio::test]
async fn the_line_for_a_private_address_widens_the_grant_that_is_there_and_by_nothing_else() {
    let logged = Logged::default();
    let _guard = logged.begin();
    let grant = "https://crm.example.com".parse::<HttpGrant>().unwrap().with_methods(["GET"]).unwrap();
    let other = "https://x.example.org".parse::<HttpGrant>().unwrap();
    let network = Network::resolving(Names::of(&[("crm.example.com", &["10.0.0.5"])]));
    let mut hooks = hooks_of(vec![grant, other], Limits::default(), network, Placeholders::default());
    let answer = get(&mut hooks, "https://CRM.example.com:443/").await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    let line = "grants.http = [{ url = \"https://crm.example.com\", methods = [\"GET\"], private = true }, \
                \"https://x.example.org\"]";
    let text = logged.text();
    assert!(text.contains(line) && text.contains("plugin=5e1f"), "{text}");
}

#[tokio::test]
async fn what_carries_a_secret_asks_for_a_plain_answer_and_takes_no_other() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let token = Name::parse("TOKEN").unwrap();
    let secrets = BTreeMap::from([(token.clone(), Secret::new("s3cr3t-t0k3n").unwrap())]);
    let mut config = BTreeMap::from([("auth".to_owned(), "Bearer {secret:TOKEN}".to_owned())]);
    let grants = Grants { secrets: [token].into(), ..Grants::default() };
    let allowed = Allowed::new(Name::parse("test").unwrap(), grants, None, &config).unwrap();
    let placeholders = Placeholders::fill(&mut config, &secrets, &allowed).unwrap();
    let grants = vec![origin.parse().unwrap()];
    let mut hooks = hooks_of(grants, Limits::default(), Network::default(), placeholders);
    let request = |path: &str| Request::builder().uri(format!("{origin}/{path}")).header("accept-encoding", "gzip");
    send(&mut hooks, request("").header("authorization", &config["auth"])).await.unwrap();
    let head = server.heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("accept-encoding: identity\r\n") && !head.contains("gzip"), "{head}");
    let answer = send(&mut hooks, request("packed").header("authorization", &config["auth"])).await;
    assert!(matches!(answer, Err(Error::HttpResponseContentCoding(_))), "{answer:?}");
    // Without one, that is the guest's own affair.
    send(&mut hooks, request("packed")).await.unwrap();
    let head = server.heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("accept-encoding: gzip\r\n"), "{head}");
}

#[tokio::test]
async fn a_mock_grants_everything_but_the_plugin_has_to_ask() {
    let network = Network::mocked(Arc::new(Echo));
    let json = r#"{"name":"p","version":"1.0.0","asks":{"http":["https://a.example.com"],"state":true}}"#;
    let manifest = Manifest::from_json(json.as_bytes()).unwrap();
    let allowed = Allowed::anything(Name::parse("test").unwrap(), Some(manifest), true);
    assert!(allowed.state().is_ok() && allowed.random().is_err());
    assert!(allowed.emit(&laneway_core::Topic::parse("a.b").unwrap()).is_err());
    let mut hooks = hooks_allowed(allowed, Limits::default(), Arc::new(network), Placeholders::default());
    assert!(get(&mut hooks, "https://a.example.com/x").await.is_ok());
    let answer = get(&mut hooks, "https://b.example.com/x").await;
    assert!(matches!(answer, Err(Error::HttpRequestDenied)), "{answer:?}");
}
