//! How many connections and requests there are, and those that are not made.

use super::*;

#[tokio::test]
async fn a_request_whose_connection_was_not_made_in_time_was_not_sent() {
    // It takes the connection, and says nothing to the TLS handshake.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let mut hooks = hooks(std::slice::from_ref(&origin), Limits::default());
    let soon = Some(Duration::from_millis(100));
    let options = RequestOptions { first_byte_timeout: soon, ..RequestOptions::default() };
    let answer = ask(&mut hooks, &origin, options).await.map(drop);
    assert!(matches!(answer, Err(Error::ConnectionTimeout)), "{answer:?}");
}

#[tokio::test]
async fn requests_under_way_are_limited_in_number() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let mut hooks = hooks(std::slice::from_ref(&origin), small());
    let url = format!("{origin}/");
    let first = ask(&mut hooks, &url, RequestOptions::default()).await.unwrap();
    let second = ask(&mut hooks, &url, RequestOptions::default()).await.unwrap();
    let third = ask(&mut hooks, &url, RequestOptions::default()).await;
    assert!(matches!(third, Err(Error::ConnectionLimitReached)));
    drop((first, second));
    assert!(ask(&mut hooks, &url, RequestOptions::default()).await.is_ok());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_from_one_that_breaks_off() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let origin = format!("http://127.0.0.1:{port}");
    let mut gone = hooks(std::slice::from_ref(&origin), Limits::default());
    let answer = get(&mut gone, &origin).await;
    assert!(matches!(answer, Err(Error::ConnectionRefused)), "{answer:?}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            drop(stream.read(&mut buffer).await);
        }
    });
    let mut broken = hooks(std::slice::from_ref(&origin), Limits::default());
    let answer = get(&mut broken, &origin).await;
    assert!(matches!(answer, Err(Error::ConnectionTerminated)), "{answer:?}");
    let mut tls = hooks(&["https://127.0.0.1:1".to_owned()], Limits::default());
    assert!(matches!(get(&mut tls, "https://127.0.0.1:1/").await, Err(Error::ConnectionRefused)));
}

#[tokio::test]
async fn one_host_has_one_spelling_and_its_connection_is_used_again() {
    let server = Server::start().await;
    let port = server.port;
    let origins = [format!("http://localhost:{port}"), format!("http://127.0.0.1:{port}")];
    let mut hooks = hooks(&origins, Limits::default());
    for authority in [
        format!("localhost:0{port}"),
        format!("localhost:+{port}"),
        format!("localhost:00000000{port}"),
        format!("[127.0.0.1]:{port}"),
        format!("[127.0.0.1]admin.corp:{port}"),
        "localhost:".to_owned(),
        "localhost:99999".to_owned(),
        "localhost:abc".to_owned(),
    ] {
        let uri = hyper::Uri::builder().scheme("http").authority(authority.as_str()).path_and_query("/").build();
        let Ok(uri) = uri else { continue };
        let answer = send(&mut hooks, Request::builder().uri(uri)).await;
        assert!(matches!(answer, Err(Error::HttpRequestUriInvalid)), "{authority}: {answer:?}");
    }
    assert_eq!(server.connections(), 0);
    for host in ["localhost", "LOCALHOST", "LocalHost"] {
        let uri = format!("http://{host}:{port}/");
        let answer = send(&mut hooks, Request::builder().uri(&uri).header("host", format!("{host}:{port}"))).await;
        assert!(answer.unwrap().contains(&format!("host: localhost:{port}\r\n")));
        // The client takes a connection back in a task of its own.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn connections_of_one_plugin_are_limited_those_that_are_kept_included() {
    let server = Server::start().await;
    let port = server.port;
    let names: Vec<String> = (0..5).map(|i| format!("n{i}.example.com")).collect();
    let answers: Vec<(&str, &[&str])> =
        names.iter().map(|name| (name.as_str(), ["127.0.0.1"].as_slice())).collect();
    let grant = format!("http://*.example.com:{port}").parse::<HttpGrant>().unwrap().with_private(true);
    let limits = Limits { http_connections_max: 2, ..Limits::default() };
    let mut hooks = hooks_of(vec![grant], limits, Network::resolving(Names::of(&answers)), Placeholders::default());
    let soon = Some(Duration::from_millis(200));
    let options = RequestOptions { first_byte_timeout: soon, ..RequestOptions::default() };
    for (i, name) in names.iter().enumerate() {
        // The first request loads the system's certificates, which may take longer.
        let options = if i == 0 { RequestOptions::default() } else { options };
        let answer = ask(&mut hooks, &format!("http://{name}:{port}/"), options).await;
        match answer {
            Ok(response) => drop(response.into_body().collect().await.unwrap()),
            Err(Error::ConnectionTimeout) if i >= 2 => {}
            Err(error) => panic!("{i}: {error:?}"),
        }
    }
    assert_eq!(server.connections(), 2);
    // What is open already is used.
    get(&mut hooks, &format!("http://{}:{port}/", names[0])).await.unwrap();
}
