//! Behaviour 3: the producer's id reaches the outside world unchanged, each time that a message is sent; and over TLS
//! only to a server that proves to be the one that is meant. Behaviour 16: what a killed node did not send, is sent.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sqlx::{ConnectOptions, Connection};

use crate::run::{Folder, PATIENCE, left};

/// What a request told of its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub id: String,
    pub attempt: String,
    pub body: String,
}

/// A server that takes the first request of each id and goes away without an answer, as if it had crashed between
/// its work and its word. It answers later ones.
struct Receiver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else { continue };
                let mut seen = shared.lock().unwrap();
                let before = seen.iter().any(|other: &Seen| other.id == request.id);
                seen.push(request);
                if before {
                    let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                    // Who does not wait for the answer sends again.
                    let _ = (&stream).write_all(answer);
                }
            }
        });
        Self { address, seen }
    }

    /// The attempts that were seen of an id, and their bodies.
    fn of(&self, id: &str) -> Vec<(String, String)> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.id == id).map(|seen| (seen.attempt.clone(), seen.body.clone())).collect()
    }
}

/// Reads a request; `None` if the client closed the connection instead.
pub fn read(stream: impl Read) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end_matches(['\r', '\n']).split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let value = |wanted: &str| {
        let values: Vec<&str> =
            headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect();
        assert_eq!(values.len(), 1, "{wanted}: {headers:?}");
        values[0].to_owned()
    };
    let mut body = vec![0; value("content-length").parse().unwrap()];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).unwrap();
    Some(Seen { id: value("laneway-message-id"), attempt: value("laneway-attempt"), body })
}

#[tokio::test]
async fn the_producers_id_reaches_the_outside_world_unchanged_in_every_attempt() {
    let receiver = Receiver::start();
    let folder = Folder::new();
    folder.configure(&format!(
        r#"
        [[subscription]]
        name = "post"
        topic = "orders.>"
        publisher = "publish-http.wasm"
        config = {{ url = "http://{0}/orders" }}
        grants = {{ http = ["http://{0}"] }}
        retry = {{ schedule = "constant", base = "50ms", cap = "50ms", jitter = 0.0 }}
        "#,
        receiver.address
    ));
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
    folder.ok(&["apply"]);

    // As long as an id may be, of every character that it may have.
    let visible: String = ('!'..='~').cycle().take(200).collect();
    let ids = ["Order-42", "urn:order/42?line=1&x=%20#a,b;c", visible.as_str()];
    for id in ids {
        // An id may begin with a hyphen.
        assert_eq!(folder.ok(&["enqueue", "orders.created", "{}", &format!("--id={id}")]), format!("{id}\n"));
    }
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("laneway.db"));
    let mut sql = options.connect().await.unwrap();
    sqlx::query("INSERT INTO laneway_message (id, topic, payload) VALUES ('of plain SQL', 'orders.created', '{}')")
        .execute(&mut sql)
        .await
        .expect_err("an id that no header could carry");
    sqlx::query("INSERT INTO laneway_message (id, topic, payload) VALUES ('of=SQL', 'orders.created', '{}')")
        .execute(&mut sql)
        .await
        .unwrap();
    sql.close().await.unwrap();

    let running = folder.start(&["run"]);
    folder.wait_for("all messages to be settled", &[], |status| left(status) == Some(0));
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    let attempt = |number: &str| (number.to_owned(), "{}".to_owned());
    for id in ids.into_iter().chain(["of=SQL"]) {
        assert_eq!(receiver.of(id), [attempt("1"), attempt("2")], "{id}: {:?}", receiver.seen.lock().unwrap());
    }
    assert_eq!(receiver.seen.lock().unwrap().len(), 8, "something was sent under another id");
    assert!(folder.json(&["dead-letters", "list"]).as_array().unwrap().is_empty());
}

