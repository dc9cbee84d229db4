//! What can go wrong.

use laneway_core::{InvalidName, InvalidTopic, Name};

/// Why a message or marker was not written. The transaction is the application's to roll back.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The topic is not one.
    #[error(transparent)]
    Topic(#[from] InvalidTopic),
    /// An id or name is not one.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A count that must be at least one.
    #[error("a batch of {0} rows is none; at least 1 is needed")]
    BatchSize(u32),
    /// A consumer's name that is or was a subscription's: each would take the other's markers for its own.
    #[error("`{0}` is the name of a subscription; give the consumer a name of its own")]
    NameTaken(Name),
    /// A message of another id stands at this position of its stream. The transaction can go on.
    #[error("position {position} of stream `{stream}` is taken by a message of another id")]
    PositionTaken {
        /// The stream.
        stream: String,
        /// The position in it.
        position: i64,
    },
    /// The database refused it, or cannot be reached.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}
