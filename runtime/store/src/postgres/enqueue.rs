//! Messages into the outbox. The fan-out trigger does the rest.

use std::collections::HashSet;

use laneway_core::{Enqueued, MessageId, NewMessage};
use serde_json::Value;
use sqlx::Row as _;

use super::connection::{Database, Outcome, Session, microseconds};

/// Writes messages in one transaction.
pub(super) async fn enqueue(database: &Database, messages: &[NewMessage]) -> Outcome<Vec<Enqueued>> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let messages: Vec<&NewMessage> = messages.iter().collect();
    let mut written = insert(&mut database.connection().await?, &messages).await?;
    Ok(messages
        .iter()
        .map(|message| Enqueued {
            id: message.id.clone(),
            // The first of an id is the one that was written.
            duplicate: written.as_mut().is_some_and(|written| !written.remove(&message.id)),
        })
        .collect())
}

/// Inserts messages, leaving out those whose id is there already. Answers the ids that were written; `None` if all
/// were, which is what nearly always happens and saves sending the ids back.
pub(super) async fn insert(
    session: &mut impl Session,
    messages: &[&NewMessage],
) -> Outcome<Option<HashSet<MessageId>>> {
    let query = "-- message.insert
        WITH written AS (
            INSERT INTO laneway.message
                (id, topic, key, priority, payload, content_type, headers, tenant, available_at)
            SELECT g.id, g.topic, g.key, g.priority, g.payload, g.content_type, coalesce(g.headers::jsonb, '{}'),
                g.tenant, now() + g.delay * interval '1 microsecond'
            FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::bytea[], $6::text[], $7::text[],
                    $8::text[], $9::bigint[])
                AS g(id, topic, key, priority, payload, content_type, headers, tenant, delay)
            ON CONFLICT (id) DO NOTHING
            RETURNING id
        )
        SELECT CASE WHEN count(*) < cardinality($1) THEN coalesce(array_agg(id), '{}') END FROM written";
    fn each<'a, T>(messages: &[&'a NewMessage], part: impl Fn(&'a NewMessage) -> T) -> Vec<T> {
        messages.iter().map(|message| part(message)).collect()
    }
    let statement = sqlx::query(query)
        .bind(each(messages, |message| message.id.as_str()))
        .bind(each(messages, |message| message.topic.as_str()))
        .bind(each(messages, |message| message.key.as_deref()))
        .bind(each(messages, |message| message.priority.0))
        .bind(each(messages, |message| &*message.payload))
        .bind(each(messages, |message| message.content_type.as_str()))
        .bind(each(messages, headers))
        .bind(each(messages, |message| message.tenant.as_deref()))
        .bind(each(messages, |message| message.delay.map(microseconds)));
    let written: Option<Vec<String>> = session.one(statement).await?.try_get(0)?;
    Ok(written.map(|ids| ids.into_iter().map(MessageId::from_stored).collect()))
}

/// Headers as a JSON object; `None` if there are none.
fn headers(message: &NewMessage) -> Option<String> {
    if message.headers.is_empty() {
        return None;
    }
    let object = message.headers.iter().map(|header| (header.name.clone(), Value::from(header.value.as_str())));
    Some(Value::Object(object.collect()).to_string())
}
