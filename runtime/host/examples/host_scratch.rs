//! scratch
use std::sync::Arc;
use std::time::{Duration, Instant};
use laneway_core::*;
use laneway_host::*;
struct NoState;
#[async_trait::async_trait]
impl StateView for NoState {
    async fn get(&self, _: &str) -> Result<Option<StateEntry>, StateError> { Ok(None) }
    async fn counter(&self, _: &str) -> Result<i64, StateError> { Ok(0) }
}
#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_env_filter("info").init();
    use tokio::io::*;
    let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = l.local_addr().unwrap().port();
    let n = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let n2 = n.clone();
    tokio::spawn(async move { loop { let (mut s,_) = l.accept().await.unwrap(); n2.fetch_add(1, std::sync::atomic::Ordering::SeqCst); tokio::spawn(async move {
        let mut b=[0;8192]; let mut first=true; loop { let k = s.read(&mut b).await.unwrap_or(0); if k==0 {return}
        if first { println!("{}", String::from_utf8_lossy(&b[..k])); first=false; }
        let t = String::from_utf8_lossy(&b[..k]).to_string();
        if t.contains("/silent") { continue }
        if t.contains("\r\n\r\n") { s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap(); } } }); } });
    let bytes = std::fs::read("target/guests/wasm32-wasip2/guest/publish_http.wasm").unwrap();
    let host = Host::new(HostOptions::default()).unwrap();
    let mk = |grants: Vec<HttpGrant>, url: String, reuse| host.plugin(&bytes, PluginSpec { name: Name::parse("hook").unwrap(), kind: SubscriptionKind::Publisher,
        config: [("url".to_owned(), url)].into(), grants: Grants { http: grants }, limits: Limits::default(), reuse, payload_bytes_max: 1000 });
    println!("{}", mk(vec![], "x".into(), false).unwrap_err());
    let call = |t| Call { message: Arc::new(Message { id: MessageId::generate(), topic: Topic::parse("a.b").unwrap(), key: None, priority: Priority::NORMAL,
        payload: bytes::Bytes::from_static(b"{}"), content_type: "application/json".into(), headers: vec![], tenant: None }),
        attempt: Attempt { number:1, max:5, lane: Lane::Primary, timeout: t, maybe_duplicate: false }, state: Arc::new(NoState), interrupt: Interrupt::default() };
    let ok = format!("http://127.0.0.1:{port}");
    let p = mk(vec![ok.parse().unwrap()], format!("{ok}/hook"), false).unwrap();
    println!("validate {:?}", p.validate().await.map_err(|e| e.to_string()));
    let c: Vec<_> = (0..50).map(|_| call(Duration::from_secs(5))).collect();
    for _ in 0..3 { let t = Instant::now(); let d = p.invoke(&c).await; println!("{:?} x{} {:?}", d[0].result, d.len(), t.elapsed()); }
    println!("connections {}", n.load(std::sync::atomic::Ordering::SeqCst));
    let p = mk(vec![ok.parse().unwrap()], format!("{ok}/silent"), true).unwrap();
    let t = Instant::now(); let d = p.invoke(&[call(Duration::from_millis(300))]).await; println!("{:?} {:?}", d[0].result, t.elapsed());
    let p = mk(vec!["https://api.example.com".parse().unwrap()], format!("{ok}/hook"), true).unwrap();
    let d = p.invoke(&[call(Duration::from_millis(300))]).await; println!("{:?}", d[0].result);
}
