//! One session of a server: how it is opened, set up, and told from a part of one that a pooler lends.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laneway_core::StoreError;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::connection::{Outcome, classify_of};
use super::socket;

/// What a node wants of its sessions.
///
/// Row security off: a policy would hide messages, and a delivery without a message is dropped. So a role that is not
/// exempt from policies gets an error instead.
///
/// Plans do not depend on statistics. A queue's tables are empty in one moment and full in the next, so what the
/// planner last saw of them is always wrong; with these, each statement has only the plan that its indexes give. A
/// generic plan also saves planning each claim and settlement anew.
const SETTINGS: [(&str, &str); 13] = [
    ("row_security", "off"),
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    ("enable_memoize", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "10s"),
    (MARK, "direct"),
];

/// A setting of our own, which a server takes with the connection and a pooler does not hand on. It tells them apart
/// before anything is set on a session that may be somebody else's in the next moment.
const MARK: &str = "laneway.session";

/// Longest wait for a pooler to give a second session.
const SECOND_SESSION_MAX: Duration = Duration::from_secs(5);
/// So often a pooler is asked whether it keeps a session for its client.
const LOOKS: u32 = 3;

/// What a session is asked first. In the simple protocol, which leaves no prepared statement behind.
const LOOK: &str = "-- session.look
    SELECT coalesce(current_setting('laneway.session', true) = 'direct', false), pg_is_in_recovery(),
        current_setting('transaction_read_only') = 'on'";
const PROCESS: &str = "SELECT pg_backend_pid()";

/// A session that is set up.
pub(super) struct Session {
    pub connection: PgConnection,
    /// Whether the server follows another one.
    pub is_standby: bool,
    /// Whether it takes no writes: a standby, or set so by its administrator.
    pub is_read_only: bool,
}

/// One server of an address, or a pooler before it.
pub(super) struct Server {
    options: PgConnectOptions,
    /// Whether a pooler answers there.
    is_pooler: AtomicBool,
    /// Filled once the pooler was seen to keep a session for its client.
    keeps_sessions: OnceCell<()>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.options.get_socket() {
            Some(socket) => write!(f, "{}", socket.display()),
            None => write!(f, "{}:{}", self.options.get_host(), self.options.get_port()),
        }
    }
}

