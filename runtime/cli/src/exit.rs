//! Exit codes, as the help documents them.

use std::fmt;

use laneway_core::StoreError;

/// All done.
pub const SUCCESS: u8 = 0;
/// Something failed; the last line on stderr says what.
pub const FAILURE: u8 = 1;
/// The command line is wrong, or a value in it.
pub const USAGE: u8 = 2;
/// The database is out of reach, or its file was exchanged under the node; trying again later may help.
pub const UNAVAILABLE: u8 = 3;
/// The database's schema is older, newer, or not Laneway's.
pub const SCHEMA: u8 = 4;
/// Stopped with messages still in hand; their leases end by themselves.
pub const INCOMPLETE: u8 = 5;
/// `laneway doctor` found something wrong, or could not mend all of it.
pub const WRONG: u8 = 6;

/// What `--help` says of them.
pub const HELP: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 database out of reach, 4 schema does not fit, \
     5 stopped with messages in hand, 6 the doctor found something wrong";

/// `laneway run` ended before everything in hand was settled or handed back; holds why.
#[derive(Debug)]
pub struct Incomplete(pub &'static str);

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped with messages in hand: {}; their leases end by themselves", self.0)
    }
}

impl std::error::Error for Incomplete {}

/// `laneway doctor` found so many things wrong.
#[derive(Debug)]
pub struct Wrong(pub usize);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} thing(s) are wrong", self.0)
    }
}

impl std::error::Error for Wrong {}

/// A wrong command line that only the command itself can tell. Ends with [`USAGE`], as clap's own errors do.
pub fn usage(text: &str) -> anyhow::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{text}\n")).into()
}

/// The code of an error.
pub fn of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<StoreError>() {
        Some(StoreError::Unavailable(_) | StoreError::Exchanged(_)) => UNAVAILABLE,
        Some(StoreError::SchemaOlder { .. } | StoreError::SchemaNewer { .. } | StoreError::NotOurs(_)) => SCHEMA,
        _ if error.is::<Incomplete>() => INCOMPLETE,
        _ if error.is::<Wrong>() => WRONG,
        _ => FAILURE,
    }
}