/// A server that holds each request until it is told to answer, and then answers at once.
struct Holding {
    address: SocketAddr,
    answers: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Holding {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (answers, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<String>>>::default());
        let holding = Self { address, answers: answers.clone(), seen: seen.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, seen) = (answers.clone(), seen.clone());
                thread::spawn(move || {
                    let Some(request) = read(&stream) else { return };
                    seen.lock().unwrap().push(request.id);
                    while !answers.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_millis(10));
                    }
                    // Who was killed meanwhile reads no answer.
                    let _ = (&stream).write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
                });
            }
        });
        holding
    }

    /// A folder that publishes to it, eight at once, each message with one attempt.
    fn folder(&self) -> Folder {
        let folder = Folder::new();
        folder.configure(&format!(
            r#"
            [node]
            poll_interval = "100ms"
            [[subscription]]
            name = "post"
            topic = "orders.>"
            publisher = "publish-http.wasm"
            config = {{ url = "http://{0}/orders" }}
            grants = {{ http = ["http://{0}"] }}
            concurrency = 8
            lease = "2s"
            retry = {{ schedule = "none" }}
            "#,
            self.address
        ));
        std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
        folder.ok(&["apply"]);
        folder
    }

    fn wait_for(&self, requests: usize, folder: &Folder) {
        let started = Instant::now();
        while self.seen.lock().unwrap().len() < requests {
            assert!(started.elapsed() < PATIENCE, "waited in vain for {requests} requests: {}", folder.log());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn what_a_killed_node_only_had_in_hand_is_sent() {
    let receiver = Holding::start();
    let folder = receiver.folder();
    let lines: String = (0..100).map(|number| format!("{{\"n\":{number}}}\n")).collect();
    assert!(folder.feed(&["enqueue", "orders.created", "--lines"], lines.as_bytes()).status.success());

    let running = folder.start(&["run"]);
    receiver.wait_for(8, &folder);
    drop(running);
    receiver.answers.store(true, Ordering::SeqCst);
    let running = folder.start(&["run"]);
    folder.wait_for("all messages to be settled", &[], |status| left(status) == Some(0));
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    let dead = folder.json(&["dead-letters", "list"]);
    assert_eq!(dead, serde_json::json!([]), "they were never given up");
    let seen = receiver.seen.lock().unwrap();
    let sent: HashSet<&String> = seen.iter().collect();
    assert_eq!((sent.len(), seen.len()), (100, 108), "what was being sent is sent again, the rest once");
}

#[test]
fn a_message_whose_nodes_are_killed_ends_in_the_dead_letters() {
    let receiver = Holding::start();
    let folder = receiver.folder();
    folder.ok(&["enqueue", "orders.created", "{}", "--id=m"]);
    // The first node that it ends may have ended for any other it had in hand; the second is known to have begun it.
    for kill in 1..=2 {
        let running = folder.start(&["run"]);
        receiver.wait_for(kill, &folder);
        drop(running);
    }
    let running = folder.start(&["run"]);
    folder.wait_for("it to be given up", &[], |status| left(status) == Some(0));
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    let dead = folder.json(&["dead-letters", "list"]);
    assert_eq!((&dead[0]["reason"], &dead[0]["attempts"]), (&"lease_expired".into(), &1.into()), "{dead}");
    let why = "1 of 1 attempts are used up: 2 leases ended without an answer, as their nodes ended or lost touch with the \
        database";
    assert_eq!(dead[0]["error"], why);
    assert_eq!(receiver.seen.lock().unwrap().len(), 2, "it was sent a third time");
}

/// A server that speaks TLS for `localhost` with a certificate of its own, and takes every request.
struct SecureReceiver {
    port: u16,
    /// The certificate, which is its own authority, as PEM.
    certificate: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl SecureReceiver {
    fn start() -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key.into())
                .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream);
                // A client that does not trust the certificate goes away in the middle of the handshake.
                let Some(request) = read(&mut stream) else { continue };
                shared.lock().unwrap().push(request);
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
            }
        });
        Self { port, certificate: cert.pem(), seen }
    }
}

