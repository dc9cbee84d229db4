//! What one attempt may use.

use std::time::Duration;

/// Limits of one plugin. Unless it says otherwise, each holds for one attempt, and counts afresh for the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory of the guest, in bytes, all its memories together. Default 16 MiB.
    pub memory_bytes_max: usize,
    /// Elements of the guest's tables, all together. Default 32,768.
    pub table_elements_max: usize,
    /// Data that one call between guest and host may carry from the guest, in bytes: an effect, a log line, the
    /// answer. Default 8 MiB.
    pub output_bytes_max: usize,
    /// Resources (streams, requests, handles) that the guest may hold at once. Default 1,000.
    pub resources_max: usize,
    /// Reads, writes, additions and emitted messages, together. Default 1,000.
    pub effects_max: usize,
    /// Bytes of keys, values and bodies of all effects. Default 8 MiB.
    pub effect_bytes_max: usize,
    /// Log lines; further ones are dropped and counted. Default 100.
    pub log_lines_max: u32,
    /// Length of a log line with its fields, in bytes; the rest is cut. Default 8 KiB.
    pub log_line_bytes_max: usize,
    /// Dropped log that is put up with before the attempt is ended, in bytes (a line counts for at least 100).
    /// Default 4 MiB.
    pub log_flood_bytes_max: usize,
    /// HTTP requests that may be under way at once. Default 8.
    pub http_concurrent_max: usize,
    /// Connections that the plugin may have open, all its attempts together and those included that are kept for
    /// the next request; further ones wait for one to close. Default 256.
    pub http_connections_max: usize,
    /// Size of one HTTP response's body, in bytes. Default 8 MiB.
    pub http_response_bytes_max: u64,
    /// Time to connect, TLS included, and get the first byte of a response. Default 30 s; the attempt's
    /// deadline holds as well.
    pub http_first_byte_timeout: Duration,
    /// Time between two parts of a response's body. Default 30 s; the attempt's deadline holds as well.
    pub http_between_bytes_timeout: Duration,
    /// Time that the check of the configuration at deploy may take. Default 10 s.
    pub validate_timeout: Duration,
    /// Messages that one instance serves before it is replaced, if instances are reused. Default 10,000.
    pub reuse_max: u32,
    /// Instances that are kept for reuse, for one plugin. Default 16.
    pub idle_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 16 << 20,
            table_elements_max: 32_768,
            output_bytes_max: 8 << 20,
            resources_max: 1_000,
            effects_max: 1_000,
            effect_bytes_max: 8 << 20,
            log_lines_max: 100,
            log_line_bytes_max: 8 << 10,
            log_flood_bytes_max: 4 << 20,
            http_concurrent_max: 8,
            http_connections_max: 256,
            http_response_bytes_max: 8 << 20,
            http_first_byte_timeout: Duration::from_secs(30),
            http_between_bytes_timeout: Duration::from_secs(30),
            validate_timeout: Duration::from_secs(10),
            reuse_max: 10_000,
            idle_max: 16,
        }
    }
}