impl Server {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        // Poolers refuse what they do not know. It is about numbers as text, and ours are binary.
        let options = options.extra_float_digits(None);
        Self { options, is_pooler: AtomicBool::new(false), keeps_sessions: OnceCell::new() }
    }

    /// The role that connects.
    pub(super) fn role(&self) -> &str {
        self.options.get_username()
    }

    #[cfg(test)]
    pub(super) fn database(&self) -> Option<&str> {
        self.options.get_database()
    }

    #[cfg(test)]
    pub(super) fn application(&self) -> Option<&str> {
        self.options.get_application_name()
    }

    /// How a connection for wake-ups is opened. It sends no statement but `LISTEN`.
    pub(super) fn listening(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Sees to what is missing on the sockets of connections that are open.
    pub(super) fn tune(&self) {
        socket::tune(self.options.get_port());
    }

    /// Opens a session and sets it up.
    pub(super) async fn open(&self) -> Result<Session, StoreError> {
        self.try_open().await.map_err(|error| self.name(error))
    }

    async fn try_open(&self) -> Outcome<Session> {
        let mut connection = self.connect().await?;
        self.tune();
        let look = first_row(&mut connection, LOOK).await?;
        let (is_direct, is_standby, is_read_only): (bool, bool, bool) =
            (look.try_get(0)?, look.try_get(1)?, look.try_get(2)?);
        if !is_direct {
            self.is_pooler.store(true, Ordering::Relaxed);
            self.keeps_sessions.get_or_try_init(|| self.look_at_pooler(&mut connection)).await?;
            // The session is this connection's until it is closed, and the pooler clears it then.
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(set_all()))).await?;
        }
        Ok(Session { connection, is_standby, is_read_only })
    }

    /// Connects, with the settings if a server answers. A pooler refuses them, or leaves them out.
    async fn connect(&self) -> Outcome<PgConnection> {
        if !self.is_pooler.load(Ordering::Relaxed) {
            match PgConnection::connect_with(&self.options.clone().options(SETTINGS)).await {
                Err(error) if refuses_settings(&error) => self.is_pooler.store(true, Ordering::Relaxed),
                done => return done,
            }
        }
        PgConnection::connect_with(&self.options).await
    }

    /// Finds out whether a pooler gives a session to others while its client has no transaction open, and leaves
    /// nothing behind on any: only the number of the server's process is asked for.
    ///
    /// A session that was used last is what most poolers lend next. So a second client, in a transaction, gets the
    /// process of the first one; or the first gets another one while the second holds it.
    async fn look_at_pooler(&self, first: &mut PgConnection) -> Outcome<()> {
        let mut second = PgConnection::connect_with(&self.options).await?;
        let own = process(first).await?;
        for _ in 0..LOOKS {
            let before = process(first).await?;
            let Ok(held) = timeout(SECOND_SESSION_MAX, process_in_transaction(&mut second)).await else {
                return Err(refusal(format!(
                    "the pooler had no second session free for {SECOND_SESSION_MAX:?}; its pool needs one for each of \
                     [storage] connections_max, and two more"
                )));
            };
            let (held, after) = (held?, process(first).await?);
            second.execute(sqlx::raw_sql("ROLLBACK")).await?;
            if before != own || after != own || held == own {
                return Err(refusal(
                    "a connection pooler answers there, and lends each transaction another session, as PgBouncer does \
                     with pool_mode = transaction or statement; settings, prepared statements and LISTEN would be other \
                     applications' too, so nothing was done. Let the pooler keep a session for each client (pool_mode = \
                     session, which [databases] can say for this database alone), or name the server itself in the \
                     storage url; see docs/postgresql.md"
                        .to_owned(),
                ));
            }
        }
        super::servers::close(second);
        tracing::info!(server = %self, "a connection pooler answers, and keeps sessions for their clients");
        Ok(())
    }

    /// The error, with what it is about.
    pub(super) fn name(&self, error: sqlx::Error) -> StoreError {
        match classify_of(error, self.role()) {
            StoreError::Unavailable(text) => StoreError::Unavailable(format!("{self}: {text}")),
            StoreError::Misconfigured(text) => StoreError::Misconfigured(format!("{self}: {text}")),
            StoreError::Other(text) => StoreError::Other(format!("{self}: {text}")),
            other => other,
        }
    }
}

fn refusal(text: String) -> sqlx::Error {
    sqlx::Error::AnyDriverError(Box::new(StoreError::Misconfigured(text)))
}

/// PgBouncer: `unsupported startup parameter: options`, or since 1.20 `... in options: jit`.
fn refuses_settings(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    let code = error.and_then(|error| error.code());
    error.is_some_and(|error| match code.as_deref() {
        Some("08P01") => error.message().contains("startup parameter"),
        // Amazon's RDS Proxy: command-line options are not supported.
        Some("0A000") => error.message().contains("options"),
        _ => false,
    })
}

fn set_all() -> String {
    let set = |(name, value): &(&str, &str)| format!("SET {name} = '{value}'");
    SETTINGS.iter().filter(|(name, _)| *name != MARK).map(set).collect::<Vec<_>>().join("; ")
}

async fn first_row(connection: &mut PgConnection, query: &'static str) -> Outcome<PgRow> {
    connection.fetch_one(sqlx::raw_sql(query)).await
}

async fn process(connection: &mut PgConnection) -> Outcome<i32> {
    first_row(connection, PROCESS).await?.try_get(0)
}

async fn process_in_transaction(connection: &mut PgConnection) -> Outcome<i32> {
    connection.execute(sqlx::raw_sql("BEGIN")).await?;
    process(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_the_same_with_the_connection_and_by_statement() {
        let by_statement = set_all();
        assert!(by_statement.contains("SET row_security = 'off'; SET jit = 'off'"), "{by_statement}");
        assert!(by_statement.contains("'read committed'"), "{by_statement}");
        assert!(!by_statement.contains(MARK));
    }
}
