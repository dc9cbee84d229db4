//! State that messages build on one another, and what happens when the chain breaks.

use bytes::Bytes;
use laneway_core::{Effects, NewMessage, Topic};

use crate::rig::{On, Rig, count_up, options, play, subscription};

async fn a_hot_key_takes_every_message_in_few_commits(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(2000).await;
    let running = rig.start(&count_up("n"));
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("2000"));
    let stats = running.drained().await;
    assert_eq!(stats.completed, 2000);
    assert!(stats.groups < 500, "{} commits for 2000 messages on one key", stats.groups);
}

async fn two_nodes_on_one_key_lose_no_update(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(1000).await;
    let other = rig.other_store().await;
    let one = rig.start(&count_up("n"));
    let two = rig.start_on(&other, &count_up("n"), options());
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("1000"));
    assert_eq!(one.drained().await.completed + two.drained().await.completed, 1000);
}

async fn a_failed_attempt_leaves_no_effect(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(10).await;
    let counting = count_up("n");
    let play = play(move |call| {
        let counting = counting.clone();
        async move {
            let number = call.attempt.number;
            let effects = counting(call).await?;
            if number == 1 { Err(crate::rig::retry("after its writes")) } else { Ok(effects) }
        }
    });
    let running = rig.start(&play);
    rig.wait_until_empty().await;
    assert_eq!(rig.state("n").await.as_deref(), Some("10"));
    running.engine.drain().await;
}

async fn emitted_messages_are_delivered(on: On) {
    let rig = Rig::new(on, &[subscription("s")]).await;
    rig.enqueue(100).await;
    let play = play(|call| async move {
        let mut effects = Effects::default();
        if call.message.topic.as_str() == "work.item" {
            let topic = Topic::parse("work.copy").expect("a valid topic");
            effects.emits.push(NewMessage::new(topic, call.message.payload.clone()));
        }
        effects.adds.push((call.message.topic.as_str().into(), 1));
        Ok(effects)
    });
    let running = rig.start(&play);
    running.wait_for("originals and copies", |stats| stats.completed == 200).await;
    let name = subscription("s").name;
    assert_eq!(rig.store.counter(&name, "work.item").await.unwrap(), 100);
    assert_eq!(rig.store.counter(&name, "work.copy").await.unwrap(), 100);
    running.engine.drain().await;
}

async fn deletes_are_seen_by_the_next_message(on: On) {
    let rig = Rig::new(on, &[laneway_core::Subscription { concurrency: 1, ..subscription("s") }]).await;
    rig.enqueue(4).await;
    // Writes, deletes, writes, deletes: each run depends on what the one before left.
    let play = play(|call| async move {
        let entry = call.state.get("k").await.expect("state can be read");
        let value = if entry.is_some() { None } else { Some(Bytes::from("there")) };
        Ok(Effects {
            reads: vec![("k".into(), entry.map(|entry| entry.version))],
            writes: vec![("k".into(), value)],
            ..Effects::default()
        })
    });
    let running = rig.start(&play);
    rig.wait_until_empty().await;
    assert_eq!(rig.state("k").await, None);
    running.engine.drain().await;
}

on_both!(
    a_hot_key_takes_every_message_in_few_commits,
    two_nodes_on_one_key_lose_no_update,
    a_failed_attempt_leaves_no_effect,
    emitted_messages_are_delivered,
    deletes_are_seen_by_the_next_message,
);
