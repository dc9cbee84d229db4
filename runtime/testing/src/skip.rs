//! Tests that cannot run on this machine say so, where it can be counted.

use std::fs::OpenOptions;
use std::io::Write;

/// File that the lines of skipped tests are appended to, if set.
const SKIPS_FILE: &str = "LANEWAY_TEST_SKIPS";

/// With the value `1`, a test that would be skipped fails.
const REQUIRE_ALL: &str = "LANEWAY_REQUIRE_ALL";

/// Records that a test does not run, and why: `SKIPPED: <test>: <why>` on stderr, and in the file that
/// `LANEWAY_TEST_SKIPS` names. The caller returns after it.
///
/// # Panics
/// If `LANEWAY_REQUIRE_ALL` is `1`, or if the line cannot be written: a skip that nobody sees is a lie.
pub fn skip(test: &str, why: &str) {
    assert!(
        std::env::var(REQUIRE_ALL).as_deref() != Ok("1"),
        "{test} would be skipped, but {REQUIRE_ALL}=1: {why}"
    );
    let line = format!("SKIPPED: {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os(SKIPS_FILE) {
        // One write of a short line in append mode: lines of concurrent tests do not mix.
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            panic!("{test} is skipped, but {} cannot be written: {error}", path.display());
        }
    }
}
