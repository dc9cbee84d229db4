//! A throw-away PostgreSQL, whose programs are installed first where that is possible.

use std::process::Command;

use anyhow::{Context, Result};
use laneway_testing::postgres::Cluster;

use crate::cargo;

/// How a user gets what is missing.
pub const HOW_TO_INSTALL: &str = "PostgreSQL's server programs (initdb, postgres) are not on this machine; install them \
    with `apt-get install postgresql`, or your system's equal, or put their directory on the PATH";

/// Starts a cluster, after installing PostgreSQL if it is missing and this runs as root on a system with apt.
///
/// # Errors
/// If PostgreSQL is missing and cannot be installed, or does not start.
pub fn start() -> Result<Cluster> {
    if let Some(cluster) = Cluster::start()? {
        return Ok(cluster);
    }
    install().context(HOW_TO_INSTALL)?;
    Cluster::start()?.context(HOW_TO_INSTALL)
}

fn install() -> Result<()> {
    anyhow::ensure!(rustix::process::geteuid().is_root(), "only root can install it");
    eprintln!("Installing PostgreSQL, which is missing ...");
    let apt = |arguments: &[&str]| {
        cargo::succeed(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // The package's own cluster is not wanted, but leaving it out takes configuration of the system; it harms nothing.
    apt(&["update", "--quiet"])?;
    apt(&["install", "--yes", "--quiet", "--no-install-recommends", "postgresql"])
}
