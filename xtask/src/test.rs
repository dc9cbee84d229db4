//! `cargo xtask test`: everything that the tests need is built and started first, and what was skipped is said last.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use laneway_testing::postgres::{Cluster, POOLER, PROGRAMS, PoolMode, Pooler, SERVER_URL, SETUP};

use crate::{cargo, plugins, postgres};

/// With the value `1`, a skipped test is a failure.
const REQUIRE_ALL: &str = "LANEWAY_REQUIRE_ALL";

/// File that skipped tests add a line to.
const SKIPS_FILE: &str = "LANEWAY_TEST_SKIPS";

/// Where the tests find the `laneway` program.
const PROGRAM: &str = "LANEWAY_BUILT_PROGRAM";

/// Where the tests find this program, for the projects that they build.
const XTASK: &str = "LANEWAY_BUILT_XTASK";

/// Where the tests find the plugins.
const PLUGINS: &str = "LANEWAY_BUILT_PLUGINS";

/// Which tests to run
#[derive(clap::Args)]
pub struct TestArgs {
    /// Reach the tests' PostgreSQL databases through a connection pooler that this starts, in session mode
    #[arg(long, value_name = "POOLER")]
    postgres_behind: Option<Behind>,
    /// Directory of the PostgreSQL programs (initdb, postgres) to test on, such as those of another version
    #[arg(long, value_name = "DIRECTORY")]
    postgres_programs: Option<PathBuf>,
    /// SQL that each PostgreSQL database of a test is given first, such as "CREATE PUBLICATION p FOR ALL TABLES"
    #[arg(long, value_name = "SQL")]
    postgres_setup: Option<String>,
    /// Further arguments of `cargo nextest run` (or of `cargo test` without it), such as a test's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Behind {
    Pgbouncer,
}

/// The PostgreSQL of the tests, and what stands before it.
struct Server {
    // Dropped first.
    pooler: Option<Pooler>,
    cluster: Cluster,
}

/// Runs the tests.
pub fn run(args: &TestArgs) -> Result<()> {
    let require_all = env::var(REQUIRE_ALL).as_deref() == Ok("1");
    let plugins = plugins::ensure_built()?;
    let programs = cargo::build_programs()?;
    let laneway = programs.path("laneway")?;
    let xtask = programs.path("xtask")?;
    let server = start_postgres(args, require_all)?;
    let skips = cargo::target()?.join("test-skips.txt");
    fs::write(&skips, "").with_context(|| format!("could not empty {}", skips.display()))?;

    let prepare = |command: &mut Command| {
        command.env(SKIPS_FILE, &skips).env(PROGRAM, laneway).env(XTASK, xtask).env(PLUGINS, &plugins);
        if let Some(server) = &server {
            command.env(SERVER_URL, server.cluster.url("postgres"));
            if let Some(pooler) = &server.pooler {
                command.env(POOLER, pooler.address());
            }
        }
        if let Some(programs) = &args.postgres_programs {
            command.env(PROGRAMS, programs);
        }
        if let Some(setup) = &args.postgres_setup {
            command.env(SETUP, setup);
        }
    };
    let mut tests = if has_nextest() {
        cargo::cargo(&["nextest", "run", "--workspace", "--locked", "--no-fail-fast"])?
    } else {
        cargo::cargo(&["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"])?
    };
    prepare(tests.args(&args.arguments));
    let tests = cargo::succeed(&mut tests);

    // With a filter the user wants those tests, not the documentation's.
    let doc_tests = if args.arguments.is_empty() {
        let mut doc_tests = cargo::cargo(&["test", "--workspace", "--locked", "--doc", "--quiet"])?;
        prepare(&mut doc_tests);
        cargo::succeed(&mut doc_tests)
    } else {
        Ok(())
    };

    let skipped = report_skips(&skips)?;
    tests.context("tests failed")?;
    doc_tests.context("tests of the documentation failed")?;
    if require_all && skipped > 0 {
        bail!("{skipped} tests were skipped, and {REQUIRE_ALL}=1");
    }
    Ok(())
}

/// One cluster for all test processes; each test makes a database of its own on it.
fn start_postgres(args: &TestArgs, require_all: bool) -> Result<Option<Server>> {
    let is_special = args.postgres_behind.is_some() || args.postgres_programs.is_some();
    if env::var_os(SERVER_URL).is_some() {
        ensure!(
            !is_special,
            "{SERVER_URL} names a server; what --postgres-... asks for wants one that is started here"
        );
        return Ok(None);
    }
    let cluster = match &args.postgres_programs {
        Some(programs) => Some(
            Cluster::start_with(programs)?
                .with_context(|| format!("{} holds no initdb and postgres", programs.display()))?,
        ),
        None if require_all || is_special => Some(postgres::start()?),
        None => Cluster::start()?,
    };
    let Some(cluster) = cluster else { return Ok(None) };
    let pooler = match args.postgres_behind {
        Some(Behind::Pgbouncer) => Some(
            Pooler::start(&cluster.url("postgres"), PoolMode::Session)?
                .context("pgbouncer is not on this machine; install it with `apt-get install pgbouncer`")?,
        ),
        None => None,
    };
    Ok(Some(Server { pooler, cluster }))
}

fn has_nextest() -> bool {
    cargo::cargo(&["nextest", "--version"])
        .and_then(|mut command| Ok(command.output()?.status.success()))
        .unwrap_or(false)
}

/// Prints which tests were skipped and answers how many.
fn report_skips(path: &Path) -> Result<usize> {
    let text = fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    if !lines.is_empty() {
        eprintln!("\n{} TESTS WERE SKIPPED, so they prove nothing:", lines.len());
        for line in &lines {
            eprintln!("  {line}");
        }
        eprintln!("For those that want PostgreSQL: {}.", postgres::HOW_TO_INSTALL);
        eprintln!("For those that want PgBouncer: `apt-get install pgbouncer`.");
        eprintln!("For those that want libfaketime: `apt-get install faketime`.");
        eprintln!("For those that want Python or Node: Python 3.10 with pip, Node 20 with npm, or newer.\n");
    }
    Ok(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_was_skipped_twice_counts_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "").unwrap();
        assert_eq!(report_skips(file.path()).unwrap(), 0);
        fs::write(file.path(), "SKIPPED: b: why\nSKIPPED: a: why\nSKIPPED: b: why\n").unwrap();
        assert_eq!(report_skips(file.path()).unwrap(), 2);
    }
}
