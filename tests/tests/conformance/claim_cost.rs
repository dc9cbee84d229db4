//! Behaviour 18: what a claim costs does not grow with what is not due.

use std::time::{Duration, Instant};

use laneway_core::{ClaimRequest, SubscriptionId, Verdict};

use crate::fixture::*;
use crate::sql::Sql;

/// Messages that are due and claimed at once, in each measurement.
const DUE: u32 = 100;

/// Rows of each kind that a claim must step around.
fn bystanders() -> u64 {
    if full() { 1_000_000 } else { 20_000 }
}

/// Whether this is the long run.
fn full() -> bool {
    std::env::var("LANEWAY_TEST_FULL").as_deref() == Ok("1")
}

/// Puts rows of three kinds into the subscription: delayed, leased, and due in the other lane. The delayed and
/// leased ones have the five named priorities, so that they stand on all sides of what is due.
async fn crowd(fixture: &Fixture, sql: &mut Sql, subscription: SubscriptionId, rows: u64) {
    let hour = sql.span(HOUR);
    let numbers = |from: u64| {
        let to = from + rows - 1;
        if fixture.is_sqlite() {
            format!(
                "(with recursive n(n) as (select {from} union all select n + 1 from n where n < {to})
                 select n from n)"
            )
        } else {
            format!("(select n from generate_series({from}, {to}) n)")
        }
    };
    // Numbers far from those of messages: the rows need none, as nobody claims them.
    for (kind, lane, priority, due) in
        [(1, 0, "(n % 5 - 2) * 50", format!("now() + {hour}")), (3, 1, "-100", "now()".to_owned())]
    {
        let (id_column, id) = match fixture.is_sqlite() {
            true => ("id, ", format!("n * 1048576 + {subscription}, ")),
            false => ("", String::new()),
        };
        sql.run(&format!(
            "insert into @delivery ({id_column}message_seq, subscription_id, lane, priority, available_at)
             select {id}n, {subscription}, {lane}, {priority}, {due} from {} as numbers",
            numbers(kind * 1_000_000_000)
        ))
        .await;
    }
    let leased = numbers(2_000_000_000);
    sql.run(&match fixture.is_sqlite() {
        true => format!(
            "insert into @delivery (id, message_seq, subscription_id, lane, priority, available_at, lease_token, attempt,
                 first_attempt_at)
             select n * 1048576 + {subscription}, n, {subscription}, 0, (n % 5 - 2) * 50, now() + {hour}, -n, 1, now()
             from {leased} as numbers"
        ),
        false => format!(
            "insert into @lease (leased_until, message_seq_min, message_seq_max, subscription_id, lane, open,
                 message_seqs, priorities, attempts, first_attempts_at, last_errors)
             select now() + {hour}, min(n), max(n), {subscription}, 0, repeat('1', count(*)::integer)::bit varying,
                 array_agg(n), array_agg((n % 5 - 2) * 50), array_agg(1), array_agg(null::timestamptz),
                 array_agg(null::text)
             from {leased} as numbers group by n / 100"
        ),
    }).await;
    if !fixture.is_sqlite() {
        sql.run("vacuum analyze @delivery, @lease").await;
    }
}

/// Pages of the deliveries and leases, the rows' and the indexes', that one node reads to claim once, from memory or not. A
/// session's counts are complete when it has ended, so the node lives for this claim only.
async fn pages_of_a_claim(fixture: &Fixture, sql: &mut Sql, subscription: SubscriptionId) -> i64 {
    let pages = "select sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit
            + coalesce(toast_blks_read + toast_blks_hit + tidx_blks_read + tidx_blks_hit, 0))
        from pg_statio_user_tables where schemaname = 'laneway' and relname in ('delivery', 'lease')";
    // What this session did itself is counted before, not meanwhile.
    sql.run("select pg_stat_force_next_flush()").await;
    let before = sql.number(pages).await;
    let node = fixture.another_node_named("probe").await;
    let claim = ClaimRequest { limit: DUE, ..request(subscription) };
    let batch = node.claim(claim).await.unwrap().expect("something is due");
    assert_eq!(batch.deliveries.len(), DUE as usize);
    drop(node);
    let sessions = "from pg_stat_activity where datname = current_database() and application_name = 'probe'";
    sql.run(&format!("select pg_terminate_backend(pid) {sessions}")).await;
    wait_for(sql, &format!("select count(*) {sessions}"), 0).await;
    let spent = sql.number(pages).await - before;
    // Handed back by this session, as the fixture's node would count its pages whenever it likes.
    let token = batch.token;
    let released = sql
        .run(&format!(
            "insert into @delivery (message_seq, subscription_id, lane, priority, available_at)
             select message_seq, subscription_id, lane, priority, now() from @owed where lease_token = {token}"
        ))
        .await;
    assert_eq!(released, u64::from(DUE));
    sql.run(&format!("delete from @lease where token = {token}")).await;
    spent
}

