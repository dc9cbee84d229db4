//! Behaviours 2, 3, 4, 8: what becomes of messages that are written through the store.

use std::sync::Arc;

use laneway_core::{Header, MessageId, NewMessage, Priority, StoreError, Topic};

use crate::fixture::*;

conformance! {
    async fn a_message_comes_back_as_it_was_written(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let full = NewMessage {
            id: MessageId::parse("order/42#1~!").unwrap(),
            key: Some("schlüssel 'x' \"y\"".to_owned()),
            priority: Priority::HIGH,
            payload: vec![0, 1, 255, 0, 39, 92].into(),
            content_type: "application/octet-stream".to_owned(),
            headers: vec![
                Header { name: "trace".to_owned(), value: "ä \u{1F600} \\ \" \n".to_owned() },
                Header { name: "empty".to_owned(), value: String::new() },
            ],
            tenant: Some("acme".to_owned()),
            ..message("replaced")
        };
        let plain = message("plain");
        let empty = NewMessage { payload: Vec::new().into(), ..message("empty") };
        fixture.enqueue(&[full.clone(), plain.clone(), empty.clone()]).await;
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(ids(&batch), ["order/42#1~!", "plain", "empty"]);
        for (delivery, written) in batch.deliveries.iter().zip([full, plain, empty]) {
            assert!(same(&delivery.message, &written), "{:?}\n{written:?}", delivery.message);
        }
    }

    async fn the_same_id_twice_is_one_message_and_reported(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let first = fixture.store.enqueue(&[message("m")]).await.unwrap();
        let other = NewMessage { payload: "other".into(), ..message("m") };
        let second = fixture.store.enqueue(std::slice::from_ref(&other)).await.unwrap();
        assert_eq!((first[0].duplicate, second[0].duplicate), (false, true));
        assert_eq!(second[0].id.as_str(), "m");
        let batch = fixture.claim_some(subscription).await;
        assert_eq!(batch.deliveries.len(), 1);
        assert_eq!(batch.deliveries[0].message.payload, message("m").payload, "the first one stays");

        fixture.settle_all(&complete_all(&batch)).await;
        assert!(fixture.store.enqueue(&[other]).await.unwrap()[0].duplicate);
        assert!(fixture.claim(subscription).await.is_none(), "a duplicate of a processed message is not delivered");
    }

    async fn answers_are_in_the_order_given_and_duplicates_within_one_call_are_found(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["old"]).await;
        let given = ["b", "old", "a", "b", "c"];
        let answers = fixture.store.enqueue(&given.map(message)).await.unwrap();
        assert_eq!(answers.iter().map(|answer| answer.id.as_str()).collect::<Vec<_>>(), given);
        assert_eq!(
            answers.iter().map(|answer| answer.duplicate).collect::<Vec<_>>(),
            [false, true, false, true, false]
        );
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["old", "b", "a", "c"]);
    }

    async fn concurrent_callers_with_one_id_both_succeed_and_write_one_message(fixture: &Fixture) {
        fixture.subscribe().await;
        let nodes = [Arc::clone(&fixture.store), fixture.another_node().await];
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..16 {
            let store = Arc::clone(&nodes[caller % 2]);
            callers.spawn(async move {
                let mut new = 0;
                // Each caller has its own order, so that their transactions meet crosswise.
                for step in 0..20 {
                    let ids = [format!("m{}", (step + caller) % 20), format!("m{}", (step * 7 + caller * 3) % 20)];
                    let given = if ids[0] == ids[1] {
                        vec![message(&ids[0])]
                    } else {
                        ids.iter().map(|id| message(id)).collect()
                    };
                    new += store.enqueue(&given).await.unwrap().iter().filter(|answer| !answer.duplicate).count();
                }
                new
            });
        }
        assert_eq!(callers.join_all().await.into_iter().sum::<usize>(), 20);
        let mut sql = fixture.sql().await;
        assert_eq!((sql.count("message").await, sql.count("owed").await), (20, 20));
    }

    async fn each_matching_subscription_gets_its_own_delivery(fixture: &Fixture) {
        let subscriptions =
            fixture.subscribe_to(&[("all", ">"), ("exact", "t.x"), ("any", "t.*"), ("other", "u.>")]).await;
        fixture.enqueue_ids(&["m"]).await;
        for &matching in &subscriptions[..3] {
            let batch = fixture.claim_some(matching).await;
            assert_eq!(ids(&batch), ["m"]);
            fixture.settle_all(&complete_all(&batch)).await;
        }
        assert!(fixture.claim(subscriptions[3]).await.is_none());
    }

    async fn a_message_that_matches_nothing_is_kept_and_counted(fixture: &Fixture) {
        fixture.subscribe().await;
        fixture
            .enqueue(&[
                NewMessage::new(Topic::parse("nobody.listens").unwrap(), "{}"),
                NewMessage::new(Topic::parse("t").unwrap(), "{}"),
                message("m"),
            ])
            .await;
        assert_eq!(fixture.store.status().await.unwrap().unrouted, 2);
        assert_eq!(fixture.sql().await.count("message").await, 3);
    }

    async fn a_payload_over_the_limit_is_refused_with_the_limit(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        let of_size = |id, size: u32| NewMessage { payload: vec![b'x'; size as usize].into(), ..message(id) };
        fixture.enqueue(&[of_size("fits", PAYLOAD_BYTES_MAX)]).await;
        let group = [message("beside"), of_size("large", PAYLOAD_BYTES_MAX + 1)];
        match fixture.store.enqueue(&group).await {
            Err(StoreError::Refused(text)) => assert!(text.contains(&PAYLOAD_BYTES_MAX.to_string()), "{text}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(ids(&fixture.claim_some(subscription).await), ["fits"], "the whole call is one transaction");
    }

    async fn an_empty_call_does_nothing(fixture: &Fixture) {
        fixture.subscribe().await;
        assert_eq!(fixture.store.enqueue(&[]).await.unwrap(), []);
        fixture.settle_all(&[]).await;
        assert_eq!(fixture.store.renew(&[]).await.unwrap(), []);
    }
}
