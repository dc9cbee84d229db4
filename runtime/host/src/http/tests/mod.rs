//! Requests to servers on this machine.

mod addresses;
mod answers;
mod connections;
mod grants;
mod lookups;
mod mock;
mod requests;
mod secrets;
mod tls;

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
use laneway_core::{Name, PluginDigest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::connect::{Resolver, SystemResolver};
use super::{Access, Clients, Hooks, Network};
use crate::grant::Allowed;
use crate::secret::Placeholders;
use crate::{Grants, HttpGrant, Limits};

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

/// A request as it is made by hand.
async fn send(hooks: &mut Hooks, request: hyper::http::request::Builder) -> Result<String, Error> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let request = request.body(body).unwrap();
    let (response, _) = Box::into_pin(hooks.send_request(request, None, Box::new(ready(Ok(()))))).await?;
    let headers = format!("{:?}", response.headers());
    let body = response.into_body().collect().await?.to_bytes();
    Ok(format!("{headers} {}", String::from_utf8_lossy(&body)))
}
