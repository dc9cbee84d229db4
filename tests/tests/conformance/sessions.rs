//! What a node wants of its sessions on PostgreSQL, and what it does about sessions that are not as it wants them.

use std::time::{Duration, Instant};

use laneway_core::StoreError;
use laneway_store::Storage;
use laneway_testing::postgres::{Cluster, PoolMode, Pooler, TestDatabase, test_database};
use laneway_testing::skip;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use crate::fixture::*;
use crate::sql::Sql;

/// A migrated database, and a role of its own that may do what a node does.
struct Roled {
    database: TestDatabase,
    role: String,
}

/// What the page for operators says that a role needs.
fn documented_grants() -> String {
    let page = std::fs::read_to_string(laneway_tests::root().join("docs/postgresql.md")).unwrap();
    let mut blocks = page.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let block = blocks.find(|block| block.contains("CREATE ROLE laneway_node"));
    block.expect("docs/postgresql.md says what a role needs").to_owned()
}

/// `None`, after a loud word, if there is no server.
async fn roled(test: &str, attributes: &str) -> Option<(Roled, Sql)> {
    let Some(database) = test_database().unwrap() else {
        skip(test, "no PostgreSQL server on this machine");
        return None;
    };
    let storage = Storage::parse(&database.url).unwrap();
    storage.migrate().await.unwrap();
    let role = format!("node_{}_{}", std::process::id(), test.len());
    let mut sql = Sql::postgres(&database.direct_url).await;
    sql.run(&format!("drop role if exists {role}")).await;
    sql.run(&documented_grants().replace("laneway_node", &role)).await;
    if !attributes.is_empty() {
        sql.run(&format!("alter role {role} {attributes}")).await;
    }
    Some((Roled { database, role }, sql))
}

impl Roled {
    fn storage(&self) -> Storage {
        Storage::parse(&self.database.url_as(&self.role)).unwrap()
    }

    async fn end(self, mut sql: Sql) {
        sql.run(&format!("drop owned by {0}; drop role {0}", self.role)).await;
    }
}

#[tokio::test]
async fn a_policy_that_hides_messages_stops_the_node_and_loses_nothing() {
    let test = "sessions::a_policy_that_hides_messages_stops_the_node_and_loses_nothing";
    let Some((roled, mut sql)) = roled(test, "").await else { return };
    let owner = Storage::parse(&roled.database.url).unwrap().open().await.unwrap();
    let topology = laneway_core::Topology {
        subscriptions: vec![subscription("handler", "t.>")],
        payload_bytes_max: PAYLOAD_BYTES_MAX,
    };
    let subscription = number_of(&owner.apply(&topology).await.unwrap(), "handler");
    owner.enqueue(&[message("a"), message("b")]).await.unwrap();
    sql.run(
        "alter table @message enable row level security; alter table @message force row level security;
         create policy tenants on @message using (tenant = current_setting('app.tenant', true))",
    )
    .await;

    let node = roled.storage().open().await.unwrap();
    let error = node.claim(request(subscription)).await.unwrap_err();
    assert!(matches!(error, StoreError::Misconfigured(_)), "{error:?}");
    let said = error.to_string();
    assert!(
        said.contains("\"message\"") && said.contains(&format!("ALTER ROLE \"{}\" BYPASSRLS", roled.role)),
        "{said}"
    );
    assert_eq!(sql.count("owed").await, 2, "deliveries were lost");

    sql.run(&format!("alter role {} bypassrls", roled.role)).await;
    let batch = claim_soon(&*node, subscription).await;
    assert_eq!(ids(&batch), ["a", "b"]);
    settle_surely(&*node, &complete_all(&batch)).await;
    drop(node);
    roled.end(sql).await;
}

#[tokio::test]
async fn what_acts_for_producers_is_never_blind() {
    let test = "sessions::what_acts_for_producers_is_never_blind";
    let Some(database) = test_database().unwrap() else {
        return skip(test, "no PostgreSQL server on this machine");
    };
    Storage::parse(&database.url).unwrap().migrate().await.unwrap();
    let mut sql = Sql::postgres(&database.url).await;
    let with_rights_of_owner = "from pg_proc where pronamespace = 'laneway'::regnamespace and prosecdef";
    let blind = sql
        .texts(&format!(
            "select proname::text {with_rights_of_owner} and not 'row_security=off' = any (coalesce(proconfig, '{{}}'))"
        ))
        .await;
    assert_eq!(blind, Vec::<String>::new(), "these functions leave out what a policy hides");
    assert!(sql.number(&format!("select count(*) {with_rights_of_owner}")).await >= 7);
}

#[tokio::test]
async fn missing_rights_are_told_with_the_role_and_the_table() {
    let test = "sessions::missing_rights_are_told_with_the_role_and_the_table";
    let Some((roled, mut sql)) = roled(test, "").await else { return };
    let node = roled.storage().open().await.unwrap();
    sql.run(&format!("revoke all on @message from {}", roled.role)).await;
    let error = node.enqueue(&[message("a")]).await.unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, StoreError::Misconfigured(_)), "{error:?}");
    assert!(said.contains("table message") && said.contains(&roled.role), "{said}");
    drop(node);
    roled.end(sql).await;
}

