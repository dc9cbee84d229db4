//! Behaviour 43: a time of a schedule is run once in a cluster.

use jiff::Timestamp;
use laneway_core::{Declared, NewMessage, RunOutcome};

use crate::fixture::*;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// How long a node lives after a sign of life.
const ALIVE: std::time::Duration = std::time::Duration::from_secs(1);

async fn declare(fixture: &Fixture, rule: &str, node: &str) -> Declared {
    fixture.store.declare_schedule(&name("nightly"), rule, &name(node), ALIVE).await.unwrap()
}

conformance! {
    async fn a_time_is_begun_once(fixture: &Fixture) {
        let (schedule, node) = (name("nightly"), name("node"));
        let at = time("2026-01-01T03:00:00Z");
        assert!(fixture.store.begin_run(&schedule, None, at, &node, None).await.unwrap());
        assert!(!fixture.store.begin_run(&schedule, None, at, &name("other"), None).await.unwrap());
        assert!(fixture.store.begin_run(&name("another"), None, at, &node, None).await.unwrap());
        assert!(fixture.store.begin_run(&schedule, None, time("2026-01-02T03:00:00Z"), &node, None).await.unwrap());
        let runs = fixture.store.schedule_runs(&schedule, 10).await.unwrap();
        let times: Vec<String> = runs.iter().map(|run| run.fire_at.to_string()).collect();
        assert_eq!(times, ["2026-01-02T03:00:00Z", "2026-01-01T03:00:00Z"]);
        assert!(runs.iter().all(|run| run.node == "node" && run.ended_at.is_none() && run.outcome.is_none()));
    }

    async fn a_message_and_its_run_are_one(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let (schedule, node) = (name("nightly"), name("node"));
        let at = time("2026-01-01T03:00:00Z");
        let large = NewMessage { payload: vec![b'x'; PAYLOAD_BYTES_MAX as usize + 1].into(), ..message("large") };
        assert!(fixture.store.begin_run(&schedule, None, at, &node, Some(&large)).await.is_err());
        assert!(fixture.store.schedule_runs(&schedule, 10).await.unwrap().is_empty(), "half of it happened");

        assert!(fixture.store.begin_run(&schedule, None, at, &node, Some(&message("m"))).await.unwrap());
        assert!(!fixture.store.begin_run(&schedule, None, at, &node, Some(&message("again"))).await.unwrap());
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["m"]);
        assert!(fixture.claim(subscription).await.is_none());
        let run = fixture.store.schedule_runs(&schedule, 1).await.unwrap().remove(0);
        assert_eq!((run.outcome.as_deref(), run.detail.as_deref()), (Some("done"), Some("message m")));
        assert!(run.ended_at.is_some());
    }

    async fn a_run_ends_with_its_outcome(fixture: &Fixture) {
        let (schedule, node) = (name("nightly"), name("node"));
        let at = time("2026-01-01T03:00:00Z");
        fixture.store.begin_run(&schedule, None, at, &node, None).await.unwrap();
        fixture.store.end_run(&schedule, at, RunOutcome::Failed, "disk 'full'").await.unwrap();
        let run = fixture.store.schedule_runs(&schedule, 1).await.unwrap().remove(0);
        assert_eq!((run.outcome.as_deref(), run.detail.as_deref()), (Some("failed"), Some("disk 'full'")));
        assert!(run.ended_at.unwrap() >= run.started_at);
    }

    async fn a_new_rule_has_missed_nothing(fixture: &Fixture) {
        let (schedule, node) = (name("nightly"), name("node"));
        assert_eq!(fixture.store.schedule_position(&schedule).await.unwrap(), None);
        let before = fixture.store.now().await.unwrap();
        declare(fixture, "0 3 * * * UTC", "node").await;
        let first = fixture.store.schedule_position(&schedule).await.unwrap().unwrap();
        assert!(first.since >= before && first.last.is_none(), "{first:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        declare(fixture, "0 3 * * * UTC", "node").await;
        let second = fixture.store.schedule_position(&schedule).await.unwrap();
        assert_eq!(second.as_ref(), Some(&first), "it has not changed");
        let at = time("2026-01-01T03:00:00Z");
        fixture.store.begin_run(&schedule, None, at, &node, None).await.unwrap();
        assert_eq!(fixture.store.schedule_position(&schedule).await.unwrap().unwrap().last, Some(at));
        let future = fixture.store.now().await.unwrap() + HOUR;
        fixture.store.begin_run(&schedule, None, future, &node, None).await.unwrap();
        assert_eq!(fixture.store.schedule_position(&schedule).await.unwrap().unwrap().last, Some(at), "a wrong clock is mended");
        let changed = declare(fixture, "0 4 * * * UTC", "other").await;
        assert_eq!(changed, Declared::Ours { before: Some("0 3 * * * UTC".to_owned()) });
        assert!(fixture.store.schedule_position(&schedule).await.unwrap().unwrap().since > first.since);
    }

    async fn the_last_run_of_a_schedule_outlives_its_retention(fixture: &Fixture) {
        let (schedule, node) = (name("nightly"), name("node"));
        declare(fixture, "0 3 * * * UTC", "node").await;
        for day in 1..=9 {
            let at = time(&format!("2026-01-0{day}T03:00:00Z"));
            fixture.store.begin_run(&schedule, None, at, &node, None).await.unwrap();
        }
        let far = time("2030-01-01T00:00:00Z");
        let what = laneway_core::Cleanup::ScheduleRuns;
        assert_eq!(fixture.store.cleanable(what, far).await.unwrap(), 8);
        let step = fixture.store.clean(what, far, 0, 5).await.unwrap();
        assert_eq!((step.changed, step.next), (5, Some(0)));
        let step = fixture.store.clean(what, far, 0, 5).await.unwrap();
        assert_eq!((step.changed, step.next), (3, None));
        let left = fixture.store.schedule_runs(&schedule, 10).await.unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].fire_at, time("2026-01-09T03:00:00Z"));
    }

    async fn a_new_rule_holds_at_once_and_an_old_one_when_no_node_with_the_new_one_lives(fixture: &Fixture) {
        let (old, new) = ("0 3 * * * UTC", "0 4 * * * UTC");
        let ours = |before: Option<&str>| Declared::Ours { before: before.map(str::to_owned) };
        let theirs = |declared: Declared| matches!(declared, Declared::Theirs { rule, .. } if rule == new);
        assert_eq!(declare(fixture, old, "a").await, ours(None));
        assert_eq!(declare(fixture, old, "b").await, ours(None));
        // While the change is rolled out.
        assert_eq!(declare(fixture, new, "c").await, ours(Some(old)));
        assert!(theirs(declare(fixture, old, "a").await));
        // Of the nodes that do not have it yet, one starts anew.
        assert!(theirs(declare(fixture, old, "a-again").await));
        assert_eq!(declare(fixture, new, "c").await, ours(None));
        let position = fixture.store.schedule_position(&name("nightly")).await.unwrap().unwrap();
        assert_eq!(position.rule, new);

        tokio::time::sleep(ALIVE + std::time::Duration::from_millis(200)).await;
        fixture.store.heartbeat(&name("c"), ALIVE).await.unwrap();
        assert!(theirs(declare(fixture, old, "a").await), "the other lives");
        // The change is taken back: all that had it end.
        fixture.store.sign_off(&name("c")).await.unwrap();
        assert_eq!(declare(fixture, old, "a").await, ours(Some(new)));
        // A node that nobody has heard of for long does not count.
        fixture.store.heartbeat(&name("a"), ALIVE).await.unwrap();
        assert!(matches!(declare(fixture, new, "c").await, Declared::Theirs { .. }));
        tokio::time::sleep(ALIVE + std::time::Duration::from_millis(200)).await;
        assert_eq!(declare(fixture, new, "c").await, ours(Some(old)));
    }

    async fn a_rule_that_was_given_up_long_ago_is_new_again(fixture: &Fixture) {
        declare(fixture, "0 3 * * * UTC", "a").await;
        declare(fixture, "0 4 * * * UTC", "b").await;
        fixture.store.sign_off(&name("a")).await.unwrap();
        assert!(matches!(declare(fixture, "0 3 * * * UTC", "c").await, Declared::Theirs { .. }));
        fixture.store.sign_off(&name("c")).await.unwrap();
        let mut sql = fixture.sql().await;
        let days = sql.span(HOUR * 24 * 8);
        sql.run(&format!("update @schedule_holder set held_at = held_at - {days} where node <> 'b'")).await;
        fixture.store.heartbeat(&name("b"), ALIVE).await.unwrap();
        assert!(matches!(declare(fixture, "0 3 * * * UTC", "d").await, Declared::Ours { before: Some(_) }));
        assert_eq!(sql.texts("select node from @schedule_holder order by node").await, ["b", "d"]);
    }

    async fn a_time_of_a_rule_that_does_not_hold_is_not_begun(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let (schedule, node) = (name("nightly"), name("a"));
        declare(fixture, "0 3 * * * UTC", "a").await;
        let at = time("2026-01-01T04:00:00Z");
        for message in [None, Some(&message("m"))] {
            assert!(!fixture.store.begin_run(&schedule, Some("0 4 * * * UTC"), at, &node, message).await.unwrap());
        }
        assert!(fixture.claim(subscription).await.is_none());
        let none = fixture.store.begin_run(&name("never"), Some("0 4 * * * UTC"), at, &node, None).await.unwrap();
        assert!(!none, "it was never declared");
        assert!(fixture.store.begin_run(&schedule, Some("0 3 * * * UTC"), at, &node, None).await.unwrap());
    }
}
