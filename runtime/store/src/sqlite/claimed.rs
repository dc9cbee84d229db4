//! What was claimed, from the rows to deliveries.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use laneway_core::{
    ClaimRequest, Delivery, DeliveryId, ErrorText, Header, Message, MessageId, Priority, StoreError, Topic,
};
use serde::de::{Deserializer as _, MapAccess, Visitor};
use sqlx::Row as _;

use super::connection::{Connections, Reader, json};
use super::native::Row;
use super::writer::Durability;

/// A claimed delivery, as it is in the database.
pub(super) struct Claimed {
    pub(super) id: i64,
    pub(super) due: i64,
    pub(super) seq: i64,
    attempt: i64,
    lost: u32,
    since: Duration,
    message: Option<MessageId>,
    topic: Option<Topic>,
    key: Option<String>,
    content_type: Option<String>,
    headers: Option<String>,
    tenant: Option<String>,
    payload: Option<Bytes>,
    processed: bool,
    has_priority: bool,
}

impl Claimed {
    /// Reads a row of `claim.select`.
    pub(super) fn of(row: &mut Row<'_>) -> Self {
        Self {
            id: row.integer(0),
            due: row.integer(1),
            seq: row.integer(2),
            attempt: row.integer(3),
            lost: u32::try_from(row.integer(4)).unwrap_or_default(),
            since: Duration::from_millis(u64::try_from(row.integer(5)).unwrap_or_default()),
            message: row.text(6).map(|id| MessageId::from_stored(id.into())),
            topic: row.text(7).map(|topic| Topic::from_stored(topic.into())),
            key: row.text(8).map(Cow::into_owned),
            content_type: row.text(9).map(Cow::into_owned),
            headers: row.text(10).map(Cow::into_owned),
            tenant: row.text(11).map(Cow::into_owned),
            payload: row.bytes(12).map(Bytes::copy_from_slice),
            processed: row.integer(13) != 0,
            has_priority: row.integer(14) != 0,
        }
    }
}

/// Makes deliveries of what was claimed: fetches large payloads, and removes deliveries that have no message.
pub(super) async fn complete(
    connections: &Connections,
    request: &ClaimRequest,
    priority: i64,
    claimed: Vec<Claimed>,
) -> Result<Vec<Delivery>, StoreError> {
    let large: Vec<i64> = claimed.iter().filter(|claimed| claimed.payload.is_none()).map(|c| c.seq).collect();
    let mut payloads = match large.is_empty() {
        true => HashMap::new(),
        false => fetch_payloads(&mut connections.reader().await?, &large).await?,
    };
    let mut deliveries = Vec::with_capacity(claimed.len());
    let mut orphans = Vec::new();
    for claimed in claimed {
        let payload = claimed.payload.clone().or_else(|| payloads.remove(&claimed.seq));
        let id = claimed.id;
        match delivery(request, priority, claimed, payload) {
            Some(delivery) => deliveries.push(delivery),
            None => orphans.push(id),
        }
    }
    if !orphans.is_empty() {
        remove_orphans(connections, &orphans).await?;
    }
    Ok(deliveries)
}

/// `None` if the message is gone.
fn delivery(request: &ClaimRequest, priority: i64, claimed: Claimed, payload: Option<Bytes>) -> Option<Delivery> {
    // One row that breaks the rules of the schema must not stop the others.
    let mut unreadable = None;
    let headers =
        claimed.headers.as_deref().map_or_else(|| Ok(Vec::new()), parse_headers).unwrap_or_else(|error| {
            unreadable = Some(ErrorText::new(format!("message: headers: {error}")));
            Vec::new()
        });
    if !claimed.has_priority {
        unreadable = Some(ErrorText::new("message: priority: it is no integer"));
    }
    if claimed.attempt < 1 {
        unreadable = Some(ErrorText::new(format!("delivery: its number of attempts is {}", claimed.attempt - 1)));
    }
    let message = Message {
        id: claimed.message?,
        topic: claimed.topic?,
        key: claimed.key,
        priority: Priority(i32::try_from(priority).unwrap_or_default()),
        payload: payload?,
        content_type: claimed.content_type?,
        headers,
        tenant: claimed.tenant,
    };
    Some(Delivery {
        id: DeliveryId(claimed.id),
        lane: request.lane,
        message,
        attempt: u32::try_from(claimed.attempt).unwrap_or_default(),
        lost: claimed.lost,
        since_first_attempt: claimed.since,
        processed: claimed.processed,
        unreadable,
    })
}

async fn fetch_payloads(reader: &mut Reader, messages: &[i64]) -> Result<HashMap<i64, Bytes>, StoreError> {
    let query = "-- claim.fetch_payloads
        SELECT m.seq, CAST(m.payload AS BLOB) FROM json_each(?) i CROSS JOIN laneway_message m ON m.seq = i.value";
    let rows = reader.all(sqlx::query(query).bind(json(messages)?), |row| {
        Ok((row.try_get(0)?, Bytes::from(row.try_get::<Vec<u8>, _>(1)?)))
    });
    Ok(rows.await?.into_iter().collect())
}

/// Removes deliveries whose message was taken out from under them, as an INSERT OR REPLACE of a producer does.
async fn remove_orphans(connections: &Connections, ids: &[i64]) -> Result<(), StoreError> {
    tracing::warn!(deliveries = ids.len(), "messages are gone from the outbox; their deliveries are removed");
    let remove = "-- claim.remove_orphans
        DELETE FROM laneway_delivery WHERE id IN (SELECT value FROM json_each(?))";
    let ids = json(ids)?;
    connections
        .write(Durability::Buffered, move |native| native.run(remove, &[ids.as_str().into()]).map(Some))
        .await?;
    Ok(())
}

/// Reads a JSON object of strings, in its order. The schema lets nothing else in, unless its checks are switched off.
fn parse_headers(json: &str) -> Result<Vec<Header>, serde_json::Error> {
    struct Headers;
    impl<'de> Visitor<'de> for Headers {
        type Value = Vec<Header>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut headers = Vec::new();
            while let Some((name, value)) = map.next_entry()? {
                headers.push(Header { name, value });
            }
            Ok(headers)
        }
    }
    let parse = |json: &str| serde_json::Deserializer::from_str(json).deserialize_map(Headers);
    // JavaScript writes half a surrogate pair where it cut a text; SQLite lets that pass, a String cannot hold it.
    parse(json).or_else(|_| parse(&without_lone_surrogates(json)))
}

/// Replaces escapes of half a surrogate pair by that of the replacement character.
fn without_lone_surrogates(json: &str) -> String {
    let unit = |text: &str| -> Option<u32> {
        let digits = text.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut mended = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        mended.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match unit(rest) {
            Some(0xD800..=0xDBFF) if matches!(rest.get(6..).and_then(unit), Some(0xDC00..=0xDFFF)) => 12,
            Some(0xD800..=0xDFFF) => {
                mended.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            // Any other escape: the character behind the backslash goes with it.
            _ => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        mended.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    mended.push_str(rest);
    mended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_surrogate_pair_costs_no_header() {
        let json = r#"{"a":"x\ud83d","b":"\ud83d\ude00","c":"\\ud83d","d":"\ude00\n"}"#;
        let read: Vec<(String, String)> =
            parse_headers(json).unwrap().into_iter().map(|h| (h.name, h.value)).collect();
        let wanted = [("a", "x\u{fffd}"), ("b", "\u{1f600}"), ("c", "\\ud83d"), ("d", "\u{fffd}\n")];
        assert_eq!(read, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
