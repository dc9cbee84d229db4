//! Behaviour 40 as plugins see it: no two messages of one key at once, each in its turn, whatever fails.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use laneway_core::{Effects, NewMessage, Ordering, Priority, Subscription};

use crate::rig::{On, Rig, message, options, play, retry, subscription};

const KEYS: usize = 5;
const EACH: usize = 24;

#[derive(Default)]
struct Seen {
    running: HashSet<String>,
    done: HashMap<String, Vec<usize>>,
}

async fn one_at_a_time_and_in_order_on_two_nodes(on: On) {
    let ordered = Subscription { ordering: Ordering::Key, ..subscription("s") };
    let rig = Rig::new(on, &[ordered]).await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let log = seen.clone();
    let handler = play(move |call| {
        let log = log.clone();
        async move {
            let key = call.message.key.clone().unwrap();
            let number: usize = std::str::from_utf8(&call.message.payload).unwrap().parse().unwrap();
            assert!(log.lock().unwrap().running.insert(key.clone()), "two of {key} run at once");
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut seen = log.lock().unwrap();
            seen.running.remove(&key);
            if number % 7 == 3 && call.attempt.number == 1 {
                return Err(retry("the first time"));
            }
            seen.done.entry(key).or_default().push(number);
            Ok(Effects::default())
        }
    });
    let one = rig.start(&handler);
    let store = rig.other_store().await;
    let two = rig.start_on(&store, &handler, options());
    for part in 0..EACH / 4 {
        let messages: Vec<NewMessage> = (0..KEYS * 4)
            .map(|place| NewMessage {
                key: Some(format!("k{}", place % KEYS)),
                priority: if place % 3 == 0 { Priority::BULK } else { Priority::NORMAL },
                ..message(part * 4 + place / KEYS)
            })
            .collect();
        rig.store.enqueue(&messages).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.wait_until_empty().await;
    one.engine.drain().await;
    two.engine.drain().await;
    assert!(rig.dead_letters().await.is_empty());
    let done = std::mem::take(&mut seen.lock().unwrap().done);
    assert_eq!(done.len(), KEYS);
    for (key, numbers) in done {
        assert_eq!(numbers, (0..EACH).collect::<Vec<_>>(), "{key}");
    }
}

/// No message waits for the next poll: each settlement wakes the node that takes the next one.
async fn a_long_line_moves_without_polling(on: On) {
    let ordered = Subscription { ordering: Ordering::Key, ..subscription("s") };
    let rig = Rig::new(on, &[ordered]).await;
    let messages: Vec<NewMessage> =
        (0..40).map(|number| NewMessage { key: Some("k".to_owned()), ..message(number) }).collect();
    rig.store.enqueue(&messages).await.unwrap();
    let options = laneway_engine::EngineOptions { poll_interval: Duration::from_secs(3600), ..options() };
    let running = rig.start_on(&rig.store, &play(|_| async { Ok(Effects::default()) }), options);
    rig.wait_until_empty().await;
    running.engine.drain().await;
}

on_both!(one_at_a_time_and_in_order_on_two_nodes, a_long_line_moves_without_polling);
