//! Scratch.
use std::sync::Arc;
use std::time::Duration;
use bytes::Bytes;
use laneway_core::*;
use laneway_store::postgres::*;

const BASE: &str = "postgres://postgres:secret@127.0.0.1:5432/";

async fn fresh(name: &str) -> PostgresOptions {
    use sqlx::Connection;
    let mut c = sqlx::PgConnection::connect(&format!("{BASE}postgres")).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("drop database if exists {name} with (force)"))).execute(&mut c).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("create database {name}"))).execute(&mut c).await.unwrap();
    PostgresOptions::new(format!("{BASE}{name}"))
}
fn sub(name: &str, pattern: &str) -> Subscription {
    Subscription { name: Name::parse(name).unwrap(), pattern: TopicPattern::parse(pattern).unwrap(), kind: SubscriptionKind::Handler,
        lane_threshold: Priority(0), idempotent: true, retry: RetryPolicy::default(), lease: Duration::from_secs(30), timeout: Duration::from_secs(10),
        concurrency: 2, claim_batch: 512, publish_batch: 10, review_unknown_outcome: false }
}
fn topo(subs: Vec<Subscription>) -> Topology { Topology { subscriptions: subs, payload_bytes_max: 1000 } }
fn msg(topic: &str) -> NewMessage { NewMessage::new(Topic::parse(topic).unwrap(), "{\"a\":1}") }
fn req(s: SubscriptionId, lane: Lane, limit: u32) -> ClaimRequest { ClaimRequest { subscription: s, lane, limit, lease: Duration::from_secs(30), check_markers: true } }
fn done(b: &Batch, d: &Delivery, verdict: Verdict) -> Settlement {
    Settlement { subscription: b.subscription, delivery: d.id, token: b.token, message: d.message.id.clone(), verdict, reads: vec![], writes: vec![], adds: vec![], emits: vec![] }
}
const C: Verdict = Verdict::Complete { mark: true };

