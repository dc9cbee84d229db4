//! Which addresses a name may lead to, and which of them is connected to.

use super::*;

#[tokio::test]
async fn the_address_is_looked_at_when_the_connection_is_made() {
    let server = Server::start().await;
    let port = server.port;
    let at = |reach: HttpGrant| {
        let network = Network::resolving(Names::of(&[("inner.example.com", &["127.0.0.1"])]));
        hooks_of(vec![reach], Limits::default(), network, Placeholders::default())
    };
    let url = format!("http://inner.example.com:{port}/");
    // The name is granted, but as one of the public internet.
    let public: HttpGrant = format!("http://inner.example.com:{port}").parse().unwrap();
    let answer = get(&mut at(public.clone()), &url).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    assert_eq!(server.connections(), 0);
    // Granted by its name, and with what lies behind it.
    get(&mut at(public.with_private(true)), &url).await.unwrap();
    let mut local = hooks(&[format!("http://localhost:{port}")], Limits::default());
    assert!(get(&mut local, &format!("http://LOCALHOST:{port}/")).await.is_ok());
}

#[tokio::test]
async fn no_name_leads_to_an_address_that_is_not_public() {
    let server = Server::start().await;
    let port = server.port;
    for address in [
        "127.0.0.1",
        "127.8.9.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
    ] {
        let network = Network::resolving(Names::of(&[("x.example.com", &[address])]));
        let grant = format!("http://*.example.com:{port}").parse().unwrap();
        let mut hooks = hooks_of(vec![grant], Limits::default(), network, Placeholders::default());
        let answer = get(&mut hooks, &format!("http://x.example.com:{port}/")).await;
        assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{address}: {answer:?}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn numbers_that_some_read_as_addresses_are_no_hosts() {
    let server = Server::start().await;
    let port = server.port;
    // All of them are 127.0.0.1 to somebody, or hide it. The widest grants that can be written do not cover them.
    let mut hooks = hooks(
        &[
            format!("http://*.example.com:{port}"),
            format!("http://localhost:{port}"),
            format!("http://127.0.0.2:{port}"),
        ],
        Limits::default(),
    );
    for host in [
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "127.0.0.1.example.org",
        "localhost.",
    ] {
        let answer = get(&mut hooks, &format!("http://{host}:{port}/")).await;
        assert!(matches!(answer, Err(Error::HttpRequestDenied)), "{host}: {answer:?}");
        assert!(
            host.starts_with('[')
                || host.ends_with("org")
                || format!("http://{host}").parse::<HttpGrant>().is_err(),
            "{host}"
        );
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_name_that_resolves_differently_the_next_time_gains_nothing() {
    let server = Server::start().await;
    let port = server.port;
    // What stands for the good address must be one that a test can connect to.
    let names = Names::of(&[("localhost", &["127.0.0.1", "10.0.0.1"])]);
    let network = Network::resolving(names.clone());
    let grant = format!("http://localhost:{port}").parse().unwrap();
    let mut hooks = hooks_of(vec![grant], small(), network, Placeholders::default());
    let url = format!("http://localhost:{port}");
    // It has no length, and so its connection is not used again.
    let answer = get(&mut hooks, &format!("{url}/endless")).await;
    assert!(matches!(answer, Err(Error::HttpResponseBodySize(_))), "{answer:?}");
    assert_eq!(names.lookups.load(Ordering::SeqCst), 1, "what was checked is what was connected to");
    let answer = get(&mut hooks, &url).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    assert_eq!((names.lookups.load(Ordering::SeqCst), server.connections()), (2, 1));
}

/// Every name has these addresses.
struct Everything(Vec<IpAddr>);

impl Everything {
    fn at(addresses: &[&str]) -> Network {
        Network::resolving(Arc::new(Self(addresses.iter().map(|address| address.parse().unwrap()).collect())))
    }
}

#[async_trait]
impl Resolver for Everything {
    async fn resolve(&self, _: &str, port: u16, _: OwnedSemaphorePermit) -> std::io::Result<Vec<SocketAddr>> {
        Ok(self.0.iter().map(|address| (*address, port).into()).collect())
    }
}

/// Takes no connection at this address and says nothing: its queue is full.
async fn black_hole(address: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(address).unwrap();
    let listener = socket.listen(0).unwrap();
    let mut inside = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        inside.push(connected.unwrap());
    }
    (listener, inside)
}

#[tokio::test]
async fn a_dead_address_of_a_name_costs_its_head_start_only() {
    let server = Server::start().await;
    let port = server.port;
    let _silent = black_hole(SocketAddr::from(([127, 0, 0, 2], port))).await;
    for addresses in [
        ["::1", "127.0.0.1"].as_slice(),
        &["127.0.0.2", "127.0.0.1"],
        &["127.0.0.3", "127.0.0.2", "::1", "127.0.0.1"],
    ] {
        let grant = format!("http://x.example.com:{port}").parse::<HttpGrant>().unwrap().with_private(true);
        let network = Everything::at(addresses);
        let mut hooks = hooks_of(vec![grant], Limits::default(), network, Placeholders::default());
        let began = Instant::now();
        let answer = get(&mut hooks, &format!("http://x.example.com:{port}/")).await;
        assert!(answer.is_ok(), "{addresses:?}: {answer:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "{addresses:?}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn when_no_address_of_a_name_answers_the_error_names_each() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let grant = format!("http://x.example.com:{port}").parse::<HttpGrant>().unwrap().with_private(true);
    let network = Everything::at(&["127.0.0.1", "127.0.0.3", "127.0.0.4"]);
    let mut hooks = hooks_of(vec![grant], Limits::default(), network, Placeholders::default());
    let answer = get(&mut hooks, &format!("http://x.example.com:{port}/")).await;
    assert!(matches!(answer, Err(Error::ConnectionRefused)), "{answer:?}");
    let failed = hooks.failed().unwrap();
    for address in ["127.0.0.1", "127.0.0.3", "127.0.0.4"] {
        assert!(failed.contains(&format!("{address}:{port}: ")), "{failed}");
    }
    assert_eq!(hooks.failed(), None, "it is told once");
}

#[tokio::test]
async fn each_address_of_a_name_is_looked_at_before_any_is_connected_to() {
    let server = Server::start().await;
    let port = server.port;
    let url = format!("http://localhost:{port}/");
    let asked = async |addresses: &[&str]| {
        let grant = vec![format!("http://localhost:{port}").parse().unwrap()];
        let mut hooks = hooks_of(grant, Limits::default(), Everything::at(addresses), Placeholders::default());
        get(&mut hooks, &url).await
    };
    let answer = asked(&["10.0.0.5", "169.254.169.254"]).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    // Of these, it goes to the one that is granted.
    assert!(asked(&["10.0.0.5", "127.0.0.1", "169.254.169.254"]).await.is_ok());
    let public: HttpGrant = format!("http://x.example.com:{port}").parse().unwrap();
    let network = Everything::at(&["127.0.0.1", "::1"]);
    let mut hooks = hooks_of(vec![public], Limits::default(), network, Placeholders::default());
    let answer = get(&mut hooks, &format!("http://x.example.com:{port}/")).await;
    assert!(matches!(answer, Err(Error::DestinationIpProhibited)), "{answer:?}");
    assert_eq!(server.connections(), 1);
}
