//! Names that are looked up for long.

use tokio::sync::Semaphore;

use super::*;

/// Knows one name, and is asked for others for ever: as a name server that does not answer, it keeps each place.
#[derive(Default)]
struct Silent {
    places: Mutex<Vec<OwnedSemaphorePermit>>,
}

#[async_trait]
impl Resolver for Silent {
    async fn resolve(
        &self,
        host: &str,
        port: u16,
        place: OwnedSemaphorePermit,
    ) -> std::io::Result<Vec<SocketAddr>> {
        if host == "there.example.com" {
            return Ok(vec![([127, 0, 0, 1], port).into()]);
        }
        self.places.lock().unwrap().push(place);
        std::future::pending().await
    }
}

#[tokio::test]
async fn names_that_nobody_answers_for_keep_no_more_than_their_plugins_lookups() {
    let server = Server::start().await;
    let port = server.port;
    let silent = Arc::new(Silent::default());
    let network = Arc::new(Network::resolving(silent.clone()));
    let plugin = || {
        let grant = format!("http://*.example.com:{port}").parse::<HttpGrant>().unwrap().with_private(true);
        let grants = Grants { http: vec![grant], ..Grants::default() };
        let allowed = Allowed::new(Name::parse("test").unwrap(), grants, None, &BTreeMap::new()).unwrap();
        hooks_allowed(allowed, Limits::default(), Arc::clone(&network), Placeholders::default())
    };
    let (mut hostile, mut neighbour) = (plugin(), plugin());
    // It does not wait for any of them.
    let now = RequestOptions { first_byte_timeout: Some(Duration::from_nanos(1)), ..RequestOptions::default() };
    for i in 0..100 {
        let answer = ask(&mut hostile, &format!("http://n{i}.example.com:{port}/"), now).await.map(drop);
        assert!(matches!(answer, Err(Error::ConnectionTimeout)), "{answer:?}");
    }
    assert_eq!(silent.places.lock().unwrap().len(), 8);
    get(&mut neighbour, &format!("http://there.example.com:{port}/")).await.unwrap();
    silent.places.lock().unwrap().clear();
    get(&mut hostile, &format!("http://there.example.com:{port}/")).await.unwrap();
}

#[test]
fn a_lookup_that_nobody_waits_for_any_longer_has_its_place_until_it_is_over() {
    // The only thread for what blocks is taken: the lookup stays in the queue.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (free, taken) = std::sync::mpsc::channel::<()>();
        let blocked = tokio::task::spawn_blocking(move || taken.recv().is_err());
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let lookup = SystemResolver.resolve("localhost", 80, place);
        assert!(tokio::time::timeout(Duration::from_millis(20), lookup).await.is_err());
        assert_eq!(places.available_permits(), 0);
        drop(free);
        blocked.await.unwrap();
        drop(tokio::time::timeout(Duration::from_secs(20), places.acquire()).await.unwrap());
    });
}
