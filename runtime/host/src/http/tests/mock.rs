//! A mock in place of the network.

use super::*;
use crate::manifest::Manifest;
use crate::mock::{HttpAnswer, HttpRequest, LogLine, Mock};

/// Answers with what it was asked, or as the path says.
struct Echo;

impl Mock for Echo {
    fn answer(&self, request: HttpRequest) -> HttpAnswer {
        match request.url.rsplit('/').next() {
            Some("late") => HttpAnswer::Timeout,
            Some("gone") => HttpAnswer::Refused,
            Some("odd") => HttpAnswer::Response {
                status: 200,
                headers: vec![("a b".to_owned(), String::new())],
                body: Bytes::new(),
            },
            _ => {
                let headers = vec![("x-method".to_owned(), request.method)];
                HttpAnswer::Response { status: 418, headers, body: Bytes::from(request.url) }
            }
        }
    }

    fn log(&self, _: LogLine) {}
}

#[tokio::test]
async fn a_mock_answers_for_hosts_that_nobody_granted_and_that_are_not_there() {
    let network = Network::mocked(Arc::new(Echo));
    let anything = Allowed::anything(Name::parse("test").unwrap(), None, true);
    let mut hooks = hooks_allowed(anything, Limits::default(), Arc::new(network), Placeholders::default());
    assert_eq!(get(&mut hooks, "https://nowhere.invalid/x").await.unwrap(), "418 https://nowhere.invalid/x");
    for (path, wants) in [
        ("late", Error::HttpResponseTimeout),
        ("gone", Error::ConnectionRefused),
        ("odd", Error::HttpProtocolError),
    ] {
        let answer = get(&mut hooks, &format!("https://nowhere.invalid/{path}")).await.unwrap_err();
        assert_eq!(format!("{answer:?}"), format!("{wants:?}"), "{path}");
    }
}

#[tokio::test]
async fn a_mock_grants_everything_but_the_plugin_has_to_ask() {
    let network = Network::mocked(Arc::new(Echo));
    let json = r#"{"name":"p","version":"1.0.0","asks":{"http":["https://a.example.com"],"state":true}}"#;
    let manifest = Manifest::from_json(json.as_bytes()).unwrap();
    let allowed = Allowed::anything(Name::parse("test").unwrap(), Some(manifest), true);
    assert!(allowed.state().is_ok() && allowed.random().is_err());
    assert!(allowed.emit(&laneway_core::Topic::parse("a.b").unwrap()).is_err());
    let mut hooks = hooks_allowed(allowed, Limits::default(), Arc::new(network), Placeholders::default());
    assert!(get(&mut hooks, "https://a.example.com/x").await.is_ok());
    let answer = get(&mut hooks, "https://b.example.com/x").await;
    assert!(matches!(answer, Err(Error::HttpRequestDenied)), "{answer:?}");
}
