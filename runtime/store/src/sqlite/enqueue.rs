//! Messages into the outbox. The fan-out to deliveries is the trigger's, as for every producer.

use std::collections::HashSet;

use laneway_core::{Enqueued, Header, MessageId, NewMessage, StoreError};
use serde::Serialize;
use sqlx::Row;

use super::connection::{Connections, Reader, json, millis, now_ms, to_hex};
use super::native::Native;
use super::writer::Durability;

/// Writes messages in one transaction. Answers also the newest message's number, if any was written.
pub(super) async fn enqueue(
    connections: &Connections,
    messages: &[NewMessage],
) -> Result<(Vec<Enqueued>, Option<i64>), StoreError> {
    if messages.is_empty() {
        return Ok((Vec::new(), None));
    }
    let rows = rows(messages.iter())?;
    let insert = move |native: &mut Native<'_>| insert(native, &rows).map(Some);
    let Some((written, newest)) = connections.write(Durability::Flushed, insert).await? else {
        return Err(StoreError::Other("messages were neither written nor refused".to_owned()));
    };

    let mut fresh = match usize::try_from(written) {
        Ok(count) if count == messages.len() => None,
        _ => Some(ids_up_to(&mut connections.reader().await?, newest, written).await?),
    };
    let enqueued = messages
        .iter()
        .map(|message| Enqueued {
            id: message.id.clone(),
            // Of two in this very call with one id, the first was written.
            duplicate: fresh.as_mut().is_some_and(|fresh| !fresh.remove(&message.id)),
        })
        .collect();
    Ok((enqueued, newest))
}

/// A message as the insert reads it.
#[derive(Serialize)]
struct MessageRow<'a>(
    &'a str,
    &'a str,
    Option<&'a str>,
    i32,
    &'a str,
    Option<String>,
    Option<&'a str>,
    Option<i64>,
    String,
);

/// Writes messages, but for those whose id is taken. Answers how many, and the number of the last one, if any was written.
pub(super) fn insert(native: &mut Native<'_>, rows: &str) -> Result<(u64, Option<i64>), StoreError> {
    // All in one statement: of one for each, SQLite would get ready to undo each, as the triggers may refuse it.
    // Without WHERE the parser takes ON for the join's.
    let insert = concat!(
        "-- enqueue.insert
        INSERT INTO laneway_message
            (id, topic, key, priority, content_type, headers, tenant, available_at, payload)
        SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, coalesce(value ->> 5, '{}'),
            value ->> 6, value ->> 7 + ",
        now_ms!(),
        ", unhex(value ->> 8)
        FROM json_each(?) WHERE true
        ON CONFLICT (id) DO NOTHING"
    );
    let written = native.run(insert, &[rows.into()])?;
    Ok((written, (written > 0).then(|| native.last_insert_rowid())))
}

/// Messages as the insert reads them.
pub(super) fn rows<'a>(messages: impl Iterator<Item = &'a NewMessage>) -> Result<String, StoreError> {
    let rows = messages
        .map(|message| {
            Ok(MessageRow(
                message.id.as_str(),
                message.topic.as_str(),
                message.key.as_deref(),
                message.priority.0,
                &message.content_type,
                if message.headers.is_empty() { None } else { Some(headers_json(&message.headers)?) },
                message.tenant.as_deref(),
                message.delay.map(millis),
                to_hex(&message.payload),
            ))
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    json(&rows)
}

/// The ids of a transaction that wrote this many messages, the newest of them last: nobody else wrote meanwhile.
async fn ids_up_to(
    reader: &mut Reader,
    newest: Option<i64>,
    written: u64,
) -> Result<HashSet<MessageId>, StoreError> {
    let query = "-- enqueue.ids_up_to
        SELECT id FROM laneway_message WHERE seq <= ? ORDER BY seq DESC LIMIT ?";
    let statement = sqlx::query(query).bind(newest).bind(i64::try_from(written).unwrap_or(i64::MAX));
    Ok(reader.all(statement, |row| Ok(MessageId::from_stored(row.try_get(0)?))).await?.into_iter().collect())
}

/// Headers as a JSON object, in their order.
fn headers_json(headers: &[Header]) -> Result<String, StoreError> {
    let mut text = String::from("{");
    for header in headers {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&json(&header.name)?);
        text.push(':');
        text.push_str(&json(&header.value)?);
    }
    text.push('}');
    Ok(text)
}
