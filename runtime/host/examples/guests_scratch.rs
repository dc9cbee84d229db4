//! Scratch.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use laneway_core::*;
use laneway_host::*;
struct Empty;
#[async_trait::async_trait]
impl StateView for Empty {
    async fn get(&self, _: &str) -> Result<Option<StateEntry>, StateError> { Ok(None) }
    async fn counter(&self, _: &str) -> Result<i64, StateError> { Ok(0) }
}
fn call(topic: &str, body: &[u8], timeout: Duration) -> Call {
    Call {
        message: Arc::new(Message { id: MessageId::generate(), topic: Topic::parse(topic).unwrap(), key: Some("k ä".into()), priority: Priority::NORMAL,
            payload: body.to_vec().into(), content_type: "application/json".into(), headers: vec![Header { name: "x-own".into(), value: "1".into() }], tenant: None }),
        attempt: Attempt { number: 1, max: 3, lane: Lane::Primary, timeout, maybe_duplicate: false },
        state: Arc::new(Empty), interrupt: Interrupt::default(),
    }
}
fn main() {
    tracing_subscriber_init();
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    rt.block_on(run());
}
fn tracing_subscriber_init() {}
async fn run() {
    let dir = std::env::args().nth(1).unwrap();
    let host = Host::new(HostOptions { instances_max: 32, ..HostOptions::default() }).unwrap();
    let load = |name: &str, kind, config: &[(&str, &str)], grants: &[&str], reuse| {
        let bytes = std::fs::read(format!("{dir}/{name}.wasm")).unwrap();
        host.plugin(&bytes, PluginSpec { name: Name::parse(name).unwrap(), kind, config: config.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<BTreeMap<_, _>>(),
            grants: Grants { http: grants.iter().map(|g| g.parse().unwrap()).collect() }, limits: Limits::default(), reuse, payload_bytes_max: 1 << 20 }).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    use SubscriptionKind::{Handler, Publisher};
    let show = |name: &str, body: &str, results: &[Invocation], t: Instant| {
        for i in results {
            let text = format!("{:?}", i.result);
            println!("{name} {body:?}: {} reads={} writes={:?} adds={:?} emits={:?} {:?}", text.chars().take(200).collect::<String>(), i.effects.reads.len(),
                i.effects.writes.iter().take(2).map(|(k, v)| (k.to_string(), v.as_ref().map(|v| String::from_utf8_lossy(&v[..v.len().min(120)]).into_owned()))).collect::<Vec<_>>(),
                i.effects.adds, i.effects.emits.iter().take(1).map(|m| (m.topic.to_string(), String::from_utf8_lossy(&m.payload[..m.payload.len().min(200)]).into_owned())).collect::<Vec<_>>(), t.elapsed());
        }
    };
    let sec = Duration::from_secs(1);
    for (name, bodies) in [
        ("noop", vec![""]), ("counter", vec![""]), ("state-chain", vec![""]), ("emit", vec!["{}"]),
        ("fail", vec!["ok", "retry", "retry:0", "throttled", "throttled:500", "reject", "unknown", "misconfigured", "what"]),
        ("delay-stats", vec![r#"{"flight_id":1,"date":"2013-01-01","carrier":"UA","flight":1545,"origin":"EWR","dest":"IAH","dep_delay":75.0}"#,
            r#"{"flight_id":1,"date":"2013-01-01","carrier":"UA","flight":1545,"origin":"EWR","dest":"IAH","dep_delay":null}"#, "{"]),
        ("hostile", vec!["loop", "alloc", "trap", "unreachable", "panic at the disco", "recurse", "recurse-memory", "big-return", "big-return 9000000", "flood-log", "flood-state", "flood-emit", "flood-resources", "fine"]),
    ] {
        let plugin = load(name, Handler, &[], &[], false);
        plugin.validate().await.unwrap();
        for body in bodies {
            let t = Instant::now();
            let r = plugin.invoke(&[call("a.b", body.as_bytes(), sec)]).await;
            show(name, body, &r, t);
        }
    }
    let hostile = load("hostile", Handler, &[], &[], false);
    let t = Instant::now();
    show("hostile by topic", "", &hostile.invoke(&[call("x.trap", b"", sec)]).await, t);
    let log = load("publish-log", Publisher, &[("payload", "true")], &[], false);
    log.validate().await.unwrap();
    show("publish-log", "", &log.invoke(&[call("a.b", b"{}", sec), call("a.b", b"{}", sec)]).await, Instant::now());
    println!("{:?}", load("publish-log", Publisher, &[("payload", "si")], &[], false).validate().await.map_err(|e| e.to_string()));
    println!("{:?}", load("publish-http", Publisher, &[("headers", "X-A")], &["http://127.0.0.1:1"], false).validate().await.map_err(|e| e.to_string()));
    // a small server
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut s, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = Vec::new();
                let mut buf = [0_u8; 65536];
                loop {
                    let n = s.read(&mut buf).await.unwrap_or(0);
                    if n == 0 { return; }
                    all.extend_from_slice(&buf[..n]);
                    let text = String::from_utf8_lossy(&all).into_owned();
                    let Some(end) = text.find("\r\n\r\n") else { continue };
                    let len: usize = text.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(|v| v.parse().unwrap())).unwrap_or(0);
                    if text.len() < end + 4 + len { continue; }
                    let path = text.split(' ').nth(1).unwrap().to_owned();
                    if path == "/show" { println!("--- request\n{}\n---", text.chars().take(600).collect::<String>()); }
                    let answer: String = match path.as_str() {
                        "/show" => "HTTP/1.1 201 Created\r\nLocation: /made/1\r\nContent-Length: 2\r\n\r\nok".into(),
                        "/404" => "HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nno such".into(),
                        "/429" => "HTTP/1.1 429 Slow\r\nDate: Wed, 21 Oct 2015 07:28:00 GMT\r\nRetry-After: Wed, 21 Oct 2015 07:28:30 GMT\r\nContent-Length: 0\r\n\r\n".into(),
                        "/502" => "HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n".into(),
                        "/301" => "HTTP/1.1 301 Moved\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n".into(),
                        "/stuck" => "HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nhalf".into(),
                        "/break" => { return; }
                        "/hang" => { tokio::time::sleep(Duration::from_secs(30)).await; return; }
                        _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
                    };
                    all.clear();
                    s.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    let origin = format!("http://127.0.0.1:{port}");
    for path in ["/show", "/404", "/429", "/502", "/301", "/stuck", "/break", "/hang"] {
        let p = load("publish-http", Publisher, &[("url", &format!("{origin}{path}")), ("headers", "Authorization"), ("header.Authorization", "Bearer x")], &[&origin], false);
        p.validate().await.unwrap();
        let t = Instant::now();
        show("publish-http", path, &p.invoke(&[call("a.b", b"{\"a\":1}", sec * 3)]).await, t);
    }
    let p = load("publish-http", Publisher, &[("url", &format!("{origin}/ok"))], &[&origin], false);
    let t = Instant::now();
    show("publish-http", "big body", &p.invoke(&[call("a.b", &vec![b'x'; 3 << 20], sec * 3)]).await, t);
    let p = load("publish-http", Publisher, &[("url", "http://127.0.0.1:9/ok")], &[&origin], false);
    show("publish-http", "not granted", &p.invoke(&[call("a.b", b"", sec * 3)]).await, Instant::now());
    let p = load("publish-http", Publisher, &[("url", "http://127.0.0.1:9/ok")], &["http://127.0.0.1:9"], false);
    show("publish-http", "refused", &p.invoke(&[call("a.b", b"", sec * 3)]).await, Instant::now());
    let p = load("publish-http", Publisher, &[("url", "http://nowhere.invalid/ok")], &["http://nowhere.invalid"], false);
    show("publish-http", "dns", &p.invoke(&[call("a.b", b"", sec * 3)]).await, Instant::now());
    let p = load("publish-http", Publisher, &[("url", &format!("{origin}/hang"))], &[&origin], false);
    let t = Instant::now();
    show("publish-http", "batch of two, first hangs", &p.invoke(&[call("a.b", b"", sec), call("a.b", b"", sec)]).await, t);
    // cost
    let flight = r#"{"flight_id":1,"date":"2013-01-01","carrier":"UA","flight":1545,"origin":"EWR","dest":"IAH","dep_delay":75.0}"#;
    for (name, body, reuse) in [("noop", "", false), ("noop", "", true), ("counter", "", false), ("delay-stats", flight, false), ("delay-stats", flight, true)] {
        let plugin = load(name, Handler, &[], &[], reuse);
        let c = call("a.b", body.as_bytes(), sec);
        let mut best = f64::MAX;
        for _ in 0..7 {
            let t = Instant::now();
            for _ in 0..2000 { let r = plugin.invoke(std::slice::from_ref(&c)).await; assert!(r[0].result.is_ok()); }
            best = best.min(t.elapsed().as_secs_f64() * 1e6 / 2000.0);
        }
        println!("{name} reuse={reuse}: {best:.1} us a message");
    }
    let p = load("publish-http", Publisher, &[("url", &format!("{origin}/ok"))], &[&origin], false);
    let calls: Vec<_> = (0..100).map(|_| call("a.b", flight.as_bytes(), sec * 3)).collect();
    let t = Instant::now();
    let r = p.invoke(&calls).await;
    println!("publish-http 100: ok={} {:?}", r.iter().filter(|r| r.result.is_ok()).count(), t.elapsed());
}
