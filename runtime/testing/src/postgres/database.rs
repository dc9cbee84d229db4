//! A database for each test, on a server that the tests share.

use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail, ensure};

use super::Cluster;
use super::programs;

/// Environment variable with the URL of a database on a server that the tests may use, as a superuser. Each test
/// makes a database of its own there. Without it each test process starts a [`Cluster`].
pub const SERVER_URL: &str = "LANEWAY_TEST_POSTGRES";

/// Environment variable with SQL that each fresh database is given before a test uses it, such as
/// `CREATE PUBLICATION everything FOR ALL TABLES`.
pub const SETUP: &str = "LANEWAY_TEST_POSTGRES_SETUP";
/// Environment variable with the address, `host:port`, of a pooler that the tests' databases are to be reached through.
pub const POOLER: &str = "LANEWAY_TEST_POSTGRES_POOLER";

/// A fresh database, dropped with this.
#[derive(Debug)]
pub struct TestDatabase {
    /// How to connect to it, as a superuser. Through the pooler, if there is one.
    pub url: String,
    /// The same without a pooler.
    pub direct_url: String,
    name: String,
    server: String,
}

impl TestDatabase {
    /// How to connect to it as another role. The server must trust or know that role.
    #[must_use]
    pub fn url_as(&self, role: &str) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("postgres", &self.url));
        let host = rest.split_once('@').map_or(rest, |(_, host)| host);
        format!("{scheme}://{role}@{host}")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let drop_it = format!("drop database if exists {} with (force)", quoted(&self.name));
        if let Err(error) = run(&self.server, &drop_it) {
            eprintln!("the database {} is left behind: {error:#}", self.name);
        }
    }
}

/// Makes an empty database on the server of `LANEWAY_TEST_POSTGRES`, or else on a cluster that this process starts
/// at the first call. `Ok(None)` if there is neither.
///
/// # Errors
/// If there is a server, but it cannot be used.
pub fn test_database() -> anyhow::Result<Option<TestDatabase>> {
    static CLUSTER: OnceLock<Result<Option<Cluster>, String>> = OnceLock::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);

    let server = match std::env::var(SERVER_URL) {
        Ok(url) => url,
        // Never dropped: the watchdog ends the cluster when this process ends.
        Err(_) => match CLUSTER.get_or_init(|| Cluster::start().map_err(|error| format!("{error:#}"))) {
            Ok(Some(cluster)) => cluster.url("postgres"),
            Ok(None) => return Ok(None),
            Err(error) => bail!("{error}"),
        },
    };
    let name = format!("laneway_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    // A process of an earlier run that was killed may have had our number.
    run(&server, &format!("drop database if exists {} with (force)", quoted(&name)))?;
    create(&server, &name)?;
    let direct_url = with_database(&server, &name)?;
    let url = match std::env::var(POOLER) {
        Ok(address) => with_address(&direct_url, &address)?,
        Err(_) => direct_url.clone(),
    };
    let database = TestDatabase { url, direct_url, name, server };
    if let Ok(setup) = std::env::var(SETUP) {
        run(&database.direct_url, &setup).context(SETUP)?;
    }
    Ok(Some(database))
}

/// Makes an empty database.
pub(super) fn create(server: &str, name: &str) -> anyhow::Result<()> {
    run(server, &format!("create database {}", quoted(name))).with_context(|| format!("database {name}"))
}

/// Runs one statement through `psql`.
pub(super) fn run(url: &str, sql: &str) -> anyhow::Result<()> {
    let psql = programs::psql().context("psql is not on the PATH, so no test database can be made")?;
    let output = Command::new(psql)
        .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", url, "--command", sql])
        .stdin(Stdio::null())
        .output()
        .context("failed to run psql")?;
    ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// The URL with another database name; options behind it stay.
fn with_database(url: &str, database: &str) -> anyhow::Result<String> {
    let (address, options) = match url.split_once('?') {
        Some((address, options)) => (address, format!("?{options}")),
        None => (url, String::new()),
    };
    let (scheme, rest) =
        address.split_once("://").with_context(|| format!("`{url}` is no URL; write postgres://host/database"))?;
    let host = rest.split_once('/').map_or(rest, |(host, _)| host);
    Ok(format!("{scheme}://{host}/{database}{options}"))
}

/// The URL with another `host:port`.
pub(super) fn with_address(url: &str, address: &str) -> anyhow::Result<String> {
    let (scheme, rest) =
        url.split_once("://").with_context(|| format!("`{url}` is no URL; write postgres://host/database"))?;
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let user = authority.rfind('@').map_or("", |at| &authority[..=at]);
    Ok(format!("{scheme}://{user}{address}/{database}"))
}

/// Where a URL's server is.
pub(super) fn host_and_port(url: &str) -> anyhow::Result<(String, u16)> {
    let (_, rest) =
        url.split_once("://").with_context(|| format!("`{url}` is no URL; write postgres://host/database"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let server = authority.rsplit('@').next().unwrap_or(authority);
    Ok(match server.rsplit_once(':') {
        Some((host, port)) => (host.to_owned(), port.parse().with_context(|| format!("port {port}"))?),
        None => (server.to_owned(), 5432),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_a_url_is_replaced_and_read() {
        let replaced = with_address("postgres://me@localhost:5433/app?sslmode=disable", "127.0.0.1:6432").unwrap();
        assert_eq!(replaced, "postgres://me@127.0.0.1:6432/app?sslmode=disable");
        assert_eq!(host_and_port(&replaced).unwrap(), ("127.0.0.1".to_owned(), 6432));
        assert_eq!(host_and_port("postgres://db/app").unwrap(), ("db".to_owned(), 5432));
    }

    #[test]
    fn the_database_of_a_url_is_replaced_and_the_rest_stays() {
        let replaced = |url| with_database(url, "x").unwrap();
        assert_eq!(replaced("postgres://me@localhost:5433/postgres"), "postgres://me@localhost:5433/x");
        assert_eq!(replaced("postgres://me@localhost"), "postgres://me@localhost/x");
        assert_eq!(replaced("postgresql://h/a?sslmode=require"), "postgresql://h/x?sslmode=require");
        assert!(with_database("localhost", "x").is_err());
    }
}
