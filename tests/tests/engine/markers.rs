//! Behaviour 28: a marker is there if and only if the effects are. With real guests, for only they can trap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use laneway_core::{Invoker, MessageFilter, NewMessage, Subscription, SubscriptionKind, Topic, TopicPattern};
use laneway_host::{Grants, Host, HostOptions, Limits, PluginSpec};

use crate::rig::{On, PAYLOAD_BYTES_MAX, Rig, subscription};

/// A guest of the tests, as the rig's handler.
fn guest(name: &str) -> Arc<dyn Invoker> {
    let host = Host::new(HostOptions::default()).unwrap();
    let spec = PluginSpec {
        name: subscription("s").name,
        kind: SubscriptionKind::Handler,
        config: BTreeMap::new(),
        grants: Grants { emit: vec![TopicPattern::parse(">").unwrap()], ..Grants::default() },
        limits: Limits::default(),
        reuse: false,
        payload_bytes_max: u64::from(PAYLOAD_BYTES_MAX),
    };
    host.plugin(&std::fs::read(laneway_tests::plugin(name)).unwrap(), spec).unwrap()
}

/// Of attempts that use it up.
const SHORT: Duration = Duration::from_millis(500);
/// Of attempts that end by themselves.
const LONG: Duration = Duration::from_secs(5);

/// Runs a guest on payloads, each to its end; answers the rig, and which of the payloads have a marker.
async fn markers_after(name: &str, timeout: Duration, payloads: &[&str]) -> (Rig, Vec<String>) {
    let rig = Rig::new(On::Sqlite, &[Subscription { timeout, ..subscription("s") }]).await;
    let topic = Topic::parse("work.item").unwrap();
    let messages: Vec<NewMessage> =
        payloads.iter().map(|payload| NewMessage::new(topic.clone(), (*payload).to_owned())).collect();
    rig.store.enqueue(&messages).await.unwrap();
    let running = rig.start_plugin(&guest(name));
    rig.wait_until_empty().await;
    running.engine.drain().await;
    let marked = sqlx::query_scalar(
        "SELECT CAST(m.payload AS TEXT) FROM laneway_marker k JOIN laneway_message m ON m.id = k.message_id",
    );
    let marked = marked.fetch_all(&mut rig.sqlite().await).await.unwrap();
    (rig, marked)
}

/// State keys, counters, and messages beside those of the test.
async fn effects(rig: &Rig, sent: usize) -> (i64, i64, usize) {
    let mut sql = rig.sqlite().await;
    let all = MessageFilter { limit: 1000, ..MessageFilter::default() };
    (
        sqlx::query_scalar("SELECT count(*) FROM laneway_state").fetch_one(&mut sql).await.unwrap(),
        sqlx::query_scalar("SELECT count(*) FROM laneway_counter").fetch_one(&mut sql).await.unwrap(),
        rig.store.messages(&all).await.unwrap().len() - sent,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_is_ended_leaves_no_marker_and_no_effect() {
    // The floods write before they are ended.
    let harm = ["trap", "unreachable", "panic now", "loop", "flood-state", "flood-emit"];
    let payloads: Vec<&str> = harm.into_iter().chain(["nothing"]).collect();
    let (rig, marked) = markers_after("hostile", SHORT, &payloads).await;
    assert_eq!(marked, ["nothing"]);
    assert_eq!(effects(&rig, payloads.len()).await, (0, 0, 0));
    let dead = rig.dead_letters().await;
    assert_eq!(dead.len(), harm.len());
    // A marker of the first attempt would have made the second one a duplicate.
    assert!(dead.iter().all(|letter| letter.attempts == 3), "{dead:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_fails_after_its_writes_leaves_no_marker_and_no_effect() {
    let (rig, marked) = markers_after("fail", LONG, &["retry", "reject", "unknown"]).await;
    assert_eq!(marked, Vec::<String>::new());
    assert_eq!(effects(&rig, 3).await, (0, 0, 0));
    // It writes the key and the counter in the attempt that succeeds, and only then is there a marker.
    let (rig, marked) = markers_after("fail", LONG, &["retry:2"]).await;
    assert_eq!(marked, ["retry:2"]);
    assert_eq!(effects(&rig, 1).await, (1, 1, 0));
    assert_eq!(rig.store.counter(&subscription("s").name, "retry").await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_keeps_what_the_guest_noted() {
    let long = format!("{{\"n\": \"{}\"}}", "x".repeat(5000));
    let payloads = ["{\"carrier\": \"UA\"}", "{\"n\": \"\\u0000\"}", &long];
    let (rig, marked) = markers_after("annotate", LONG, &payloads).await;
    assert_eq!(marked, [payloads[0]]);
    let mut dead: Vec<(String, String)> =
        rig.dead_letters().await.into_iter().map(|letter| (letter.reason, letter.error)).collect();
    dead.sort_unstable();
    let wanted = [
        "metadata has 5008 bytes; at most 4096 are allowed",
        "metadata has a NUL character, which a database cannot hold",
    ];
    assert_eq!(dead, wanted.map(|why| ("guest:metadata_refused".to_owned(), why.to_owned())));
    let all = MessageFilter { limit: 1000, ..MessageFilter::default() };
    let mut noted = Vec::new();
    for message in rig.store.messages(&all).await.unwrap() {
        noted.extend(rig.store.message(&message.id).await.unwrap().unwrap().markers);
    }
    let [marker] = &noted[..] else { panic!("{noted:?}") };
    assert_eq!(marker.metadata.as_ref().unwrap().to_string(), payloads[0].replace(' ', ""));
}
