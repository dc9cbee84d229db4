//! Answers that are large, slow or not well formed.

use super::*;

#[tokio::test]
async fn a_body_is_limited_in_size_and_in_how_long_it_stalls() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), small());
    for (path, status, bytes) in [("large", 200, 0), ("endless", 200, 1000), ("failed", 503, 1000)] {
        let mut response = ask(&mut hooks, &format!("{origin}/{path}"), RequestOptions::default()).await.unwrap();
        assert_eq!(response.status(), status, "the status comes, however large the body");
        let mut read = 0;
        let error = loop {
            match response.body_mut().frame().await.expect("an error, and no end") {
                Ok(frame) => read += frame.data_ref().unwrap().len(),
                Err(error) => break error,
            }
        };
        if path == "large" {
            // It says 2,000 bytes and sends none.
            assert!(matches!(error, Error::ConnectionReadTimeout), "{error:?}");
        } else {
            assert!(matches!(error, Error::HttpResponseBodySize(Some(1000))), "{path}: {error:?}");
        }
        assert_eq!(read, bytes, "{path}: what fits");
        assert!(response.body_mut().frame().await.is_none());
    }
    let just = get(&mut hooks, &format!("{origin}/just")).await.unwrap();
    assert_eq!(just.len(), "200 ".len() + 1000);
    let answer = get(&mut hooks, &format!("{origin}/stalls")).await;
    assert!(matches!(answer, Err(Error::ConnectionReadTimeout)), "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_well_formed_is_read_as_other_clients_read_it() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    for path in ["spaced", "folded", "misnamed", "many"] {
        let response = ask(&mut hooks, &format!("{origin}/{path}"), RequestOptions::default()).await;
        let response = response.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        assert_eq!(response.status(), 200, "{path}");
        let foo = response.headers().get("x-foo").map(|value| value.to_str().unwrap().to_owned());
        match path {
            "misnamed" => assert_eq!(foo, None),
            "folded" => assert!(foo.is_some_and(|foo| foo.starts_with('a') && foo.ends_with('c'))),
            _ => assert_eq!(foo.as_deref(), Some("bar"), "{path}"),
        }
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok", "{path}");
    }
    let answer = get(&mut hooks, &format!("{origin}/too-many")).await;
    assert!(matches!(answer, Err(Error::HttpProtocolError)), "{answer:?}");
    let failed = hooks.failed().unwrap();
    assert!(failed.starts_with(&origin) && failed.contains("head is too large"), "{failed}");
}

#[tokio::test]
async fn no_timeout_of_the_guest_outlasts_the_attempt() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    // The first request loads the system's certificates, which may take longer than the attempt below.
    get(&mut hooks, &origin).await.unwrap();
    hooks.renew(Instant::now() + Duration::from_millis(100));
    let hour = Some(Duration::from_secs(3600));
    let options = RequestOptions { connect_timeout: hour, first_byte_timeout: hour, between_bytes_timeout: hour };
    let began = Instant::now();
    let answer = ask(&mut hooks, &format!("{origin}/silent"), options).await;
    assert!(matches!(answer, Err(Error::HttpResponseTimeout)));
    hooks.renew(Instant::now() + Duration::from_millis(100));
    let response = ask(&mut hooks, &format!("{origin}/stalls"), options).await.unwrap();
    assert!(matches!(response.into_body().collect().await, Err(Error::ConnectionReadTimeout)));
    assert!(began.elapsed() < Duration::from_secs(5));
}
