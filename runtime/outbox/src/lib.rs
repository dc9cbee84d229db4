//! Laneway for applications: messages and markers in the application's own transactions.
//!
//! A producer writes its rows and its messages in one transaction:
//!
//! ```no_run
//! # async fn order(pool: &sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! use laneway_outbox::{Outgoing, enqueue};
//!
//! let mut transaction = pool.begin().await?;
//! sqlx::query("INSERT INTO orders (number) VALUES (42)").execute(&mut *transaction).await?;
//! enqueue(&mut transaction, &Outgoing::new("orders.created", r#"{"number":42}"#)?).await?;
//! transaction.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! One that consumes on its own, from a broker say, keeps markers in the transaction of its effects:
//!
//! ```no_run
//! # async fn consume(pool: &sqlx::SqlitePool, id: &str) -> Result<(), Box<dyn std::error::Error>> {
//! use laneway_outbox::markers;
//!
//! let mut transaction = pool.begin().await?;
//! if markers::mark_processed(&mut transaction, "billing", id, None).await? {
//!     sqlx::query("UPDATE account SET paid = paid + 1").execute(&mut *transaction).await?;
//! }
//! transaction.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A duplicate finds its marker, waits for the transaction that wrote it, and is told `false` once that has committed.
//!
//! # Privileges on PostgreSQL
//!
//! A role needs the schema, what it calls, and for [`enqueue`] two privileges on the outbox; it reads no payload:
//!
//! ```sql
//! GRANT USAGE ON SCHEMA laneway TO app;
//! -- enqueue, enqueue_all
//! GRANT INSERT, SELECT (id) ON laneway.message TO app;
//! -- cancel, reschedule: of any message
//! GRANT EXECUTE ON FUNCTION laneway.cancel_message(text), laneway.reschedule_message(text, timestamptz) TO app;
//! -- markers: of any consumer
//! GRANT EXECUTE ON FUNCTION laneway.mark_processed(text, text, jsonb), laneway.is_processed(text, text),
//!     laneway.purge_processed(text, timestamptz, integer) TO app;
//! ```
//!
//! # Transactions
//!
//! - On SQLite, one that reads before it writes should begin as `BEGIN IMMEDIATE` (sqlx: `pool.begin_with(..)`). As a
//!   plain one it fails with `database is locked`, without waiting, if another has committed since it read.
//!   [`enqueue`], [`cancel`], [`reschedule`] and [`markers::mark_processed`] begin with a write and wait their turn.
//! - On PostgreSQL, [`enqueue`], [`cancel`], [`reschedule`] and [`markers::mark_processed`] may fail with SQLSTATE
//!   40001 instead of answering where the transaction is REPEATABLE READ or SERIALIZABLE and another has changed the
//!   same message since it began: roll it back and begin once more. At READ COMMITTED, the default, they wait and
//!   answer.
//! - [`enqueue`] of an id waits while another transaction that has written the same id is open.
//! - [`When::After`] counts from the start of the transaction on PostgreSQL, from the statement on SQLite.
//! - Markers are kept for as long as the runtime's cleanup says: see [`markers`].

mod enqueue;
mod error;
pub mod markers;
mod outgoing;
mod priority;
mod session;
mod waiting;

pub use enqueue::{enqueue, enqueue_all};
pub use error::OutboxError;
pub use laneway_core::{Change, Enqueued, Header, MessageId, Name, Priority, Topic};
pub use outgoing::{Outgoing, When};
pub use priority::{current_priority, with_priority, with_priority_sync};
pub use session::{Connection, Session};
pub use waiting::{cancel, reschedule};
