//! A node that is asked to end hands everything back first, whichever signal asks.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::publish::read;
use crate::run::{Folder, Running, left};

/// A folder with a publisher to a server that takes two seconds, and the number of requests that it has begun.
fn slow_publisher() -> (Folder, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let began = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&began);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if read(&stream).is_none() {
                continue;
            }
            count.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_secs(2));
            // Who did not wait for it is found out below.
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        }
    });
    let folder = Folder::new();
    folder.configure(&format!(
        "[[subscription]]\nname = \"post\"\ntopic = \"orders.>\"\npublisher = \"publish-http.wasm\"\n\
         config = {{ url = \"http://{address}/\" }}\ngrants = {{ http = [\"http://{address}\"] }}\n"
    ));
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
    folder.ok(&["apply"]);
    folder.ok(&["enqueue", "orders.created", "{}", "--id=m"]);
    (folder, began)
}

fn wait_for_request(began: &AtomicUsize) {
    while began.load(Ordering::SeqCst) == 0 {
        thread::sleep(Duration::from_millis(10));
    }
}

/// The request that was under way was waited for, and all is well.
fn assert_drained(folder: &Folder, running: Running, began: &AtomicUsize) {
    assert_eq!(running.ended(), Some(0), "{}", folder.log());
    assert_eq!((left(&folder.json(&["status"])), began.load(Ordering::SeqCst)), (Some(0), 1), "{}", folder.log());
}

#[test]
fn a_hangup_drains_and_does_not_cut_short_what_drains() {
    let (folder, began) = slow_publisher();
    let running = folder.start(&["run"]);
    wait_for_request(&began);
    // As from a terminal that is closed: more than once.
    running.send("-HUP");
    folder.wait_for_log("SIGHUP: draining");
    running.send("-HUP");
    assert_drained(&folder, running, &began);
    let (folder, began) = slow_publisher();
    let running = folder.start(&["run"]);
    wait_for_request(&began);
    running.signal();
    folder.wait_for_log("SIGTERM: draining");
    running.send("-HUP");
    assert_drained(&folder, running, &began);
}

#[test]
fn a_node_whose_terminal_was_closed_drains() {
    let (folder, began) = slow_publisher();
    let running = folder.start_then_close_its_log(folder.command(&["run"]));
    wait_for_request(&began);
    running.send("-HUP");
    assert_drained(&folder, running, &began);
}

#[test]
fn a_hangup_that_is_ignored_from_the_start_stays_ignored() {
    let (folder, began) = slow_publisher();
    let node = folder.command(&["run"]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" run"]).arg(node.get_program()).current_dir(folder.path());
    for (name, value) in node.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let running = folder.start_as(command);
    wait_for_request(&began);
    running.send("-HUP");
    folder.wait_for("the message", &[], |status| left(status) == Some(0));
    assert!(!folder.log().contains("draining"), "{}", folder.log());
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}