async fn wait_for(sql: &mut Sql, number: &str, wanted: i64) {
    let deadline = Instant::now() + PATIENCE;
    while sql.number(number).await != wanted {
        assert!(Instant::now() < deadline, "{number} is not {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Keeps PostgreSQL from reading pages of its own accord.
async fn without_autovacuum(sql: &mut Sql) {
    let off = "autovacuum_enabled = off, toast.autovacuum_enabled = off";
    for table in ["@delivery", "@lease"] {
        sql.run(&format!("alter table {table} set ({off})")).await;
    }
}

async fn enqueue_due(sql: &mut Sql) {
    let rows = vec!["('t.x', '{}')"; DUE as usize].join(", ");
    sql.run(&format!("insert into @message (topic, payload) values {rows}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_reads_no_more_pages_beside_rows_that_are_not_due() {
    let test = "claim_cost::a_claim_reads_no_more_pages_beside_rows_that_are_not_due";
    on_postgres(test, async |fixture: &Fixture| {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        enqueue_due(&mut sql).await;
        without_autovacuum(&mut sql).await;
        sql.run("vacuum analyze @delivery").await;
        let empty = pages_of_a_claim(fixture, &mut sql, subscription).await;
        let rows = bystanders();
        crowd(fixture, &mut sql, subscription, rows).await;
        let crowded = pages_of_a_claim(fixture, &mut sql, subscription).await;
        eprintln!("pages of a claim of {DUE}: {empty} alone, {crowded} beside 3 x {rows} rows");
        assert!(crowded * 10 <= empty * 12, "{empty} pages alone, {crowded} beside 3 x {rows} rows");
    })
    .await;
}

/// A tree of more rows is deeper, which the test above counts too. Here both trees have the same rows, once those
/// of another subscription and once our own: what is more is what the claim stepped over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_steps_over_no_row_that_is_not_due() {
    let test = "claim_cost::a_claim_steps_over_no_row_that_is_not_due";
    on_postgres(test, async |fixture: &Fixture| {
        let subscriptions = fixture.subscribe_to(&[("ours", "t.x"), ("another", "u.x")]).await;
        let mut sql = fixture.sql().await;
        without_autovacuum(&mut sql).await;
        enqueue_due(&mut sql).await;
        let rows = bystanders();
        crowd(fixture, &mut sql, subscriptions[1], rows).await;
        let apart = pages_of_a_claim(fixture, &mut sql, subscriptions[0]).await;
        sql.run(&format!("delete from @delivery where subscription_id = {}", subscriptions[1])).await;
        sql.run(&format!("delete from @lease where subscription_id = {}", subscriptions[1])).await;
        sql.run("vacuum full @delivery").await;
        sql.run("vacuum full @lease").await;
        crowd(fixture, &mut sql, subscriptions[0], rows).await;
        let among = pages_of_a_claim(fixture, &mut sql, subscriptions[0]).await;
        eprintln!("pages of a claim of {DUE}: {apart} apart from 3 x {rows} rows, {among} among them");
        assert!(among * 10 <= apart * 12, "{apart} pages apart from 3 x {rows} rows, {among} among them");
    })
    .await;
}

/// On SQLite pages cannot be counted from outside, so this holds the time; it is of another order where rows are
/// stepped over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_on_sqlite_takes_no_longer_beside_rows_that_are_not_due() {
    on_sqlite(async |fixture: &Fixture| {
        let subscription = fixture.subscribe().await;
        let mut sql = fixture.sql().await;
        enqueue_due(&mut sql).await;
        let alone = time_of_a_claim(fixture, subscription).await;
        let rows = bystanders();
        crowd(fixture, &mut sql, subscription, rows).await;
        time_of_a_claim(fixture, subscription).await;
        let crowded = time_of_a_claim(fixture, subscription).await;
        eprintln!("time of a claim of {DUE}: {alone:?} alone, {crowded:?} beside 3 x {rows} rows");
        assert!(
            crowded < 3 * alone + Duration::from_millis(5),
            "{alone:?} alone, {crowded:?} beside 3 x {rows} rows"
        );
    })
    .await;
}

/// The shortest of several claims: what else the machine does makes them longer.
async fn time_of_a_claim(fixture: &Fixture, subscription: SubscriptionId) -> Duration {
    let mut times = Vec::new();
    for _ in 0..15 {
        let started = Instant::now();
        let batch =
            fixture.store.claim(ClaimRequest { limit: DUE, ..request(subscription) }).await.unwrap().unwrap();
        times.push(started.elapsed());
        let release: Vec<_> =
            (0..batch.deliveries.len()).map(|position| settlement(&batch, position, Verdict::RELEASE)).collect();
        fixture.settle_all(&release).await;
    }
    times.into_iter().min().unwrap()
}
