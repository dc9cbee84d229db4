//! The throw-away server: that it serves, and that it goes.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use laneway_testing::postgres::{Cluster, SERVER_URL, test_database};
use laneway_testing::skip;

/// Longest wait for what a killed test leaves to go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Set for the child of `a_killed_test_leaves_no_server`: it starts a cluster, says where, and waits to be killed.
const CHILD: &str = "LANEWAY_TEST_CLUSTER_CHILD";

fn port(url: &str) -> u16 {
    url.rsplit_once(':').and_then(|(_, rest)| rest.split_once('/')).and_then(|(port, _)| port.parse().ok()).unwrap()
}

fn goes_within(port: u16, longest: Duration) -> bool {
    let deadline = Instant::now() + longest;
    while TcpStream::connect(("127.0.0.1", port)).is_ok() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn a_dropped_cluster_is_gone_with_its_files() {
    let Some(cluster) = Cluster::start().unwrap() else {
        return skip("a_dropped_cluster_is_gone_with_its_files", "no PostgreSQL server on this machine");
    };
    cluster.create_database("fresh").unwrap();
    assert!(cluster.create_database("fresh").is_err(), "the second of the same name is refused");
    let (port, directory) = (port(&cluster.url("fresh")), cluster.directory().to_owned());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    drop(cluster);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the server still listens");
    assert!(!directory.exists(), "its files are left");
}

#[test]
fn a_killed_test_leaves_no_server() {
    if std::env::var_os(CHILD).is_some() {
        let cluster = Cluster::start().unwrap();
        match &cluster {
            Some(cluster) => println!("\nCLUSTER {} {}", cluster.url("postgres"), cluster.directory().display()),
            None => println!("\nNONE"),
        }
        std::thread::sleep(Duration::from_secs(600));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_test_leaves_no_server", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let line =
        lines.find_map(|line| line.ok().filter(|line| line.starts_with("CLUSTER ") || line == "NONE")).unwrap();
    let fields: Vec<&str> = line.split(' ').collect();
    let serves = fields.len() == 3 && TcpStream::connect(("127.0.0.1", port(fields[1]))).is_ok();
    child.kill().unwrap();
    child.wait().unwrap();
    if line == "NONE" {
        return skip("a_killed_test_leaves_no_server", "no PostgreSQL server on this machine");
    }
    assert!(serves, "{line}");
    assert!(goes_within(port(fields[1]), PATIENCE), "the server outlives the test that started it");
    let deadline = Instant::now() + PATIENCE;
    while std::path::Path::new(fields[2]).exists() {
        assert!(Instant::now() < deadline, "{} is left", fields[2]);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn each_test_database_is_its_own() {
    let (Some(first), Some(second)) = (test_database().unwrap(), test_database().unwrap()) else {
        return skip(
            "each_test_database_is_its_own",
            &format!("no PostgreSQL server, and {SERVER_URL} is not set"),
        );
    };
    assert_ne!(first.url, second.url);
    assert!(first.url_as("someone").contains("://someone@"));
}
