//! More calls than instances: who waits, for how long, and what that counts as.

use std::sync::Arc;
use std::time::Duration;

use laneway_core::SubscriptionKind::{self, Handler, Publisher};
use laneway_core::{Failure, Reason};
use laneway_host::{Host, HostOptions, Plugin, PluginSpec};

use crate::guest::{Guest, OK, SLEEP};
use crate::support::{call, retried, run, spec, timed};

const FOREVER: &str = "(loop $again (br $again)) unreachable";

/// A host that has one instance only.
fn host() -> Arc<Host> {
    Host::new(HostOptions { instances_max: 1, ..HostOptions::default() }).unwrap()
}

fn plugin(host: &Arc<Host>, kind: SubscriptionKind, guest: &Guest) -> Arc<Plugin> {
    host.plugin(&guest.build(), spec(kind)).unwrap()
}

fn sleeping(milliseconds: u32, work: &str) -> Guest {
    let work = format!("(call $sleep (i64.const {milliseconds}000000)) {work} {OK}");
    let guest = Guest::handler(&work).fields(SLEEP);
    guest.import("wasi:clocks/monotonic-clock@0.2.0").import("wasi:io/poll@0.2.0")
}

#[tokio::test]
async fn a_call_that_gets_no_instance_counts_as_no_attempt_and_has_sent_nothing() {
    let host = host();
    let endless = plugin(&host, Handler, &Guest::handler(FOREVER));
    let handler = plugin(&host, Handler, &Guest::handler(OK));
    let publisher = plugin(&host, Publisher, &Guest::publisher(OK));
    let holding = call();
    let done = holding.interrupt.clone();
    // The holder is polled first, and has its instance then.
    tokio::join!(run(&endless, holding), async {
        for waiting in [&handler, &publisher] {
            match run(waiting, timed(Duration::from_millis(50))).await.result {
                Err(Failure::Throttled { after: Some(_), error }) => {
                    assert!(error.as_str().contains("instances_max"), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        for waiting in [&handler, &publisher] {
            let call = call();
            let interrupt = call.interrupt.clone();
            let (ended, ()) = tokio::join!(run(waiting, call), async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                interrupt.set();
            });
            assert_eq!(ended.result, Err(Failure::Interrupted));
        }
        done.set();
    });
}

#[tokio::test]
async fn the_time_of_an_attempt_begins_when_it_has_an_instance() {
    let host = host();
    let endless = plugin(&host, Handler, &Guest::handler(FOREVER));
    let in_time = "(if (i64.lt_u (i64.load (i32.add (local.get $message) (i32.const 88))) (i64.const 3500))
        (then unreachable))";
    let sleeper = plugin(&host, Handler, &sleeping(3500, in_time));
    // Together they take longer than the second has; each by itself has seconds to spare.
    let (stuck, served) = tokio::join!(
        run(&endless, timed(Duration::from_millis(3500))),
        run(&sleeper, timed(Duration::from_secs(6)))
    );
    assert_eq!(retried(&stuck).0, Reason::TIMEOUT);
    served.result.unwrap();
}

#[tokio::test]
async fn an_instance_is_not_kept_while_another_plugin_waits_for_its_place() {
    let host = host();
    let keeper = host.plugin(&sleeping(100, "").build(), PluginSpec { reuse: true, ..spec(Handler) }).unwrap();
    let other = plugin(&host, Handler, &Guest::handler(OK));
    let (kept, served) = tokio::join!(run(&keeper, call()), run(&other, timed(Duration::from_secs(5))));
    kept.result.unwrap();
    served.result.unwrap();
}
