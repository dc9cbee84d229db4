//! Behaviours 16, 23, 24: the way into the dead letters is atomic, and they tell what happened.

use std::time::Duration;

use laneway_core::{
    ClaimRequest, DeadLetterFilter, DeadLetterSelection, ERROR_TEXT_BYTES_MAX, ErrorText, Lane, MessageStatus,
    NewMessage, PluginDigest, Priority, Reason, Topic, TopicPattern, Verdict,
};

use crate::fixture::*;

const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn dead(reason: Reason, error: &str) -> Verdict {
    Verdict::DeadLetter { reason, error: ErrorText::new(error), plugin: Some(PluginDigest::from_hex(DIGEST)) }
}

fn all() -> DeadLetterFilter {
    DeadLetterFilter { limit: 100, ..DeadLetterFilter::default() }
}

conformance! {
    async fn a_dead_letter_keeps_what_is_needed_to_understand_it(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue(&[NewMessage { priority: Priority::LOW, ..message("m") }]).await;
        let backfill = ClaimRequest { lane: Lane::Backfill, ..request(subscription) };
        let first = fixture.store.claim(backfill).await.unwrap().unwrap();
        let retry = Verdict::Retry { delay: Duration::ZERO, counted: true, error: Some(ErrorText::new("first")) };
        fixture.settle_all(&[settlement(&first, 0, retry)]).await;
        let pause = Duration::from_millis(120);
        tokio::time::sleep(pause).await;
        let second = fixture.store.claim(backfill).await.unwrap().unwrap();
        fixture
            .settle_all(&[settlement(&second, 0, dead(Reason::of_guest("bad order"), "no such 'carrier' \"ä\""))])
            .await;

        let letters = fixture.store.dead_letters(&all()).await.unwrap();
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((letter.message_id.as_str(), letter.topic.as_str()), ("m", "t.x"));
        assert_eq!(
            (letter.subscription.as_str(), letter.lane, letter.priority),
            ("handler", Lane::Backfill, Priority::LOW)
        );
        assert_eq!((letter.reason.as_str(), letter.error.as_str()), ("guest:bad_order", "no such 'carrier' \"ä\""));
        assert_eq!((letter.attempts, letter.plugin.as_deref()), (2, Some(DIGEST)));
        let began = letter.first_attempt_at.expect("there was a first attempt");
        let lasted = Duration::try_from(letter.failed_at.duration_since(began)).unwrap();
        assert!(lasted >= pause - Duration::from_millis(2) && lasted < Duration::from_secs(30), "{lasted:?}");
        assert_eq!(fixture.store.message(&letter.message_id).await.unwrap().unwrap().status, MessageStatus::Failed);
    }

    async fn the_dead_letter_replaces_the_delivery(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        let verdict = dead(Reason::TIMEOUT, "too slow");
        fixture.settle_all(&[settlement(&batch, 0, verdict.clone())]).await;
        let mut sql = fixture.sql().await;
        assert_eq!(
            (sql.count("owed").await, sql.count("dead_letter").await, sql.count("marker").await),
            (0, 1, 0)
        );
        assert_eq!(fixture.settle(&[settlement(&batch, 0, verdict)]).await, (vec![0], vec![]));
        assert_eq!(sql.count("dead_letter").await, 1, "once more under the same lease is lost");
        assert_eq!(sql.count("message").await, 1, "the message stays");
    }

    async fn dead_lettering_is_atomic_with_its_group(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m1", "m2"]).await;
        let batch = fixture.claim_some(subscription).await;
        let mut failing = complete(&batch, 1);
        failing
            .emits
            .push(NewMessage { payload: vec![b'x'; PAYLOAD_BYTES_MAX as usize + 1].into(), ..message("large") });
        let group = [settlement(&batch, 0, dead(Reason::TRAP, "x")), failing];
        assert!(fixture.store.settle(&group).await.is_err());
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("owed").await, sql.count("dead_letter").await), (2, 0), "half of it happened");
    }

    async fn an_error_of_the_largest_size_is_kept_whole(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let batch = fixture.claim_some(subscription).await;
        let text = "ü\n'".repeat(ERROR_TEXT_BYTES_MAX);
        fixture.settle_all(&[settlement(&batch, 0, dead(Reason::TRAP, &text))]).await;
        let letter = fixture.store.dead_letters(&all()).await.unwrap().remove(0);
        assert_eq!(letter.error, ErrorText::new(text).as_str());
        assert!(letter.error.len() <= ERROR_TEXT_BYTES_MAX && letter.error.len() > ERROR_TEXT_BYTES_MAX - 8);
    }

    async fn a_retrys_error_is_kept_with_its_delivery(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["m"]).await;
        let text = ErrorText::new("x".repeat(2 * ERROR_TEXT_BYTES_MAX));
        let batch = fixture.claim_some(subscription).await;
        let retry = Verdict::Retry { delay: Duration::ZERO, counted: true, error: Some(text.clone()) };
        fixture.settle_all(&[settlement(&batch, 0, retry)]).await;
        let batch = fixture.claim_some(subscription).await;
        fixture.settle_all(&[settlement(&batch, 0, Verdict::RELEASE)]).await;
        let view = fixture.store.message(&batch.deliveries[0].message.id).await.unwrap().unwrap();
        assert_eq!(
            view.deliveries[0].last_error.as_deref(),
            Some(text.as_str()),
            "a release has no error of its own"
        );
    }

    async fn one_subscriptions_dead_letter_is_not_anothers(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.x"), ("b", "t.x")]).await;
        fixture.enqueue_ids(&["m"]).await;
        let a = fixture.claim_some(subscriptions[0]).await;
        fixture.settle_all(&[settlement(&a, 0, dead(Reason::TRAP, "x"))]).await;
        let b = fixture.claim_some(subscriptions[1]).await;
        fixture.settle_all(&complete_all(&b)).await;
        let status = fixture.store.status().await.unwrap();
        let of =
            |name: &str| status.subscriptions.iter().find(|one| one.name.as_str() == name).unwrap().dead_letters;
        assert_eq!((of("a"), of("b")), (1, 0));
    }

    async fn dead_letters_are_listed_newest_first_and_filtered(fixture: &Fixture) {
        let subscriptions = fixture.subscribe_to(&[("a", "t.>"), ("b", "t.y")]).await;
        let other = NewMessage { topic: Topic::parse("t.y").unwrap(), ..message("m2") };
        fixture.enqueue(&[message("m1"), other, message("m3")]).await;
        let a = fixture.claim_some(subscriptions[0]).await;
        for (position, reason) in [Reason::TRAP, Reason::TIMEOUT, Reason::TRAP].into_iter().enumerate() {
            fixture.settle_all(&[settlement(&a, position, dead(reason, "x"))]).await;
        }
        let b = fixture.claim_some(subscriptions[1]).await;
        fixture.settle_all(&[settlement(&b, 0, dead(Reason::TRAP, "x"))]).await;

        let list = async |filter: DeadLetterFilter| -> Vec<String> {
            let letters = fixture.store.dead_letters(&filter).await.unwrap();
            letters.iter().map(|letter| format!("{}/{}", letter.subscription, letter.message_id)).collect()
        };
        let of = |selection: DeadLetterSelection| DeadLetterFilter { selection, ..all() };
        assert_eq!(list(all()).await, ["b/m2", "a/m3", "a/m2", "a/m1"]);
        assert_eq!(list(DeadLetterFilter { limit: 2, ..all() }).await, ["b/m2", "a/m3"]);
        assert_eq!(
            list(of(DeadLetterSelection { subscription: Some(name("a")), ..Default::default() })).await,
            ["a/m3", "a/m2", "a/m1"]
        );
        assert_eq!(
            list(of(DeadLetterSelection { topic: Some(TopicPattern::parse("t.y").unwrap()), ..Default::default() })).await,
            ["b/m2", "a/m2"]
        );
        assert_eq!(list(of(DeadLetterSelection { reason: Some("timeout".to_owned()), ..Default::default() })).await, ["a/m2"]);
        let nothing = of(DeadLetterSelection { subscription: Some(name("nobody")), ..Default::default() });
        assert!(list(nothing).await.is_empty());
    }
}
