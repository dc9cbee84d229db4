//! The plugin's configuration, as the operator wrote it.

use std::fmt::Display;
use std::str::FromStr;

use crate::Failure;
use crate::host;

/// Code of the failures made here.
const CODE: &str = "config";

/// The value of a key, or `None`.
#[must_use]
pub fn get(key: &str) -> Option<String> {
    host::config::get(key)
}

/// The value of a key that must be there.
///
/// # Errors
/// [`Failure::Misconfigured`] if the key is missing or empty.
pub fn required(key: &str) -> Result<String, Failure> {
    match get(key) {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(Failure::misconfigured(CODE, format_args!("configuration key `{key}` is missing; set it"))),
    }
}

/// The value of a key as a `T`, or `None` if the key is missing.
///
/// # Errors
/// [`Failure::Misconfigured`] if there is a value and it is not a `T`.
pub fn parse<T: FromStr<Err: Display>>(key: &str) -> Result<Option<T>, Failure> {
    let Some(value) = get(key) else { return Ok(None) };
    match value.parse() {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(Failure::misconfigured(CODE, format_args!("configuration key `{key}`: {error}"))),
    }
}
