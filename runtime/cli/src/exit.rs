//! Exit codes, as the help documents them.

use laneway_core::StoreError;

/// All done.
pub const SUCCESS: u8 = 0;
/// Something failed; the last line on stderr says what.
pub const FAILURE: u8 = 1;
/// The command line or a value in it is wrong.
pub const USAGE: u8 = 2;
/// The database is out of reach; trying again later may help.
pub const UNAVAILABLE: u8 = 3;
/// The database's schema is older, newer, or not Laneway's.
pub const SCHEMA: u8 = 4;

/// What `--help` says of them.
pub const HELP: &str =
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 database out of reach, 4 schema does not fit";

/// The code of an error.
pub fn of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<StoreError>() {
        Some(StoreError::Unavailable(_)) => UNAVAILABLE,
        Some(StoreError::SchemaOlder { .. } | StoreError::SchemaNewer { .. } | StoreError::NotOurs(_)) => SCHEMA,
        _ if error.is::<clap::Error>() => USAGE,
        _ => FAILURE,
    }
}