#[tokio::test]
async fn exercise() {
    let o = fresh("store_pg_dev_a").await;
    assert!(!format!("{o:?}").contains("secret"));
    assert!(matches!(PostgresStore::open(o.clone()).await, Err(StoreError::SchemaOlder { found: 0, needed: 1 })));
    println!("{:?}", migrate(o.clone()).await.unwrap());
    println!("{:?}", migrate(o.clone()).await.unwrap());
    let s = PostgresStore::open(o.clone()).await.unwrap();
    assert!(s.topology().await.unwrap().is_none());
    let t = topo(vec![sub("orders", "orders.*"), sub("all", ">"), sub("exact", "orders.created"), sub("none", "zzz")]);
    let a = s.apply(&t).await.unwrap();
    assert_eq!(a, s.apply(&t).await.unwrap());
    println!("{:?}", a.subscriptions);
    let [so, sa, se, _] = [0, 1, 2, 3].map(|i: usize| a.subscriptions[i].1);
    let m = msg("orders.created");
    let e = s.enqueue(&[m.clone(), m.clone(), msg("other")]).await.unwrap();
    assert_eq!(e.iter().map(|e| e.duplicate).collect::<Vec<_>>(), [false, true, false]);
    tokio::time::timeout(Duration::from_secs(1), s.woken(so)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(1), s.woken(se)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), s.woken(so)).await.is_err());
    let mut late = msg("orders.late"); late.delay = Some(Duration::from_secs(60));
    s.enqueue(&[late.clone()]).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), s.woken(so)).await.is_err());
    assert!(s.enqueue(&[m.clone()]).await.unwrap()[0].duplicate);
    println!("next due {:?}", s.next_due(so).await.unwrap());
    let mut bad = msg("x"); bad.payload = Bytes::from(vec![b'x'; 1001]);
    println!("{}", s.enqueue(&[bad]).await.unwrap_err());
    let mut bad = msg("x"); bad.topic = Topic::from_stored("a..b".into());
    println!("{}", s.enqueue(&[bad]).await.unwrap_err());
    let mut bad = msg("x"); bad.key = Some("a\0b".into());
    println!("{}", s.enqueue(&[bad]).await.unwrap_err());
    let mut hd = msg("orders.h"); hd.headers = vec![Header { name: "x".into(), value: "y".into() }]; hd.priority = Priority(100); hd.tenant = Some("t".into()); hd.key = Some("k".into());
    let mut low = msg("orders.low"); low.priority = Priority(-5);
    s.enqueue(&[hd.clone(), low.clone()]).await.unwrap();
    let b = s.claim(req(so, Lane::Primary, 10)).await.unwrap().unwrap();
    assert_eq!(b.deliveries.len(), 2);
    assert_eq!(b.deliveries[0].message.headers, hd.headers);
    assert_eq!(b.deliveries[1].message.id, m.id);
    assert!(s.claim(req(so, Lane::Primary, 10)).await.unwrap().is_none());
    let bl = s.claim(req(so, Lane::Backfill, 10)).await.unwrap().unwrap();
    assert_eq!(bl.deliveries[0].message.id, low.id);
    let st = s.status().await.unwrap();
    println!("{}", serde_json::to_string(&st).unwrap());
    // renew
    let lost = s.renew(&[Renewal { subscription: so, token: b.token, lease: Duration::from_secs(50), deliveries: vec![b.deliveries[0].id, DeliveryId(999)] }]).await.unwrap();
    assert_eq!(lost, [(b.token, DeliveryId(999))]);
    // settle w/ retry counted, stale, dead
    let r = s.settle(&[done(&b, &b.deliveries[0], Verdict::Retry { delay: Duration::ZERO, counted: true, error: Some(ErrorText::new("boom")) }),
        done(&b, &b.deliveries[1], Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("trapped"), plugin: Some(PluginDigest::from_hex("abc")) }),
        done(&b, &b.deliveries[1], Verdict::DeadLetter { reason: Reason::TRAP, error: ErrorText::new("trapped"), plugin: None }),
        done(&bl, &bl.deliveries[0], Verdict::RELEASE),
        Settlement { token: LeaseToken(12345), ..done(&bl, &bl.deliveries[0], C) }]).await.unwrap();
    println!("{r:?}");
    println!("{:?}", s.dead_letters(&DeadLetterFilter { subscription: Some(Name::parse("orders").unwrap()), limit: 10, ..Default::default() }).await.unwrap());
    let b = s.claim(req(so, Lane::Primary, 10)).await.unwrap().unwrap();
    assert_eq!((b.deliveries.len(), b.deliveries[0].attempt), (1, 2));
    assert!(b.deliveries[0].since_first_attempt > Duration::ZERO);
    let bl = s.claim(req(so, Lane::Backfill, 10)).await.unwrap().unwrap();
    assert_eq!(bl.deliveries[0].attempt, 1);
    let n = Name::parse("ns").unwrap();
    let mut x = done(&b, &b.deliveries[0], C);
    x.reads = vec![StateRead { namespace: n.clone(), key: "k".into(), version: None }, StateRead { namespace: n.clone(), key: "absent".into(), version: None }];
    x.writes = vec![StateWrite { namespace: n.clone(), key: "k".into(), value: Some("v1".into()), version: StateVersion(7) }];
    x.adds = vec![CounterAdd { namespace: n.clone(), key: "c".into(), delta: i64::MAX }, CounterAdd { namespace: n.clone(), key: "d".into(), delta: -3 }];
    x.emits = vec![msg("orders.emitted")];
    println!("{:?}", s.settle(&[x.clone()]).await.unwrap());
    assert_eq!(s.state(&n, "k").await.unwrap().unwrap().version, StateVersion(7));
    assert!(s.state(&n, "absent").await.unwrap().is_none());
    assert_eq!(s.counter(&n, "d").await.unwrap(), -3);
    // again: lost & writes -> conflict
    println!("{:?}", s.settle(&[x.clone()]).await.unwrap());
    // stale read
    let mut y = done(&bl, &bl.deliveries[0], C);
    y.reads = vec![StateRead { namespace: n.clone(), key: "k".into(), version: Some(StateVersion(6)) }];
    y.adds = vec![CounterAdd { namespace: n.clone(), key: "c".into(), delta: 2 }];
    println!("{:?}", s.settle(&[y.clone()]).await.unwrap());
    y.reads[0].version = None;
    println!("{:?}", s.settle(&[y.clone()]).await.unwrap());
    y.reads[0].version = Some(StateVersion(7));
    println!("{:?}", s.settle(&[y.clone()]).await.unwrap());
    assert_eq!(s.counter(&n, "c").await.unwrap(), i64::MIN + 1);
    let b = s.claim(req(so, Lane::Primary, 10)).await.unwrap().unwrap();
    assert_eq!(b.deliveries[0].message.topic.as_str(), "orders.emitted");
    let mut z = done(&b, &b.deliveries[0], C);
    z.reads = vec![StateRead { namespace: n.clone(), key: "k".into(), version: Some(StateVersion(7)) }];
    z.writes = vec![StateWrite { namespace: n.clone(), key: "k".into(), value: None, version: StateVersion(8) }, StateWrite { namespace: n.clone(), key: "blind".into(), value: Some("b".into()), version: StateVersion(9) }];
    println!("{:?}", s.settle(&[z]).await.unwrap());
    assert!(s.state(&n, "k").await.unwrap().is_none());
    assert!(s.state(&n, "blind").await.unwrap().is_some());
    // duplicates: marker first
    let b = s.claim(req(sa, Lane::Primary, 1)).await.unwrap().unwrap();
    let id = b.deliveries[0].message.id.clone();
    assert!(!b.deliveries[0].processed);
    use sqlx::Connection;
    let mut c = sqlx::PgConnection::connect(&o.url).await.unwrap();
    sqlx::query("insert into laneway.marker(subscription_id, message_id) values ($1,$2)").bind(sa.0).bind(id.as_str()).execute(&mut c).await.unwrap();
    let b2 = s.claim(req(sa, Lane::Primary, 1)).await.unwrap().unwrap();
    println!("{:?}", s.settle(&[done(&b2, &b2.deliveries[0], C), done(&b, &b.deliveries[0], C), done(&b, &b.deliveries[0], C)]).await.unwrap());
    for f in [None, Some(MessageStatus::Pending), Some(MessageStatus::Processing), Some(MessageStatus::Processed), Some(MessageStatus::Failed)] {
        let l = s.messages(&MessageFilter { status: f, topic: None, limit: 100 }).await.unwrap();
        println!("{f:?} {:?}", l.iter().map(|m| (m.seq, m.status)).collect::<Vec<_>>());
    }
    println!("{:?}", s.message(&late.id).await.unwrap());
    s.heartbeat(&Name::parse("n1").unwrap()).await.unwrap();
    println!("{}", serde_json::to_string(&s.status().await.unwrap()).unwrap());
    // least privilege producer
    sqlx::raw_sql("drop role if exists producer_dev; create role producer_dev; grant usage on schema laneway to producer_dev; grant insert on laneway.message to producer_dev; set role producer_dev; insert into laneway.message(topic, payload) values ('orders.plain', 'x'::bytea); reset role; revoke all on laneway.message from producer_dev; revoke all on schema laneway from producer_dev; drop role producer_dev").execute(&mut c).await.unwrap();
    println!("{:?}", sqlx::raw_sql("update laneway.message set key = 'x'").execute(&mut c).await.unwrap_err().to_string());
    println!("{:?}", sqlx::raw_sql("insert into laneway.message(topic,payload,headers) values ('a','x','{\"a\":1}')").execute(&mut c).await.unwrap_err().to_string());
    println!("{:?}", sqlx::raw_sql("insert into laneway.message(id,topic,payload) values ('a b','a','x')").execute(&mut c).await.unwrap_err().to_string());
    let p = s.claim(req(so, Lane::Primary, 10)).await.unwrap().unwrap();
    assert_eq!(p.deliveries[0].message.topic.as_str(), "orders.plain");
    assert_eq!(p.deliveries[0].message.id.as_str().len(), 36);
    assert_eq!(&p.deliveries[0].message.id.as_str()[14..15], "7");
    // versions
    sqlx::raw_sql("insert into laneway.migration(version, description, success, checksum, execution_time) values (99,'x',true,'x',1)").execute(&mut c).await.unwrap();
    println!("{} / {}", PostgresStore::open(o.clone()).await.unwrap_err(), migrate(o.clone()).await.unwrap_err());
    let bad = PostgresOptions { url: o.url.replace("5432", "5999"), ..o.clone() };
    println!("{}", PostgresStore::open(bad).await.unwrap_err());
    let bad = PostgresOptions { url: "postgres://u:secret@h:notaport/x".into(), ..o.clone() };
    println!("{}", PostgresStore::open(bad).await.unwrap_err());
    sqlx::raw_sql("drop schema laneway cascade; create schema laneway; create table laneway.foo(a int)").execute(&mut c).await.unwrap();
    println!("{}", PostgresStore::open(o.clone()).await.unwrap_err());
    println!("round trips {}", s.round_trips());
    // kill the backends: listener reconnects, pool recovers
    sqlx::raw_sql("drop schema laneway cascade; select pg_terminate_backend(pid) from pg_stat_activity where datname = 'store_pg_dev_a' and pid <> pg_backend_pid()").execute(&mut c).await.unwrap();
    migrate(o.clone()).await.unwrap();
    for i in 0..3 { println!("{i} {:?}", s.topology().await.map_err(|e| e.to_string())); }
    let a = s.apply(&t).await.unwrap();
    s.enqueue(&[msg("orders.again")]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(2), s.woken(a.subscriptions[0].1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn race() {
    let o = fresh("store_pg_dev_b").await;
    migrate(o.clone()).await.unwrap();
    let stores = [PostgresStore::open(o.clone()).await.unwrap(), PostgresStore::open(o.clone()).await.unwrap()];
    let id = stores[0].apply(&topo(vec![sub("s", ">")])).await.unwrap().subscriptions[0].1;
    let ms: Vec<_> = (0..5000).map(|_| msg("a")).collect();
    stores[0].enqueue(&ms).await.unwrap();
    let mut tasks = vec![];
    for i in 0..8 {
        let s = stores[i % 2].clone();
        tasks.push(tokio::spawn(async move {
            let mut got = vec![];
            let mut misses = 0;
            while misses < 3 { match s.claim(req(id, Lane::Primary, 37)).await.unwrap() { Some(b) => got.extend(b.deliveries.iter().map(|d| d.id)), None => misses += 1 } }
            got
        }));
    }
    let mut all = vec![];
    for t in tasks { all.extend(t.await.unwrap()); }
    let n = all.len(); all.sort(); all.dedup();
    println!("claimed {n} distinct {}", all.len());
    assert_eq!((n, all.len()), (5000, 5000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hot_key() {
    let o = fresh("store_pg_dev_d").await;
    migrate(o.clone()).await.unwrap();
    let s = Arc::new(PostgresStore::open(o.clone()).await.unwrap());
    let id = s.apply(&topo(vec![sub("s", ">")])).await.unwrap().subscriptions[0].1;
    s.enqueue(&(0..400).map(|_| msg("a")).collect::<Vec<_>>()).await.unwrap();
    let n = Name::parse("ns").unwrap();
    let mut tasks = vec![];
    for w in 0..4i64 {
        let (s, n) = (s.clone(), n.clone());
        tasks.push(tokio::spawn(async move {
            let mut conflicts = 0; let mut v = w << 32;
            while let Some(b) = s.claim(req(id, Lane::Primary, 10)).await.unwrap() {
                loop {
                    let keys: [Arc<str>; 2] = if w % 2 == 0 { ["a".into(), "b".into()] } else { ["b".into(), "a".into()] };
                    let mut cur = vec![];
                    for k in &keys { cur.push(s.state(&n, k).await.unwrap()); }
                    let mut group = vec![];
                    for d in &b.deliveries {
                        let mut x = done(&b, d, C);
                        for (k, c) in keys.iter().zip(&mut cur) {
                            v += 1;
                            let val: i64 = c.as_ref().map_or(0, |e| String::from_utf8(e.value.to_vec()).unwrap().parse().unwrap());
                            x.reads.push(StateRead { namespace: n.clone(), key: k.clone(), version: c.as_ref().map(|e| e.version) });
                            let e = StateEntry { value: Bytes::from((val + 1).to_string()), version: StateVersion(v) };
                            x.writes.push(StateWrite { namespace: n.clone(), key: k.clone(), value: Some(e.value.clone()), version: e.version });
                            *c = Some(e);
                        }
                        x.adds.push(CounterAdd { namespace: n.clone(), key: "n".into(), delta: 1 });
                        group.push(x);
                    }
                    match s.settle(&group).await.unwrap() { SettleReport::Committed { lost, duplicates } => { assert!(lost.is_empty() && duplicates.is_empty()); break } SettleReport::Conflict(c) => { assert!(!c.stale.is_empty()); conflicts += 1 } }
                }
            }
            conflicts
        }));
    }
    let mut c = 0; for t in tasks { c += t.await.unwrap(); }
    println!("conflicts {c}");
    assert_eq!(s.state(&n, "a").await.unwrap().unwrap().value, Bytes::from("400"));
    assert_eq!(s.state(&n, "b").await.unwrap().unwrap().value, Bytes::from("400"));
    assert_eq!(s.counter(&n, "n").await.unwrap(), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput() {
    let o = fresh("store_pg_dev_c").await;
    migrate(o.clone()).await.unwrap();
    let s = PostgresStore::open(o.clone()).await.unwrap();
    let id = s.apply(&topo(vec![sub("s", "orders.created")])).await.unwrap().subscriptions[0].1;
    for round in 0..2 {
        let t = std::time::Instant::now();
        for _ in 0..1000 { s.enqueue(&(0..100).map(|_| NewMessage::new(Topic::parse("orders.created").unwrap(), "{\"order\":42,\"total\":\"19.99\",\"currency\":\"EUR\",\"customer\":\"c-1234567890\"}")).collect::<Vec<_>>()).await.unwrap(); }
        println!("round {round} enqueue 100/commit: {:.0}/s", 1e5 / t.elapsed().as_secs_f64());
        let t = std::time::Instant::now();
        let (mut n, mut tc, mut ts) = (0, Duration::ZERO, Duration::ZERO);
        let r0 = s.round_trips();
        loop {
            let t1 = std::time::Instant::now();
            let Some(b) = s.claim(req(id, Lane::Primary, 512)).await.unwrap() else { break };
            tc += t1.elapsed();
            let group: Vec<_> = b.deliveries.iter().map(|d| done(&b, d, C)).collect();
            let t1 = std::time::Instant::now();
            let r = s.settle(&group).await.unwrap();
            ts += t1.elapsed();
            assert_eq!(r, SettleReport::Committed { lost: vec![], duplicates: vec![] });
            n += group.len();
        }
        println!("round {round} drained {n}: {:.0}/s claim {tc:?} settle {ts:?} round trips {}", n as f64 / t.elapsed().as_secs_f64(), s.round_trips() - r0);
    }
}