#[test]
fn tls_goes_to_a_server_of_a_trusted_certificate_and_to_no_other() {
    let receiver = SecureReceiver::start();
    let folder = Folder::new();
    folder.configure(&format!(
        r#"
        [[subscription]]
        name = "post"
        topic = "orders.>"
        publisher = "publish-http.wasm"
        config = {{ url = "https://localhost:{0}/orders" }}
        grants = {{ http = ["https://localhost:{0}"] }}
        retry = {{ schedule = "constant", base = "50ms", cap = "50ms", jitter = 0.0, max_attempts = 1000 }}
        "#,
        receiver.port
    ));
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
    folder.ok(&["apply"]);
    folder.ok(&["enqueue", "orders.created", "{}", "--id=m"]);

    // Another server's certificate, for the same name.
    folder.write("roots.pem", SecureReceiver::start().certificate);
    let trusting = || {
        let mut command = folder.command(&["run"]);
        command.env("SSL_CERT_FILE", folder.path().join("roots.pem")).env_remove("SSL_CERT_DIR");
        folder.start_as(command)
    };
    let running = trusting();
    let error = folder.wait_for_error("m");
    assert!(error.contains("TlsCertificateError"), "{error}");
    assert!(error.contains("of an authority that this system does not know"), "{error}");
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    assert_eq!(*receiver.seen.lock().unwrap(), [], "it was sent to a server that is not trusted");

    folder.write("roots.pem", &receiver.certificate);
    let running = trusting();
    folder.wait_for("the message to be settled", &[], |status| left(status) == Some(0));
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    let seen = receiver.seen.lock().unwrap();
    assert_eq!(seen.iter().map(|seen| seen.id.as_str()).collect::<Vec<_>>(), ["m"]);
}

/// A server that refuses every request, and says what it got: in a header and in the body.
fn mirror() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shared = seen.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            let mut token = String::new();
            while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                if let Some(value) = line.trim_end().strip_prefix("authorization: ") {
                    value.clone_into(&mut token);
                }
                line.clear();
            }
            let body = format!("no such token: {token}");
            let head = format!("HTTP/1.1 400 Bad Request\r\nx-token: {token}\r\nconnection: close");
            let _ =
                (&stream).write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
            shared.lock().unwrap().push(token);
        }
    });
    (port, seen)
}

#[test]
fn a_secret_reaches_the_server_and_neither_logs_nor_dead_letters() {
    let (port, seen) = mirror();
    let folder = Folder::new();
    folder.configure(&format!(
        r#"
        [secrets]
        TOKEN = {{ file = "token" }}
        [[subscription]]
        name = "post"
        topic = "orders.>"
        publisher = "publish-http.wasm"
        config = {{ url = "http://127.0.0.1:{port}/", headers = "Authorization", "header.Authorization" = "Bearer {{secret:TOKEN}}" }}
        grants = {{ http = ["http://127.0.0.1:{port}"], secrets = ["TOKEN"] }}
        retry = {{ schedule = "none" }}
        "#
    ));
    std::fs::copy(laneway_tests::plugin("publish-http"), folder.path().join("publish-http.wasm")).unwrap();
    folder.ok(&["apply"]);
    folder.ok(&["enqueue", "orders.created", "{}", "--id=m"]);

    let without = folder.fails(1, &["run"]);
    assert!(without.contains("secret `TOKEN`") && without.contains("token"), "{without}");

    folder.write("token", "s3cr3t-t0k3n\n");
    let mut command = folder.command(&["run"]);
    // All but the compiler's own, which takes minutes to write: it sees the component, and no request.
    let log = "trace,wasmtime=info,wasmtime_wasi=trace,wasmtime_wasi_http=trace,cranelift=info,regalloc2=info";
    command.env("LANEWAY_LOG", log);
    let running = folder.start_as(command);
    folder.wait_for("the message to be settled", &[], |status| left(status) == Some(0));
    assert_eq!(running.terminate(), Some(0), "{}", folder.log());
    assert_eq!(*seen.lock().unwrap(), ["Bearer s3cr3t-t0k3n"]);
    let dead = folder.json(&["dead-letters", "list"]).to_string();
    assert!(dead.contains("no such token: Bearer ************"), "{dead}");
    assert!(!dead.contains("s3cr3t") && !folder.log().contains("s3cr3t"), "{dead} {}", folder.log());
}
