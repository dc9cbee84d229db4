//! Dead letters: counted, delivered again, removed. Which ones is said by a selection.

use jiff::Timestamp;
use laneway_core::{DeadLetterAction, DeadLetterSelection, Name, Step, StoreError};
use sqlx::Row;

use super::cleanup::to_count;
use super::connection::{Connections, Statement, json, now_ms};
use super::topology::PatternForm;
use super::writer::Durability;

/// The condition that dead letter `f`, of subscription `s` and message `m`, is in a selection, which is bound first. The
/// message's id is compared wherever it is looked for: its number may be another's after a restore.
macro_rules! selected {
    () => {
        "f.id BETWEEN coalesce(?1, 0) AND coalesce(?1, 9223372036854775807)
            AND (?2 IS NULL OR s.name = ?2) AND (?3 IS NULL OR f.reason = ?3)
            AND f.failed_at >= coalesce(?4, 0) AND f.failed_at < coalesce(?5, 9223372036854775807)
            AND (?6 IS NULL OR m.topic = ?6)
            AND (?7 IS NULL OR (m.topic GLOB ?7
                AND length(m.topic) - length(replace(m.topic, '.', '')) BETWEEN ?8 AND ?9
                AND (?10 IS NULL OR NOT EXISTS (
                    SELECT 1 FROM json_each(?10) l WHERE l.value IS NOT
                        json_extract('[\"' || replace(m.topic, '.', '\",\"') || '\"]', '$[' || l.key || ']')))))"
    };
}
pub(super) use selected;

/// Binds what [`selected`] names.
pub(super) fn bind_selection<'q>(
    statement: Statement<'q>,
    selection: &'q DeadLetterSelection,
) -> Result<Statement<'q>, StoreError> {
    let form = selection.topic.as_ref().map(PatternForm::of).transpose()?;
    let statement = statement
        .bind(selection.id)
        .bind(selection.subscription.as_ref().map(Name::as_str))
        .bind(selection.reason.as_deref())
        .bind(selection.since.map(Timestamp::as_millisecond))
        .bind(selection.until.map(Timestamp::as_millisecond));
    Ok(match form {
        None => statement.bind(None::<&str>).bind(None::<&str>).bind(0).bind(0).bind(None::<&str>),
        Some(form) => {
            let exact = selection.topic.as_ref().filter(|_| form.topic_glob.is_none());
            statement
                .bind(exact.map(|pattern| pattern.as_str()))
                .bind(form.topic_glob)
                .bind(form.dots_min)
                .bind(form.dots_max)
                .bind(form.literals)
        }
    })
}

pub(super) async fn count(connections: &Connections, selection: &DeadLetterSelection) -> Result<u64, StoreError> {
    let query = concat!(
        "-- maintain.count_dead_letters
        SELECT count(*) FROM laneway_dead_letter f
        JOIN laneway_subscription s ON s.id = f.subscription_id
        LEFT JOIN laneway_message m ON m.seq = f.message_seq AND m.id = f.message_id
        WHERE ",
        selected!()
    );
    let statement = bind_selection(sqlx::query(query), selection)?;
    let number = connections.reader().await?.optional(statement, |row| row.try_get(0)).await?;
    Ok(to_count(number.unwrap_or_default()))
}

pub(super) async fn act(
    connections: &Connections,
    action: DeadLetterAction,
    selection: &DeadLetterSelection,
    from: i64,
    newest: i64,
    limit: u32,
) -> Result<Step, StoreError> {
    let mut transaction = connections.begin(Durability::Flushed).await?;
    let query = concat!(
        "-- maintain.choose_dead_letters
        SELECT f.id, m.seq IS NOT NULL AND s.active, ",
        selected!(),
        "
        FROM (SELECT * FROM laneway_dead_letter WHERE id > ?11 AND id <= ?12 ORDER BY id LIMIT ?13 + 0) f
        JOIN laneway_subscription s ON s.id = f.subscription_id
        LEFT JOIN laneway_message m ON m.seq = f.message_seq AND m.id = f.message_id
        ORDER BY f.id"
    );
    let statement = bind_selection(sqlx::query(query), selection)?.bind(from).bind(newest).bind(limit);
    let mut looked = 0;
    let mut last = None;
    let mut chosen: Vec<i64> = Vec::new();
    transaction
        .each(statement, |row| {
            let id: i64 = row.try_get(0)?;
            looked += 1;
            last = Some(id);
            let can_replay = row.try_get::<i64, _>(1)? != 0;
            let is_selected = row.try_get::<Option<i64>, _>(2)? == Some(1);
            // A letter of a subscription that nobody works for would only be hidden.
            if is_selected && (can_replay || action == DeadLetterAction::Purge) {
                chosen.push(id);
            }
            Ok(())
        })
        .await?;
    if let (Some(first), Some(newest)) = (chosen.first(), chosen.last()) {
        let ids = json(&chosen)?;
        if action == DeadLetterAction::Replay {
            // One that is owed already stays as it is, and is no less delivered.
            let query = concat!(
                "-- maintain.owe_again
                INSERT INTO laneway_delivery (id, subscription_id, lane, priority, message_seq, available_at, key, parked)
                SELECT f.message_seq * 1048576 + f.subscription_id, f.subscription_id, f.lane, f.priority,
                    f.message_seq, ",
                now_ms!(),
                ", iif(s.ordered, m.key, NULL), iif(s.ordered AND m.key IS NOT NULL, 0, NULL)
                FROM laneway_dead_letter f JOIN laneway_message m ON m.seq = f.message_seq
                JOIN laneway_subscription s ON s.id = f.subscription_id
                WHERE f.id IN (SELECT value FROM json_each(?))
                ON CONFLICT (id) DO NOTHING"
            );
            transaction.execute(sqlx::query(query).bind(ids.as_str())).await?;
        }
        let query = "-- maintain.remove_dead_letters
            DELETE FROM laneway_dead_letter WHERE id IN (SELECT value FROM json_each(?))";
        transaction.execute(sqlx::query(query).bind(ids)).await?;
        let query = concat!(
            "-- maintain.note
            INSERT INTO laneway_audit (at, action, detail) VALUES (",
            now_ms!(),
            ", ?, json_object('selection', json(?), 'count', ?, 'first', ?, 'last', ?))"
        );
        let count = i64::try_from(chosen.len()).unwrap_or(i64::MAX);
        let statement =
            sqlx::query(query).bind(action.as_str()).bind(json(selection)?).bind(count).bind(first).bind(newest);
        transaction.execute(statement).await?;
    }
    transaction.commit().await?;
    Ok(Step { changed: chosen.len() as u64, next: last.filter(|_| looked >= limit), ..Step::default() })
}

/// Number of the newest dead letter; 0 if there was none ever.
pub(super) async fn newest(connections: &Connections) -> Result<i64, StoreError> {
    let query = "-- maintain.newest_dead_letter
        SELECT coalesce(max(id), 0) FROM laneway_dead_letter";
    let newest = connections.reader().await?.optional(sqlx::query(query), |row| row.try_get(0)).await?;
    Ok(newest.unwrap_or_default())
}
