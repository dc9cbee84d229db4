//! Log lines, written to the host's log with the plugin's and the message's name.
//!
//! The macros take named values, which become fields, before the text:
//!
//! ```no_run
//! use laneway_sdk::info;
//!
//! let (carrier, minutes) = ("UA", 75);
//! info!(carrier = carrier, "departed {minutes} minutes late");
//! ```

use crate::host;

pub use crate::bindings::laneway::plugin::log::Level;

/// Writes a line. Fields are named values beside the text. What is over the host's limits is cut.
pub fn log(level: Level, message: &str, fields: &[(String, String)]) {
    host::log::log(level, message, fields);
}

/// Writes a line at `trace`.
#[macro_export]
macro_rules! trace {
    ($($line:tt)+) => { $crate::__log!(Trace, $($line)+) };
}

/// Writes a line at `debug`.
#[macro_export]
macro_rules! debug {
    ($($line:tt)+) => { $crate::__log!(Debug, $($line)+) };
}

/// Writes a line at `info`.
#[macro_export]
macro_rules! info {
    ($($line:tt)+) => { $crate::__log!(Info, $($line)+) };
}

/// Writes a line at `warn`.
#[macro_export]
macro_rules! warn {
    ($($line:tt)+) => { $crate::__log!(Warn, $($line)+) };
}

/// Writes a line at `error`.
#[macro_export]
macro_rules! error {
    ($($line:tt)+) => { $crate::__log!(Error, $($line)+) };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log {
    ($level:ident, $($field:ident = $value:expr,)* $text:literal $($arguments:tt)*) => {
        $crate::log::log(
            $crate::log::Level::$level,
            &::std::format!($text $($arguments)*),
            &[$((
                ::std::string::String::from(::std::stringify!($field)),
                ::std::string::ToString::to_string(&$value),
            )),*],
        )
    };
}