/// As after a failover: the server took no writes when the sessions were opened, and takes them now.
#[tokio::test]
async fn sessions_that_are_read_only_are_replaced() {
    let test = "sessions::sessions_that_are_read_only_are_replaced";
    let Some((roled, mut sql)) = roled(test, "superuser").await else { return };
    sql.run(&format!("alter role {} set default_transaction_read_only = on", roled.role)).await;
    let node = roled.storage().open().await.unwrap();
    let writes = |id: &'static str| {
        let node = node.clone();
        async move { node.enqueue(&[message(id)]).await }
    };
    let refused = writes("a").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    // Several sessions at once, which are all read-only when the server takes writes again.
    let read = <[_; 4]>::from(tokio::join!(node.status(), node.status(), node.status(), node.status()));
    assert!(read.iter().all(Result::is_ok), "{read:?}");
    let sessions = format!("select count(*) from pg_stat_activity where usename = '{}'", roled.role);
    let sessions = sql.number(&sessions).await;
    assert!(sessions >= 4, "{sessions} sessions");
    sql.run(&format!("alter role {} reset default_transaction_read_only", roled.role)).await;

    let back = Instant::now();
    let mut failures = 0;
    while writes("e").await.is_err() {
        failures += 1;
        assert!(back.elapsed() < Duration::from_secs(2), "sessions are read-only for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(failures <= 1, "one failure is enough to know of the others, not {failures}");
    let all = <[_; 4]>::from(tokio::join!(writes("f"), writes("g"), writes("h"), writes("i")));
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    drop(node);
    roled.end(sql).await;
}

/// What a session has prepared is gone, or no longer fits the tables: only a new session, or preparing anew, helps.
#[tokio::test]
async fn sessions_with_prepared_statements_that_no_longer_fit_are_replaced() {
    let test = "sessions::sessions_with_prepared_statements_that_no_longer_fit_are_replaced";
    let Some((roled, mut sql)) = roled(test, "superuser").await else { return };
    let node = roled.storage().open().await.unwrap();
    node.status().await.unwrap();
    // The status selects this column; its type is part of what was prepared.
    sql.run("alter table @subscription alter column pattern type varchar(400)").await;
    let begin = Instant::now();
    while let Err(error) = node.status().await {
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(node);
    roled.end(sql).await;
}

#[tokio::test]
async fn a_node_that_listens_asks_how_full_the_queue_of_notifications_is() {
    let test = "sessions::a_node_that_listens_asks_how_full_the_queue_of_notifications_is";
    let Some(database) = test_database().unwrap() else {
        return skip(test, "no PostgreSQL server on this machine");
    };
    let url = format!("{}?application_name=asks", database.url);
    Storage::parse(&database.url).unwrap().migrate().await.unwrap();
    let node = Storage::parse(&url).unwrap().open().await.unwrap();
    let mut sql = Sql::postgres(&database.direct_url).await;
    let listening =
        "select count(*) from pg_stat_activity where application_name = 'asks' and query ilike 'LISTEN%'";
    let asked = "select count(*) from pg_stat_activity where application_name = 'asks' \
        and query like '%pg_notification_queue_usage%'";
    assert_eq!(sql.number(listening).await, 0, "nobody waits for wake-ups yet");
    let waiting = tokio::spawn(async move {
        loop {
            node.woken(laneway_core::SubscriptionId(1)).await;
        }
    });
    let begin = Instant::now();
    while sql.number(listening).await == 0 || sql.number(asked).await == 0 {
        assert!(begin.elapsed() < PATIENCE, "the node does not listen and ask");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let open = "select count(*) from pg_stat_activity where application_name = 'asks' and xact_start is not null";
    let begin = Instant::now();
    while sql.number(open).await > 0 {
        assert!(begin.elapsed() < PATIENCE, "a listening session is in a transaction");
    }
    waiting.abort();
}

/// Settings of a node that are set in a session.
const LEFT: &str = "select string_agg(name || '=' || setting, ' ' order by name) from pg_settings where source = 'session'
    and name in ('row_security', 'jit', 'enable_seqscan', 'plan_cache_mode', 'idle_in_transaction_session_timeout')";

/// A client that leaves nothing behind on a session.
async fn plain(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().unwrap();
    PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap()
}

/// The one value of a query, in the simple protocol.
async fn text(connection: &mut PgConnection, query: &'static str) -> Option<String> {
    connection.fetch_one(sqlx::raw_sql(query)).await.unwrap().get(0)
}

#[tokio::test]
async fn a_pooler_that_lends_transactions_is_refused_before_anything_is_set() {
    let test = "sessions::a_pooler_that_lends_transactions_is_refused_before_anything_is_set";
    let Some(database) = test_database().unwrap() else {
        return skip(test, "no PostgreSQL server on this machine");
    };
    let Some(pooler) = Pooler::start(&database.direct_url, PoolMode::Transaction).unwrap() else {
        return skip(test, "no PgBouncer on this machine");
    };
    Storage::parse(&database.direct_url).unwrap().migrate().await.unwrap();
    let through = pooler.url(&database.direct_url).unwrap();
    // Sessions of other applications, which the pooler lends to the node too.
    let (mut others, mut more) = (plain(&through).await, plain(&through).await);
    for statement in ["begin", "commit"] {
        others.execute(statement).await.unwrap();
        more.execute(statement).await.unwrap();
    }
    let Err(error) = Storage::parse(&through).unwrap().open().await else {
        panic!("a pooler that lends transactions was not recognised")
    };
    assert!(matches!(error, StoreError::Misconfigured(_)), "{error:?}");
    let said = error.to_string();
    for word in [&pooler.address()[..], "pool_mode = session", "docs/postgresql.md"] {
        assert!(said.contains(word), "{said}");
    }
    for _ in 0..4 {
        let mut any = plain(&through).await;
        assert_eq!(text(&mut any, LEFT).await, None, "settings were left on a session of others");
        assert_eq!(text(&mut any, "select min(name) from pg_prepared_statements").await, None);
    }
}

#[tokio::test]
async fn a_pooler_that_keeps_sessions_serves_a_node() {
    let test = "sessions::a_pooler_that_keeps_sessions_serves_a_node";
    let Some(database) = test_database().unwrap() else {
        return skip(test, "no PostgreSQL server on this machine");
    };
    let Some(pooler) = Pooler::start(&database.direct_url, PoolMode::Session).unwrap() else {
        return skip(test, "no PgBouncer on this machine");
    };
    let through = pooler.url(&database.direct_url).unwrap();
    let storage = Storage::parse(&through).unwrap();
    storage.migrate().await.unwrap();
    let node = storage.open().await.unwrap();
    let topology = laneway_core::Topology {
        subscriptions: vec![subscription("handler", "t.>")],
        payload_bytes_max: PAYLOAD_BYTES_MAX,
    };
    let subscription = number_of(&node.apply(&topology).await.unwrap(), "handler");
    node.enqueue(&[message("a")]).await.unwrap();
    let batch = claim_soon(&*node, subscription).await;
    settle_surely(&*node, &complete_all(&batch)).await;
    // What was set is cleared with the session, for whoever has it next.
    drop(node);
    for _ in 0..4 {
        assert_eq!(text(&mut plain(&through).await, LEFT).await, None, "settings were left on a session of others");
    }
}

/// A primary and a standby of it, with a node's tables.
async fn replicated(test: &str) -> Option<(Cluster, Cluster)> {
    let Some(primary) = Cluster::start().unwrap() else {
        skip(test, "no PostgreSQL server on this machine");
        return None;
    };
    Storage::parse(&primary.url("postgres")).unwrap().migrate().await.unwrap();
    let standby = primary.start_standby().unwrap();
    Some((primary, standby))
}

/// `host:port` of a cluster.
fn address(cluster: &Cluster) -> String {
    let url = cluster.url("");
    url.rsplit('@').next().unwrap().trim_end_matches('/').to_owned()
}

#[tokio::test]
async fn a_standby_can_be_looked_at() {
    let Some((_primary, standby)) = replicated("sessions::a_standby_can_be_looked_at").await else { return };
    let store = Storage::parse(&standby.url("postgres")).unwrap().open().await.unwrap();
    assert_eq!(store.status().await.unwrap().messages, 0);
    let refused = store.enqueue(&[message("a")]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
}

#[tokio::test]
async fn a_node_finds_the_primary_among_several_hosts_and_follows_a_failover() {
    let test = "sessions::a_node_finds_the_primary_among_several_hosts_and_follows_a_failover";
    let Some((primary, standby)) = replicated(test).await else { return };
    let several = |settings: &str| {
        let url = format!("postgres://postgres@{},{}/postgres{settings}", address(&standby), address(&primary));
        Storage::parse(&url).unwrap()
    };
    let refused = several("?target_session_attrs=standby").open().await.unwrap();
    refused.enqueue(&[message("x")]).await.unwrap_err();
    let node = several("?target_session_attrs=read-write").open().await.unwrap();
    node.enqueue(&[message("a")]).await.unwrap();
    several("").open().await.unwrap().enqueue(&[message("b")]).await.unwrap();
    let waiting = {
        let node = node.clone();
        tokio::spawn(async move {
            loop {
                node.woken(laneway_core::SubscriptionId(1)).await;
            }
        })
    };
    // The standby has all of it before the primary goes.
    let mut follower = Sql::postgres(&standby.url("postgres")).await;
    let begin = Instant::now();
    while follower.count("message").await < 2 {
        assert!(begin.elapsed() < PATIENCE, "the standby does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let old = address(&primary);
    drop(primary);
    let failed = node.enqueue(&[message("c")]).await.unwrap_err();
    assert!(failed.is_transient(), "{failed:?}");
    let failed = node.enqueue(&[message("c")]).await.unwrap_err().to_string();
    assert!(failed.contains(&old) && failed.contains(&format!("{} is a standby", address(&standby))), "{failed}");
    standby.promote().unwrap();
    let begin = Instant::now();
    while node.enqueue(&[message("c")]).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(5), "the new primary is not found");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waiting.abort();
}
