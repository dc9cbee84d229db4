//! What a receiver's answer, or the lack of one, comes to: the status decides, whatever the body does; a destination that
//! is away costs no attempt; and one message that it does not take stops no other.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::publish::{Seen, read};
use crate::run::{Folder, left};

const OK: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";

/// A server that answers each request, on a thread of its own, as the test says.
struct Receiver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Receiver {
    fn start(answer: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), answer)
    }

    fn on(listener: TcpListener, answer: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let (answer, seen) = (Arc::new(answer), Arc::default());
        let this = Self { address, seen: Arc::clone(&seen) };
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (answer, seen): (_, Arc<Mutex<Vec<Seen>>>) = (Arc::clone(&answer), Arc::clone(&seen));
                thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    seen.lock().unwrap().push(request.clone());
                    answer(&request, &mut stream);
                });
            }
        });
        this
    }

    /// The attempts that were seen of each id.
    fn attempts(&self) -> HashMap<String, Vec<String>> {
        let mut attempts: HashMap<String, Vec<String>> = HashMap::new();
        for seen in self.seen.lock().unwrap().iter() {
            attempts.entry(seen.id.clone()).or_default().push(seen.attempt.clone());
        }
        attempts
    }
}

fn say(stream: &mut TcpStream, text: &str) {
    // Who does not want to hear it has gone.
    let _ = stream.write_all(text.as_bytes());
}

/// A folder with one publisher to this address; `more` are further keys of its subscription.
fn publisher(address: SocketAddr, more: &str) -> Folder {
    let folder = Folder::new();
    folder.configure(&format!(
        "[[subscription]]\nname = \"post\"\ntopic = \"orders.>\"\npublisher = \"publish-http.wasm\"\n\
         config = {{ url = \"http://{address}/orders\" }}\ngrants = {{ http = [\"http://{address}\"] }}\n{more}\n"
    ));
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
    folder.ok(&["apply"]);
    folder
}

fn enqueue(folder: &Folder, ids: impl IntoIterator<Item = impl AsRef<str>>) {
    for id in ids {
        folder.ok(&["enqueue", "orders.created", "{}", &format!("--id={}", id.as_ref())]);
    }
}

