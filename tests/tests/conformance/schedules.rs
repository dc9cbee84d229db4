//! Behaviour 43: a time of a schedule is run once in a cluster.

use jiff::Timestamp;
use laneway_core::{NewMessage, RunOutcome};

use crate::fixture::*;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

conformance! {
    async fn a_time_is_begun_once(fixture: &Fixture) {
        let (schedule, node) = (name("nightly"), name("node"));
        let at = time("2026-01-01T03:00:00Z");
        assert!(fixture.store.begin_run(&schedule, at, &node, None).await.unwrap());
        assert!(!fixture.store.begin_run(&schedule, at, &name("other"), None).await.unwrap());
        assert!(fixture.store.begin_run(&name("another"), at, &node, None).await.unwrap());
        assert!(fixture.store.begin_run(&schedule, time("2026-01-02T03:00:00Z"), &node, None).await.unwrap());
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
        assert!(fixture.store.begin_run(&schedule, at, &node, Some(&large)).await.is_err());
        assert!(fixture.store.schedule_runs(&schedule, 10).await.unwrap().is_empty(), "half of it happened");

        assert!(fixture.store.begin_run(&schedule, at, &node, Some(&message("m"))).await.unwrap());
        assert!(!fixture.store.begin_run(&schedule, at, &node, Some(&message("again"))).await.unwrap());
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["m"]);
        assert!(fixture.claim(subscription).await.is_none());
        let run = fixture.store.schedule_runs(&schedule, 1).await.unwrap().remove(0);
        assert_eq!((run.outcome.as_deref(), run.detail.as_deref()), (Some("done"), Some("message m")));
        assert!(run.ended_at.is_some());
    }

    async fn a_run_ends_with_its_outcome(fixture: &Fixture) {
        let (schedule, node) = (name("nightly"), name("node"));
        let at = time("2026-01-01T03:00:00Z");
        fixture.store.begin_run(&schedule, at, &node, None).await.unwrap();
        fixture.store.end_run(&schedule, at, RunOutcome::Failed, "disk 'full'").await.unwrap();
        let run = fixture.store.schedule_runs(&schedule, 1).await.unwrap().remove(0);
        assert_eq!((run.outcome.as_deref(), run.detail.as_deref()), (Some("failed"), Some("disk 'full'")));
        assert!(run.ended_at.unwrap() >= run.started_at);
    }

    async fn a_new_rule_has_missed_nothing(fixture: &Fixture) {
        let (schedule, node) = (name("nightly"), name("node"));
        assert_eq!(fixture.store.schedule_position(&schedule).await.unwrap(), None);
        let before = fixture.store.now().await.unwrap();
        fixture.store.declare_schedule(&schedule, "0 3 * * * UTC").await.unwrap();
        let first = fixture.store.schedule_position(&schedule).await.unwrap().unwrap();
        assert!(first.since >= before && first.last.is_none(), "{first:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        fixture.store.declare_schedule(&schedule, "0 3 * * * UTC").await.unwrap();
        assert_eq!(fixture.store.schedule_position(&schedule).await.unwrap(), Some(first), "it has not changed");
        let at = time("2026-01-01T03:00:00Z");
        fixture.store.begin_run(&schedule, at, &node, None).await.unwrap();
        assert_eq!(fixture.store.schedule_position(&schedule).await.unwrap().unwrap().last, Some(at));
        let future = fixture.store.now().await.unwrap() + HOUR;
        fixture.store.begin_run(&schedule, future, &node, None).await.unwrap();
        assert_eq!(fixture.store.schedule_position(&schedule).await.unwrap().unwrap().last, Some(at), "a wrong clock is mended");
        let before = fixture.store.declare_schedule(&schedule, "0 4 * * * UTC").await.unwrap();
        assert_eq!(before.as_deref(), Some("0 3 * * * UTC"));
        assert!(fixture.store.schedule_position(&schedule).await.unwrap().unwrap().since > first.since);
    }

    async fn the_last_run_of_a_schedule_outlives_its_retention(fixture: &Fixture) {
        let (schedule, node) = (name("nightly"), name("node"));
        fixture.store.declare_schedule(&schedule, "0 3 * * * UTC").await.unwrap();
        for day in 1..=9 {
            let at = time(&format!("2026-01-0{day}T03:00:00Z"));
            fixture.store.begin_run(&schedule, at, &node, None).await.unwrap();
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
}
