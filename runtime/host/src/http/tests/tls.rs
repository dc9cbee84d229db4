//! Certificates.

use super::*;

/// A server that speaks TLS with this certificate, and the network of a node that trusts its authority.
struct Secure {
    port: u16,
    certificate: rustls::pki_types::CertificateDer<'static>,
}

impl Secure {
    fn start(names: &[&str], edit: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        edit(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        let config = Arc::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            for stream in listener.incoming().flatten() {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream);
                // A client that does not trust the certificate goes away in the middle of the handshake.
                if stream.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
                }
            }
        });
        Self { port, certificate }
    }

    /// Asks it, as a node that trusts its certificate or not. Answers with what the error says.
    async fn ask(&self, trusts: bool) -> Result<String, (Error, String)> {
        let mut roots = rustls::RootCertStore::empty();
        if trusts {
            roots.add(self.certificate.clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut network = Network::resolving(Arc::new(SystemResolver));
        network.tls = Ok(config).into();
        let origin = format!("https://localhost:{}", self.port);
        let grants = vec![origin.parse().unwrap()];
        let mut hooks = hooks_of(grants, Limits::default(), network, Placeholders::default());
        match get(&mut hooks, &origin).await {
            Ok(answer) => Ok(answer),
            Err(error) => Err((error, hooks.failed().unwrap())),
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_is_told_with_the_reason() {
    assert_eq!(Secure::start(&["localhost"], |_| {}).ask(true).await.unwrap(), "204 ");
    let told = async |server: Secure, trusts| match server.ask(trusts).await {
        Err((Error::TlsCertificateError, words)) => words,
        other => panic!("{other:?}"),
    };
    let words = told(Secure::start(&["localhost"], |_| {}), false).await;
    assert!(words.contains("of an authority that this system does not know"), "{words}");
    let words = told(Secure::start(&["a.example.com", "b.example.com"], |_| {}), true).await;
    assert!(words.contains("is for `a.example.com`, `b.example.com`, and not for `localhost`"), "{words}");
    let words =
        told(Secure::start(&["localhost"], |it| it.not_after = rcgen::date_time_ymd(2020, 2, 3)), true).await;
    assert!(words.contains("expired at 2020-02-03T00:00:00Z"), "{words}");
    let words =
        told(Secure::start(&["localhost"], |it| it.not_before = rcgen::date_time_ymd(2999, 1, 1)), true).await;
    assert!(words.contains("is not valid before 2999-01-01T00:00:00Z"), "{words}");
}
