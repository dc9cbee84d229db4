//! Plugins and deployments in the database: what every node is told, and what nodes tell.

use std::time::Duration;

use bytes::Bytes;
use laneway_core::{
    Canary, CanaryBy, DeploymentState, Figures, NewDeployment, NewPlugin, NodeReport, PluginDigest, PluginVersion,
    Readiness, Store, StoreError,
};

use crate::fixture::*;

const ALIVE: Duration = Duration::from_secs(15);

fn version(text: &str) -> PluginVersion {
    text.parse().unwrap()
}

fn plugin(text: &str, component: &'static str) -> NewPlugin {
    NewPlugin {
        plugin: version(text),
        digest: PluginDigest::from_hex(&format!("digest-of-{component}")),
        component: Bytes::from(component),
        manifest: Some(r#"{"name": "enrich"}"#.to_owned()),
        signature: None,
    }
}

fn canary() -> Canary {
    let window = Duration::from_secs(60);
    Canary {
        share: 0.1,
        by: CanaryBy::Key,
        window,
        attempts_min: 10,
        failures_over_max: 0.05,
        slower_max: 2.0,
        promote: true,
    }
}

/// Pushes and stages a version, and brings it to a state.
async fn deployed(store: &dyn Store, text: &str, to: &[DeploymentState]) -> i64 {
    let component: &'static str = text.to_owned().leak();
    store.push_plugin(&plugin(text, component)).await.unwrap();
    let canary = to.contains(&DeploymentState::Canary).then(canary);
    let id = store.stage(&NewDeployment { plugin: version(text), canary, back_to: None }).await.unwrap();
    let mut from = DeploymentState::Staged;
    for &state in to {
        assert!(store.advance(id, from, state, None).await.unwrap(), "{text} to {state:?}");
        from = state;
    }
    id
}

async fn states(store: &dyn Store) -> Vec<(i64, DeploymentState)> {
    store.deployments(None, 100).await.unwrap().iter().map(|deployment| (deployment.id, deployment.state)).collect()
}

fn report(deployment: i64, in_flight: u32) -> NodeReport {
    let figures =
        Figures { attempts: 7, failed: 1, reasons: [("panic".to_owned(), 1)].into(), ..Figures::default() };
    let readiness = Readiness::Ready;
    let beside = Some(Figures::default());
    NodeReport { deployment, readiness, error: None, current: false, in_flight, figures, beside }
}

conformance! {
    async fn a_version_never_changes(fixture: &Fixture) {
        let store = &fixture.store;
        assert!(store.push_plugin(&plugin("enrich@1", "bytes")).await.unwrap());
        assert!(!store.push_plugin(&plugin("enrich@1", "bytes")).await.unwrap(), "the same again is no change");
        let refused = store.push_plugin(&plugin("enrich@1", "other bytes")).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Refused(text) if text.contains("enrich@1 is there already")), "{refused}");
        let signed = NewPlugin { signature: Some("signature".to_owned()), ..plugin("enrich@1", "bytes") };
        assert!(store.push_plugin(&signed).await.unwrap(), "a signature may come later");
        assert!(store.push_plugin(&plugin("enrich@2", "other bytes")).await.unwrap());
        let stored = store.plugin(&version("enrich@1")).await.unwrap().unwrap();
        assert_eq!((&stored.component[..], stored.signature.as_deref()), (&b"bytes"[..], Some("signature")));
        assert_eq!(store.plugin(&version("enrich@3")).await.unwrap(), None);
        let listed = store.plugins().await.unwrap();
        let names: Vec<String> = listed.iter().map(|view| format!("{} {}", view.plugin, view.bytes)).collect();
        assert_eq!(names, ["enrich@2 11", "enrich@1 5"], "the newest first");
        assert_eq!((listed[0].signed, listed[1].signed), (false, true));
        assert!(listed[0].manifest.as_deref().unwrap().contains("enrich"));
    }

    async fn one_version_is_active_and_the_one_before_it_drains(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let one = deployed(store, "enrich@1", &[Validated, Active]).await;
        let other = deployed(store, "other@1", &[Validated, Active]).await;
        let two = deployed(store, "enrich@2", &[Validated, Active]).await;
        assert_eq!(states(store).await, [(two, Active), (other, Active), (one, Draining)]);
        let first = store.deployments(None, 0).await.unwrap().pop().unwrap();
        assert!(first.was_active && first.reason.unwrap().contains(&two.to_string()));
    }

    async fn a_canary_stands_beside_the_active_version_until_it_is_promoted_or_out(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let one = deployed(store, "enrich@1", &[Validated, Active]).await;
        let two = deployed(store, "enrich@2", &[Validated, Canary]).await;
        assert_eq!(states(store).await, [(two, Canary), (one, Active)]);
        assert_eq!(store.deployments(None, 0).await.unwrap()[0].canary, Some(canary()));
        // Another one takes its place.
        let three = deployed(store, "enrich@3", &[Validated, Canary]).await;
        assert_eq!(states(store).await, [(three, Canary), (two, Draining), (one, Active)]);
        assert!(store.advance(three, Canary, Active, Some("it held its trial")).await.unwrap());
        assert_eq!(states(store).await, [(three, Active), (two, Draining), (one, Draining)]);
        let four = deployed(store, "enrich@4", &[Validated, Canary]).await;
        assert!(store.advance(four, Canary, Draining, Some("it failed")).await.unwrap());
        let deployments = store.deployments(None, 0).await.unwrap();
        assert_eq!((deployments[0].state, deployments[0].reason.as_deref()), (Draining, Some("it failed")));
        assert!(!deployments[0].was_active);
        // A version that goes straight to work ends a trial too.
        let five = deployed(store, "enrich@5", &[Validated, Canary]).await;
        let six = deployed(store, "enrich@6", &[Validated, Active]).await;
        let (first, second) = (states(store).await[0], states(store).await[1]);
        assert_eq!((first, second), ((six, Active), (five, Draining)));
    }

    async fn a_deployment_takes_no_step_twice_and_none_back(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let id = deployed(store, "enrich@1", &[]).await;
        assert!(!store.advance(id, Staged, Active, None).await.unwrap(), "nobody has checked it");
        assert!(!store.advance(id, Validated, Active, None).await.unwrap(), "nor is it where the caller believes it");
        assert!(store.advance(id, Staged, Validated, None).await.unwrap());
        assert!(!store.advance(id, Staged, Validated, None).await.unwrap());
        let step = || store.advance(id, Validated, Active, None);
        let (a, b) = tokio::join!(step(), step());
        assert_eq!(u8::from(a.unwrap()) + u8::from(b.unwrap()), 1, "two at once are one");
        assert!(!store.advance(id, Validated, Failed, None).await.unwrap());
        assert!(!store.advance(id + 100, Validated, Active, None).await.unwrap());
        let unknown = NewDeployment { plugin: version("enrich@9"), canary: None, back_to: None };
        let refused = store.stage(&unknown).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Refused(text) if text.contains("enrich@9 is not stored")), "{refused}");
        // A new deployment takes the place of one that was begun and left.
        let left = deployed(store, "enrich@2", &[Validated]).await;
        let next = deployed(store, "enrich@3", &[]).await;
        assert_eq!(states(store).await, [(next, Staged), (left, Failed), (id, Active)]);
        assert!(!store.advance(left, Validated, Active, None).await.unwrap());
    }

    async fn a_trial_is_either_promoted_or_out(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let mut active = deployed(store, "enrich@0", &[Validated, Active]).await;
        for number in 1..=5 {
            let id = deployed(store, &format!("enrich@{number}"), &[Validated, Canary]).await;
            // One has judged it well, and somebody wants it out.
            let (promoted, out) =
                tokio::join!(store.advance(id, Canary, Active, None), store.advance(id, Canary, Draining, None));
            let (promoted, out) = (promoted.unwrap(), out.unwrap());
            assert_ne!(promoted, out);
            active = if promoted { id } else { active };
            let found = store.deployments(None, 0).await.unwrap();
            let found: Vec<i64> = found.iter().filter(|it| it.state == Active).map(|it| it.id).collect();
            assert_eq!(found, [active], "one is active, whatever came first");
        }
    }

    async fn deployments_are_found_by_plugin_and_ended_ones_if_asked_for(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let mut ended = Vec::new();
        for number in 0..4 {
            ended.push(deployed(store, &format!("enrich@{number}"), &[]).await);
            deployed(store, &format!("other@{number}"), &[]).await;
        }
        let last = ended.pop().unwrap();
        ended.reverse();
        let of = async |plugin: &str, ended| {
            let found = store.deployments(Some(&name(plugin)), ended).await.unwrap();
            found.iter().map(|it| it.id).collect::<Vec<i64>>()
        };
        assert_eq!(of("enrich", 0).await, [last]);
        assert_eq!(of("enrich", 2).await, [last, ended[0], ended[1]]);
        assert_eq!(of("nobody", 2).await, [0i64; 0]);
        assert_eq!(store.deployments(None, 0).await.unwrap().len(), 2);
        assert_eq!(store.deployments(None, 3).await.unwrap().len(), 5);
        let back = NewDeployment { plugin: version("enrich@1"), canary: None, back_to: Some(ended[0]) };
        let back = store.stage(&back).await.unwrap();
        let found = store.deployments(Some(&name("enrich")), 0).await.unwrap();
        assert_eq!((found[0].id, found[0].back_to, found[0].state), (back, Some(ended[0]), Staged));
    }

    async fn what_was_deployed_is_not_pushed_again_with_other_bytes(fixture: &Fixture) {
        let store = &*fixture.store;
        deployed(store, "enrich@1", &[]).await;
        deployed(store, "enrich@2", &[]).await;
        assert!(store.remove_plugin(&version("enrich@1")).await.unwrap());
        let refused = store.push_plugin(&plugin("enrich@1", "other bytes")).await.unwrap_err();
        let StoreError::Refused(text) = &refused else { panic!("{refused}") };
        assert!(text.contains("enrich@1 was deployed with other bytes"), "{text}");
        assert!(store.push_plugin(&plugin("enrich@1", "enrich@1")).await.unwrap(), "the same may come back");
        // A signature that is there stays.
        let signed = |by: &str| NewPlugin { signature: Some(by.to_owned()), ..plugin("enrich@1", "enrich@1") };
        assert!(store.push_plugin(&signed("ours")).await.unwrap());
        assert!(!store.push_plugin(&signed("ours")).await.unwrap());
        assert!(!store.push_plugin(&plugin("enrich@1", "enrich@1")).await.unwrap());
        let refused = store.push_plugin(&signed("theirs")).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Refused(text) if text.contains("another signature")), "{refused}");
        let stored = store.plugin(&version("enrich@1")).await.unwrap().unwrap();
        assert_eq!(stored.signature.as_deref(), Some("ours"));
        assert_eq!((stored.plugin, stored.digest.as_str()), (version("enrich@1"), "digest-of-enrich@1"));
    }

    async fn a_version_that_a_node_goes_on_with_is_not_retired(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let node = name("behind");
        let one = deployed(store, "enrich@1", &[Validated, Active]).await;
        let two = deployed(store, "enrich@2", &[Validated, Active]).await;
        store.heartbeat(&node, ALIVE).await.unwrap();
        let current = NodeReport { current: true, ..report(one, 0) };
        store.report(&node, std::slice::from_ref(&current), ALIVE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        store.report(&node, &[current], ALIVE).await.unwrap();
        assert_eq!(states(store).await, [(two, Active), (one, Draining)], "it may begin more at any time");
        // Once it has stopped in order, nobody waits for it.
        store.sign_off(&node).await.unwrap();
        assert!(store.nodes_alive(ALIVE).await.unwrap().is_empty());
        store.report(&name("other"), &[], ALIVE).await.unwrap();
        assert_eq!(states(store).await, [(two, Active), (one, Retired)]);
    }

    async fn what_drains_is_retired_when_no_living_node_has_it_in_work(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let (busy, idle) = (name("busy"), name("idle"));
        let one = deployed(store, "enrich@1", &[Validated, Active]).await;
        let two = deployed(store, "enrich@2", &[Validated, Active]).await;
        for node in [&busy, &idle] {
            store.heartbeat(node, ALIVE).await.unwrap();
        }
        assert_eq!(store.nodes_alive(ALIVE).await.unwrap(), [busy.clone(), idle.clone()]);
        store.report(&busy, &[report(one, 2), report(two, 1)], ALIVE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        store.report(&idle, &[report(one, 0)], ALIVE).await.unwrap();
        assert_eq!(states(store).await, [(two, Active), (one, Draining)], "one node still works on it");
        let refused = store.remove_plugin(&version("enrich@1")).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Refused(text) if text.contains("is draining")), "{refused}");
        let views = store.reports(&[one, two], ALIVE).await.unwrap();
        let nodes: Vec<_> = views.iter().map(|view| (view.node.as_str(), view.report.deployment, view.alive)).collect();
        assert_eq!(nodes, [("busy", one, true), ("idle", one, true), ("busy", two, true)]);
        assert_eq!(views[0].report, report(one, 2));
        store.report(&busy, &[report(one, 0)], ALIVE).await.unwrap();
        assert_eq!(states(store).await, [(two, Active), (one, Retired)]);
        assert!(store.remove_plugin(&version("enrich@1")).await.unwrap());
        assert!(!store.remove_plugin(&version("enrich@1")).await.unwrap());
        assert!(store.plugin(&version("enrich@1")).await.unwrap().is_none());
        assert_eq!(states(store).await.len(), 2, "history stays");
        assert_eq!(store.deployments(None, 0).await.unwrap().len(), 1);
    }

    async fn what_a_node_said_long_ago_is_forgotten_and_said_anew(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let one = deployed(store, "enrich@1", &[Validated, Active]).await;
        for node in ["gone", "back"] {
            store.report(&name(node), &[report(one, 1)], ALIVE).await.unwrap();
        }
        let mut sql = fixture.sql().await;
        let day = sql.span(25 * HOUR);
        sql.run(&format!("update @node_report set reported_at = reported_at - {day}")).await;
        store.report(&name("back"), &[report(one, 2)], ALIVE).await.unwrap();
        let views = store.reports(&[one], ALIVE).await.unwrap();
        let said: Vec<_> = views.iter().map(|view| (view.node.as_str(), view.report.in_flight)).collect();
        assert_eq!(said, [("back", 2)]);
    }

    async fn a_node_that_died_holds_up_no_retirement(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let one = deployed(store, "enrich@1", &[Validated, Active]).await;
        let two = deployed(store, "enrich@2", &[Validated, Active]).await;
        store.heartbeat(&name("dead"), ALIVE).await.unwrap();
        store.report(&name("dead"), &[report(one, 2)], ALIVE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2100)).await;
        store.report(&name("living"), &[], Duration::from_secs(1)).await.unwrap();
        assert_eq!(states(store).await, [(two, Active), (one, Retired)]);
    }

    async fn other_nodes_hear_of_a_change_at_once(fixture: &Fixture) {
        let other = fixture.another_node().await;
        // What was before is no news.
        while tokio::time::timeout(Duration::from_millis(100), other.deployments_changed()).await.is_ok() {}
        let began = std::time::Instant::now();
        let waiting = tokio::spawn(async move {
            other.deployments_changed().await;
            began.elapsed()
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        deployed(&*fixture.store, "enrich@1", &[]).await;
        let waited = tokio::time::timeout(PATIENCE, waiting).await.expect("it is woken").unwrap();
        assert!(waited >= Duration::from_millis(40), "woken without cause after {waited:?}");
    }

    async fn each_change_leaves_an_audit_row(fixture: &Fixture) {
        use DeploymentState::*;
        let store = &*fixture.store;
        let id = deployed(store, "enrich@1", &[Validated, Active]).await;
        deployed(store, "enrich@2", &[]).await;
        deployed(store, "enrich@3", &[Validated, Active]).await;
        tokio::time::sleep(Duration::from_millis(2100)).await;
        store.report(&name("node"), &[], ALIVE).await.unwrap();
        assert!(store.remove_plugin(&version("enrich@1")).await.unwrap());
        let mut sql = fixture.sql().await;
        let row = |action: &str, version: &str| format!("{action} {version}");
        let rows = "select action || ' ' || (detail ->> 'version') from @audit order by id";
        assert_eq!(
            sql.texts(rows).await,
            [
                row("plugin.push", "1"), row("deployment.staged", "1"), row("deployment.validated", "1"),
                row("deployment.active", "1"), row("plugin.push", "2"), row("deployment.staged", "2"),
                row("plugin.push", "3"), row("deployment.failed", "2"), row("deployment.staged", "3"),
                row("deployment.validated", "3"), row("deployment.draining", "1"), row("deployment.active", "3"),
                row("deployment.retired", "1"), row("plugin.remove", "1"),
            ]
        );
        let detail = "select cast(detail as text) from @audit where action = 'deployment.draining'";
        let detail = sql.texts(detail).await.remove(0);
        assert!(detail.contains("replaced by deployment") && detail.contains("enrich"), "{detail}");
        let from = "select cast(detail as text) from @audit where action = 'deployment.validated'";
        assert!(sql.texts(from).await[0].contains("staged"), "{id}");
    }

    async fn a_change_of_grants_leaves_an_audit_row(fixture: &Fixture) {
        let store = &*fixture.store;
        let noted = async |node: &str, mails: &str, prices: &str| {
            let grants = [(name("mails"), mails.to_owned()), (name("prices"), prices.to_owned())];
            store.note_grants(&name(node), &grants).await.unwrap()
        };
        assert_eq!(noted("one", "{}", r#"{"emit": ["a.>"]}"#).await, 1, "what grants nothing is no news");
        assert_eq!(noted("two", "{}", r#"{ "emit":["a.>"] }"#).await, 0, "another node says the same");
        assert_eq!(noted("one", r#"{"clocks": true}"#, r#"{"emit": ["a.>", "b"]}"#).await, 2);
        assert_eq!(noted("one", "{}", r#"{"emit": ["a.>", "b"]}"#).await, 1);
        let mut sql = fixture.sql().await;
        let rows = sql.texts("select cast(detail as text) from @audit where action = 'grants.change' order by id").await;
        assert_eq!(rows.len(), 4);
        let last: serde_json::Value = serde_json::from_str(&rows[3]).unwrap();
        let wants = serde_json::json!({ "subscription": "mails", "node": "one", "from": { "clocks": true }, "to": {} });
        assert_eq!(last, wants);
        assert!(store.note_grants(&name("one"), &[(name("mails"), "nonsense".to_owned())]).await.is_err());
    }
}
