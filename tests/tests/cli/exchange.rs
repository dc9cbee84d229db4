//! The database's file exchanged under a running node.

use crate::run::{Folder, left};

#[test]
fn a_node_whose_file_is_replaced_says_so_and_ends() {
    let folder = Folder::new();
    folder.configure("[[subscription]]\nname = \"count\"\ntopic = \"orders.>\"\nhandler = \"counter.wasm\"");
    let running = folder.start(&["run"]);
    folder.wait_for("the topology", &[], |status| left(status).is_some());
    let path = |name: &str| folder.path().join(name);
    std::fs::copy(path("laneway.db"), path("restored.db")).unwrap();
    std::fs::rename(path("restored.db"), path("laneway.db")).unwrap();
    // By itself, without a message and without a signal.
    folder.wait_for_log("laneway.db was replaced by another file while this process had it open");
    assert_eq!(running.ended(), Some(3), "{}", folder.log());
    // As the error asks for: the files of the old database go before the new one is opened.
    for beside in ["laneway.db-wal", "laneway.db-shm"] {
        std::fs::remove_file(path(beside)).unwrap();
    }
    folder.ok(&["apply"]);
    let again = folder.start(&["run"]);
    let id = folder.ok(&["enqueue", "orders.created", "{}"]);
    folder.wait_for("the message", &[], |status| left(status) == Some(0));
    assert_eq!(folder.json(&["messages", "show", id.trim()])["status"], "processed");
    assert_eq!(again.terminate(), Some(0), "{}", folder.log());
}
