//! Secrets go to the server, and come back from nowhere.

use super::*;
use crate::Secret;

#[tokio::test]
async fn a_secret_is_in_what_the_server_gets_and_in_nothing_that_the_guest_gets() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let token = Name::parse("TOKEN").unwrap();
    let secrets = BTreeMap::from([(token.clone(), Secret::new("s3cr3t-t0k3n").unwrap())]);
    let mut config = BTreeMap::from([("auth".to_owned(), "Bearer {secret:TOKEN}".to_owned())]);
    let grants = Grants { secrets: [token].into(), ..Grants::default() };
    let allowed = Allowed::new(Name::parse("test").unwrap(), grants, None, &config).unwrap();
    let placeholders = Placeholders::fill(&mut config, &secrets, &allowed).unwrap();
    let shown = &config["auth"];
    assert!(!shown.contains("s3cr3t"));
    let mut hooks = hooks_of(vec![origin.parse().unwrap()], Limits::default(), Network::default(), placeholders);
    let answer = send(&mut hooks, Request::builder().uri(&origin).header("authorization", shown)).await.unwrap();
    let head = server.heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("authorization: Bearer s3cr3t-t0k3n\r\n"), "{head}");
    // This server answers with the head that it got.
    assert!(answer.contains("authorization: Bearer ************"), "{answer}");
    // And here with a header of its own.
    let echo = Request::builder().uri(format!("{origin}/echo")).header("authorization", shown);
    let answer = send(&mut hooks, echo).await.unwrap();
    assert!(answer.contains(shown.as_str()) && !answer.contains("s3cr3t"), "{answer}");
    // Not in the path: a URL is logged on its way.
    let path = format!("{origin}/{}", shown.strip_prefix("Bearer ").unwrap());
    get(&mut hooks, &path).await.unwrap();
    let head = server.heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("GET /laneway-secret-") && !head.contains("s3cr3t"), "{head}");
}

#[tokio::test]
async fn what_carries_a_secret_asks_for_a_plain_answer_and_takes_no_other() {
    let server = Server::start().await;
    let origin = format!("http://127.0.0.1:{}", server.port);
    let token = Name::parse("TOKEN").unwrap();
    let secrets = BTreeMap::from([(token.clone(), Secret::new("s3cr3t-t0k3n").unwrap())]);
    let mut config = BTreeMap::from([("auth".to_owned(), "Bearer {secret:TOKEN}".to_owned())]);
    let grants = Grants { secrets: [token].into(), ..Grants::default() };
    let allowed = Allowed::new(Name::parse("test").unwrap(), grants, None, &config).unwrap();
    let placeholders = Placeholders::fill(&mut config, &secrets, &allowed).unwrap();
    let grants = vec![origin.parse().unwrap()];
    let mut hooks = hooks_of(grants, Limits::default(), Network::default(), placeholders);
    let request = |path: &str| Request::builder().uri(format!("{origin}/{path}")).header("accept-encoding", "gzip");
    send(&mut hooks, request("").header("authorization", &config["auth"])).await.unwrap();
    let head = server.heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("accept-encoding: identity\r\n") && !head.contains("gzip"), "{head}");
    let answer = send(&mut hooks, request("packed").header("authorization", &config["auth"])).await;
    assert!(matches!(answer, Err(Error::HttpResponseContentCoding(_))), "{answer:?}");
    // Without one, that is the guest's own affair.
    send(&mut hooks, request("packed")).await.unwrap();
    let head = server.heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("accept-encoding: gzip\r\n"), "{head}");
}
