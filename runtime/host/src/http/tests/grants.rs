//! What is granted goes out, and what is refused is said in the log.

use super::*;

#[tokio::test]
async fn a_granted_request_goes_out_over_a_connection_that_is_kept() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    for _ in 0..5 {
        let answer = get(&mut hooks, &format!("{origin}/path?q=1")).await.unwrap();
        assert!(answer.starts_with("200 GET /path?q=1 HTTP/1.1\r\n"), "{answer}");
        assert!(answer.contains(&format!("host: 127.0.0.1:{}", server.port)), "{answer}");
        // The client takes a connection back in a task of its own.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_request_that_no_grant_covers_is_denied_before_it_connects() {
    let server = Server::start().await;
    let port = server.port;
    let mut denied = hooks(&["https://api.example.com".to_owned()], Limits::default());
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        "http://api.example.com/".to_owned(),
        "https://api.example.com:8443/".to_owned(),
        "https://api.example.com.evil.org/".to_owned(),
    ] {
        assert!(matches!(get(&mut denied, &url).await, Err(Error::HttpRequestDenied)), "{url}");
    }
    let user = get(&mut denied, "https://api.example.com@127.0.0.1/").await;
    assert!(matches!(user, Err(Error::HttpRequestUriInvalid)));
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_redirect_is_handed_to_the_guest_and_not_followed() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    assert_eq!(get(&mut hooks, &format!("{origin}/moved")).await.unwrap(), "302 ");
}

#[tokio::test]
async fn a_method_that_is_not_granted_is_denied() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let grant = origin.parse::<HttpGrant>().unwrap().with_methods(["POST"]).unwrap();
    let mut hooks = hooks_of(vec![grant], Limits::default(), Network::default(), Placeholders::default());
    let of = |method: &str| Request::builder().method(method).uri(&origin);
    assert!(matches!(send(&mut hooks, of("GET")).await, Err(Error::HttpRequestDenied)));
    assert_eq!(server.connections(), 0);
    send(&mut hooks, of("POST")).await.unwrap();
    let access = hooks.access().unwrap();
    let port = server.port;
    let why = access.allowed.request(&hyper::Method::GET, false, "127.0.0.1", port).unwrap_err();
    let line = format!("grants.http = [{{ url = \"{origin}\", methods = [\"POST\", \"GET\"] }}]");
    assert!(why.contains(&line), "{why}");
    let why = access.allowed.request(&hyper::Method::GET, true, "x.org", 443).unwrap_err();
    assert!(why.contains("methods = [\"POST\"] }, \"https://x.org\"]"), "{why}");
}

/// Takes what is logged.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn begin(&self) -> tracing::subscriber::DefaultGuard {
        let logged = self.clone();
        let writer = move || logged.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(writer).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn refused_requests_are_logged_once_for_each_host_of_an_attempt() {
    let logged = Logged::default();
    let _guard = logged.begin();
    let mut hooks = hooks(&["https://api.example.com".to_owned()], Limits::default());
    for _ in 0..2 {
        for i in 0..1_000 {
            let answer = get(&mut hooks, &format!("https://n{}.example.org/", i % 3)).await;
            assert!(matches!(answer, Err(Error::HttpRequestDenied)));
        }
        hooks.close();
        let text = logged.text();
        assert_eq!(text.matches("refused a GET request to https://n1.example.org: ").count(), 1, "{text}");
        assert!(text.lines().count() == 4 && text.contains("refused 997 further requests"), "{text}");
        assert!(text.lines().all(|line| line.contains("subscription=test plugin=5e1f")), "{text}");
        for i in 0..1_000 {
            drop(get(&mut hooks, &format!("https://m{i}.example.org/")).await);
        }
        assert!(logged.text().lines().count() < 10);
        // As before the next attempt.
        hooks.renew(Instant::now() + Duration::from_secs(20));
    }
}

#[tokio::test]
async fn the_line_for_a_private_address_widens_the_grant_that_is_there_and_by_nothing_else() {
    let logged = Logged::default();
    let _guard = logged.begin();
    let grant = "https://crm.example.com".parse::<HttpGrant>().unwrap().with_methods(["GET"]).unwrap();
    let other = "https://x.example.org".parse::<HttpGrant>().unwrap();
    let network = Network::resolving(Names::of(&[("crm.example.com", &["10.0.0.5"])]));
    let mut hooks = hooks_of(vec![grant, other], Limits::default(), network, Placeholders::default());
    let answer = get(&mut hooks, "https://CRM.example.com:443/").await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    let line = "grants.http = [{ url = \"https://crm.example.com\", methods = [\"GET\"], private = true }, \
                \"https://x.example.org\"]";
    let text = logged.text();
    assert!(text.contains(line) && text.contains("plugin=5e1f"), "{text}");
}
