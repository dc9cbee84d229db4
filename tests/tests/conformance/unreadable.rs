//! A row that breaks the rules of the schema, as one written with checks switched off, stops no other.

use laneway_core::{Delivery, ErrorText, Reason, Verdict};

use crate::fixture::*;
use crate::sql::Sql;

/// Lets rows in that the schema refuses.
async fn switch_checks_off(sql: &mut Sql) {
    match sql {
        Sql::Sqlite(_) => {
            sql.run("pragma ignore_check_constraints = on; drop trigger @message_headers").await;
        }
        Sql::Postgres(_) => {
            sql.run("alter table @message drop constraint \"headers: a JSON object whose values are strings\"")
                .await;
            sql.run("alter table @message alter content_type drop not null").await;
            sql.run("alter table @delivery drop constraint delivery_attempt_check").await;
        }
    }
}

conformance! {
    async fn a_row_that_breaks_the_rules_is_told_and_the_others_are_claimed(fixture: &Fixture) {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["good-1"]).await;
        let mut sql = fixture.sql().await;
        switch_checks_off(&mut sql).await;
        for (id, headers) in [("list", "[1]"), ("number", "{\"a\": 1}"), ("text", "\"a\"")] {
            let row = format!("insert into @message (id, topic, payload, headers) values ('{id}', 't.x', '{{}}', '{headers}')");
            sql.run(&row).await;
        }
        match sql {
            Sql::Sqlite(_) => sql.run("insert into @message (id, topic, payload, content_type) values ('odd', 't.x', '{}', x'80')").await,
            Sql::Postgres(_) => sql.run("insert into @message (id, topic, payload, content_type) values ('odd', 't.x', '{}', null)").await,
        };
        sql.run("insert into @message (id, topic, payload) values ('count', 't.x', '{}')").await;
        sql.run("update @delivery set attempt = -5 where message_seq = (select seq from @message where id = 'count')").await;
        fixture.enqueue_ids(&["good-2"]).await;

        let batch = fixture.claim_some(subscription).await;
        let told: Vec<(&str, bool)> =
            batch.deliveries.iter().map(|it| (it.message.id.as_str(), it.unreadable.is_some())).collect();
        // Bytes where a text belongs are read as one.
        let is_odd = matches!(sql, Sql::Postgres(_));
        let wanted = [
            ("good-1", false),
            ("list", true),
            ("number", true),
            ("text", true),
            ("odd", is_odd),
            ("count", true),
            ("good-2", false),
        ];
        assert_eq!(told, wanted);
        let why = batch.deliveries[1].unreadable.as_ref().unwrap();
        assert!(!why.as_str().is_empty());

        // They can be given up like any other.
        let settlements: Vec<_> = (0..batch.deliveries.len())
            .map(|position| match batch.deliveries[position].unreadable.clone() {
                None => complete(&batch, position),
                Some(error) => {
                    let error = ErrorText::new(error.as_str());
                    settlement(&batch, position, Verdict::DeadLetter { reason: Reason::UNREADABLE, error, plugin: None })
                }
            })
            .collect();
        fixture.settle_all(&settlements).await;
        assert_eq!(sql.count("owed").await, 0);
        let reasons = sql.texts("select distinct reason from @dead_letter").await;
        assert_eq!(reasons, ["unreadable"]);
        assert_eq!(sql.count("dead_letter").await, if is_odd { 5 } else { 4 });
    }
}

/// SQLite keeps a text in a column of numbers, and puts it before all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_priority_that_is_no_number_stops_no_other_on_sqlite() {
    on_sqlite(async |fixture: &Fixture| {
        let subscription = fixture.subscribe().await;
        fixture.enqueue_ids(&["good-1"]).await;
        let mut sql = fixture.sql().await;
        switch_checks_off(&mut sql).await;
        sql.run("insert into @message (id, topic, payload, priority) values ('bad', 't.x', '{}', 'high')").await;
        fixture.enqueue_ids(&["good-2"]).await;

        let mut told = Vec::new();
        while let Some(batch) = fixture.store.claim(request(subscription)).await.unwrap() {
            let settlements: Vec<_> = (0..batch.deliveries.len())
                .map(|position| {
                    let Delivery { message, unreadable, .. } = &batch.deliveries[position];
                    told.push((message.id.as_str().to_owned(), unreadable.is_some()));
                    match unreadable.clone() {
                        None => complete(&batch, position),
                        Some(error) => {
                            let reason = Reason::UNREADABLE;
                            settlement(&batch, position, Verdict::DeadLetter { reason, error, plugin: None })
                        }
                    }
                })
                .collect();
            fixture.settle_all(&settlements).await;
        }
        told.sort();
        assert_eq!(told, [("bad", true), ("good-1", false), ("good-2", false)].map(|(id, is)| (id.to_owned(), is)));
        assert_eq!(
            (sql.count("owed").await, sql.texts("select message_id from @dead_letter").await),
            (0, vec!["bad".to_owned()])
        );
    })
    .await;
}