/// Reason codes and texts of the dead letters, by message.
fn dead(folder: &Folder) -> HashMap<String, (String, String)> {
    let letters = folder.json(&["dead-letters", "list"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let letters = letters.as_array().unwrap().iter();
    letters.map(|it| (text(&it["message_id"]), (text(&it["reason"]), text(&it["error"])))).collect()
}

fn wait_until_settled(folder: &Folder) {
    folder.wait_for("all messages to be settled", &[], |status| left(status) == Some(0));
}

#[test]
fn the_status_decides_whatever_the_body_does() {
    let trickle = |stream: &mut TcpStream| {
        for _ in 0..60 {
            if stream.write_all(b"x").is_err() {
                return;
            }
            thread::sleep(Duration::from_secs(1));
        }
    };
    let flood = |stream: &mut TcpStream| (0..10).all(|_| stream.write_all(&vec![b'x'; 1 << 20]).is_ok());
    let receiver = Receiver::start(move |request, stream| match request.id.as_str() {
        "large-200" => {
            say(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
            flood(stream);
        }
        "slow-200" => {
            say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n");
            trickle(stream);
        }
        "slow-404" => {
            say(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 60\r\n\r\nno such order");
            trickle(stream);
        }
        _ => {
            say(stream, "HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\n\r\nit broke");
            flood(stream);
        }
    });
    // The time of an attempt is over long before a body that trickles in.
    let folder = publisher(receiver.address, "timeout = \"8s\"\nretry = { schedule = \"none\" }");
    enqueue(&folder, ["large-200", "slow-200", "slow-404", "large-500"]);
    let running = folder.start(&["run"]);
    let started = Instant::now();
    wait_until_settled(&folder);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    let dead = dead(&folder);
    assert_eq!(dead.len(), 2, "{dead:?}");
    assert_eq!(dead["slow-404"].0, "guest:http_404");
    assert!(dead["slow-404"].1.contains("no such order"), "{dead:?}");
    assert_eq!(dead["large-500"].0, "guest:http_500");
    assert!(dead["large-500"].1.contains("it broke"), "{dead:?}");
    assert!(receiver.attempts().values().all(|attempts| attempts == &["1"]), "{:?}", receiver.attempts());
}

#[test]
fn who_says_when_to_come_again_costs_no_attempt_and_who_talks_nonsense_costs_one() {
    let receiver = Receiver::start(|request, stream| {
        static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let mut said = SAID.lock().unwrap();
        let before = said.iter().filter(|id| **id == request.id).count();
        said.push(request.id.clone());
        drop(said);
        match (request.id.as_str(), before) {
            ("fraction", 0 | 1) => {
                say(stream, "HTTP/1.1 429 Later\r\nretry-after: 0.2\r\ncontent-length: 50\r\n\r\nx")
            }
            ("nonsense", 0 | 1) => {
                return say(
                    stream,
                    "HTTP/1.1 503 Later\r\nconnection: close\r\nretry-after: +0000\r\ncontent-length: 0\r\n\r\n",
                );
            }
            _ => return say(stream, OK),
        }
        // The body does not come.
        thread::sleep(Duration::from_secs(5));
    });
    let folder = publisher(
        receiver.address,
        "concurrency = 1\nretry = { schedule = \"constant\", base = \"50ms\", cap = \"50ms\", max_attempts = 3 }",
    );
    enqueue(&folder, ["fraction", "nonsense"]);
    let running = folder.start(&["run"]);
    wait_until_settled(&folder);
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    assert!(dead(&folder).is_empty(), "{:?}", dead(&folder));
    let attempts = receiver.attempts();
    assert_eq!(
        (&attempts["fraction"][..], &attempts["nonsense"][..]),
        (&["1", "1", "1"].map(str::to_owned)[..], &["1", "2", "3"].map(str::to_owned)[..])
    );
}

#[test]
fn a_destination_that_is_away_costs_no_attempt() {
    let away = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = away.local_addr().unwrap();
    drop(away);
    let folder = publisher(address, "retry = { schedule = \"none\" }");
    let ids: Vec<String> = (0..30).map(|number| format!("m-{number}")).collect();
    enqueue(&folder, &ids);
    let running = folder.start(&["run"]);
    let error = folder.wait_for_error("m-0");
    assert!(error.contains("connection refused"), "{error}");
    // More than one pause.
    thread::sleep(Duration::from_secs(3));
    assert_eq!((left(&folder.json(&["status"])), dead(&folder).len()), (Some(30), 0), "{}", folder.log());
    let tried = folder.times_in_log("connection refused");
    assert!((2..=60).contains(&tried), "{tried} attempts in three seconds");
    // Nobody else has taken the port meanwhile: the system gives them in turn.
    let receiver = Receiver::on(TcpListener::bind(address).unwrap(), |_, stream| say(stream, OK));
    wait_until_settled(&folder);
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    assert!(dead(&folder).is_empty());
    let attempts = receiver.attempts();
    assert!(ids.iter().all(|id| attempts[id] == ["1"]), "{attempts:?}");
}

#[test]
fn waiting_for_a_destination_ends_when_the_time_is_up() {
    let away = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let folder = publisher(away, "retry = { max_elapsed = \"2s\" }");
    enqueue(&folder, ["m"]);
    let running = folder.start(&["run"]);
    wait_until_settled(&folder);
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    let (reason, error) = dead(&folder).remove("m").unwrap();
    assert_eq!(reason, "throttled");
    assert!(error.contains("connection refused"), "{error}");
}

#[test]
fn messages_are_kept_while_the_token_is_wrong() {
    let is_right = Arc::new(AtomicUsize::new(0));
    let answers = Arc::clone(&is_right);
    let receiver = Receiver::start(move |_, stream| match answers.load(Ordering::SeqCst) {
        0 => say(stream, "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        _ => say(stream, OK),
    });
    let folder = publisher(receiver.address, "retry = { schedule = \"none\" }");
    enqueue(&folder, (0..40).map(|number| format!("m-{number}")));
    let running = folder.start(&["run"]);
    folder.wait_for_log("answered 401");
    thread::sleep(Duration::from_secs(1));
    assert_eq!((left(&folder.json(&["status"])), dead(&folder).len()), (Some(40), 0), "{}", folder.log());
    assert!(receiver.seen.lock().unwrap().len() <= 16, "it does not pause");
    is_right.store(1, Ordering::SeqCst);
    // By itself, once the pause is over.
    wait_until_settled(&folder);
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    assert!(dead(&folder).is_empty());
}

#[test]
fn one_forbidden_message_stops_no_other_and_when_all_are_they_are_kept() {
    let all = Arc::new(AtomicUsize::new(0));
    let answers = Arc::clone(&all);
    let receiver = Receiver::start(move |request, stream| {
        let is_forbidden = request.id == "forbidden" || answers.load(Ordering::SeqCst) == 1;
        match is_forbidden {
            true => say(stream, "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
            false => say(stream, OK),
        }
    });
    let folder = publisher(
        receiver.address,
        "concurrency = 4\nretry = { schedule = \"constant\", base = \"50ms\", cap = \"50ms\", max_attempts = 3 }",
    );
    enqueue(&folder, ["forbidden"]);
    enqueue(&folder, (0..30).map(|number| format!("m-{number}")));
    let running = folder.start(&["run"]);
    let started = Instant::now();
    wait_until_settled(&folder);
    assert!(started.elapsed() < Duration::from_secs(20), "a message stopped the others: {:?}", started.elapsed());
    let letters = dead(&folder);
    assert_eq!(letters.keys().collect::<Vec<_>>(), ["forbidden"]);
    assert_eq!(letters["forbidden"].0, "guest:forbidden");
    assert_eq!(receiver.attempts()["forbidden"], ["1", "2", "3"]);

    all.store(1, Ordering::SeqCst);
    enqueue(&folder, (0..60).map(|number| format!("n-{number}")));
    folder.wait_for_log("nothing is let in");
    thread::sleep(Duration::from_secs(2));
    let kept = left(&folder.json(&["status"])).unwrap();
    assert!(kept >= 40, "{kept} are kept; {:?}", dead(&folder).keys());
    let seen = receiver.seen.lock().unwrap().len();
    thread::sleep(Duration::from_secs(3));
    assert!(receiver.seen.lock().unwrap().len() <= seen + 8, "it does not pause");
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
}

#[test]
fn the_page_on_publish_http_tells_the_truth() {
    let page = std::fs::read_to_string(laneway_tests::root().join("docs/publish-http.md")).unwrap();
    let block = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let folder = Folder::new();
    folder.write("laneway.toml", block);
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("plugins/publish-http.wasm")).unwrap();
    folder.ok(&["apply"]);
    folder.write("m.json", "{\"topic\": \"orders.created\", \"payload\": 1}");
    let report = folder.json(&[
        "plugin",
        "test",
        "plugins/publish-http.wasm",
        "--message",
        "m.json",
        "--subscription",
        "forward-orders",
    ]);
    let request = &report["calls"][0]["http"][0];
    assert_eq!(
        (request["method"].as_str(), request["url"].as_str()),
        (Some("POST"), Some("https://api.example.com/orders")),
        "{report}"
    );
    let names: Vec<&str> =
        request["headers"].as_array().unwrap().iter().map(|it| it[0].as_str().unwrap()).collect();
    for name in ["authorization", "laneway-message-id", "laneway-topic", "laneway-attempt", "content-type"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    // The table has the codes of the dead letters that the other tests here see.
    for code in
        ["`http_404`", "`forbidden`", "`misconfigured`", "`throttled`", "`unknown_outcome`", "`http_redirect`"]
    {
        assert!(page.contains(code), "{code}");
    }
}
