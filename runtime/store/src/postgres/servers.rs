//! Which servers an address names, and which of them is connected to.
//!
//! sqlx reads addresses with one host. Those with several, as libpq has them, are taken apart here.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use laneway_core::StoreError;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;

use super::PostgresOptions;
use super::session::{Server, Session};

/// Shortest time that one of several servers has to answer.
const ANSWER_MIN: Duration = Duration::from_secs(1);

/// Which of the servers may be connected to, as libpq's `target_session_attrs` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    /// Not one of libpq's: a server that can be written to, or else any. Holds where several hosts are named without a
    /// word of which is wanted, since a node does its work only where it can write.
    PreferReadWrite,
    PreferStandby,
}

impl Target {
    /// Whether a server is what is wanted at the first look.
    fn takes(self, session: &Session) -> bool {
        match self {
            Self::Any => true,
            Self::ReadWrite | Self::PreferReadWrite => !session.is_read_only,
            Self::ReadOnly => session.is_read_only,
            Self::Primary => !session.is_standby,
            Self::Standby | Self::PreferStandby => session.is_standby,
        }
    }

    /// Whether any server will do if none was wanted at the first look.
    fn is_preference(self) -> bool {
        matches!(self, Self::PreferReadWrite | Self::PreferStandby)
    }
}

impl FromStr for Target {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        Ok(match text {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => {
                return Err(unreadable(
                    "target_session_attrs is none of any, read-write, read-only, primary, standby, prefer-standby",
                ));
            }
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::ReadWrite | Self::PreferReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby | Self::PreferStandby => "standby",
        })
    }
}

/// The servers of an address, in its order, and how long to wait for one of them.
pub(super) struct Servers {
    servers: Vec<Server>,
    target: Target,
    /// The one that took the last connection; it is tried first.
    last: AtomicUsize,
    patience: Duration,
}

impl Servers {
    /// Reads the address. Its text, which may hold a password, is in no error.
    pub(super) fn of(options: &PostgresOptions) -> Result<Self, StoreError> {
        let address = Address::take_apart(&options.url)?;
        let servers: Vec<Server> =
            address.urls().map(|url| Ok(Server::new(parsed(&url)?))).collect::<Result<_, StoreError>>()?;
        let target = match address.target {
            Some(target) => target,
            None if servers.len() > 1 => Target::PreferReadWrite,
            None => Target::Any,
        };
        Ok(Self { servers, target, last: AtomicUsize::new(0), patience: options.acquire_timeout })
    }

    /// Opens a session on the first server that answers and is wanted; if one is only preferred and none is to be had, on
    /// the first that answers. Gives up after the patience of the options, or a second a server if that is more.
    ///
    /// # Errors
    /// Names each server that was tried, and why it was not taken.
    pub(super) async fn connect(&self) -> Result<(Session, &Server), StoreError> {
        let count = self.servers.len();
        // One that does not answer must leave time for the others.
        let share = match count {
            1 => self.patience,
            _ => (self.patience / u32::try_from(count).unwrap_or(u32::MAX)).max(ANSWER_MIN.min(self.patience)),
        };
        let mut failures = Vec::new();
        let mut second_best: Option<(Session, &Server)> = None;
        let last = self.last.load(Ordering::Relaxed);
        for number in std::iter::once(last).chain((0..count).filter(|number| *number != last)) {
            let server = &self.servers[number];
            match timeout(share, server.open()).await {
                Ok(Ok(session)) if self.target.takes(&session) => {
                    if let Some((unwanted, _)) = second_best {
                        close(unwanted.connection);
                    }
                    self.last.store(number, Ordering::Relaxed);
                    return Ok((session, server));
                }
                Ok(Ok(session)) if self.target.is_preference() && second_best.is_none() => {
                    second_best = Some((session, server));
                }
                Ok(Ok(session)) => {
                    failures.push(self.not_wanted(&session, server));
                    close(session.connection);
                }
                Ok(Err(error)) => failures.push(error),
                Err(_) => {
                    failures.push(StoreError::Unavailable(format!("{server} did not answer within {share:?}")));
                }
            }
        }
        second_best.ok_or_else(|| all_of(failures))
    }

    fn not_wanted(&self, session: &Session, server: &Server) -> StoreError {
        let is = match session {
            Session { is_standby: true, .. } => "a standby",
            Session { is_read_only: true, .. } => "read-only",
            _ => "a primary",
        };
        StoreError::Unavailable(format!("{server} is {is}, and the storage url asks for {}", self.target))
    }

    /// The server that a session would be opened on. Where there are several, one is opened to find out.
    pub(super) async fn find(&self) -> Result<&Server, StoreError> {
        if let [only] = &self.servers[..] {
            return Ok(only);
        }
        let (session, server) = self.connect().await?;
        close(session.connection);
        Ok(server)
    }
}

/// Ends a session in order, without waiting for it.
pub(super) fn close(connection: PgConnection) {
    const CLOSE_MAX: Duration = Duration::from_secs(1);
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            // It is closed hard where it does not end in order.
            drop(timeout(CLOSE_MAX, sqlx::Connection::close(connection)).await);
        });
    }
}

/// One error for those of all servers. It is transient if one of them is: that one may be what is waited for.
fn all_of(mut failures: Vec<StoreError>) -> StoreError {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    let text = |error: &StoreError| match error {
        StoreError::Unavailable(text) | StoreError::Misconfigured(text) => text.clone(),
        other => other.to_string(),
    };
    let all = failures.iter().map(text).collect::<Vec<_>>().join("; ");
    if failures.iter().any(StoreError::is_transient) {
        StoreError::Unavailable(all)
    } else {
        StoreError::Misconfigured(all)
    }
}

fn unreadable(why: &str) -> StoreError {
    StoreError::Other(format!(
        "storage url cannot be read: {why}; use `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, or \
         `postgres://USER:PASSWORD@HOST:PORT,HOST:PORT/DATABASE?target_session_attrs=read-write`"
    ))
}

fn parsed(url: &str) -> Result<PgConnectOptions, StoreError> {
    let parsed: PgConnectOptions = url.parse().map_err(|_: sqlx::Error| {
        StoreError::Other(
            "storage url cannot be read; use `postgres://USER:PASSWORD@HOST:PORT/DATABASE`".to_owned(),
        )
    })?;
    Ok(match parsed.get_application_name() {
        Some(_) => parsed,
        None => parsed.application_name("laneway"),
    })
}

/// An address in its parts.
struct Address {
    /// All before the first host: scheme, user and password.
    begin: String,
    /// `host`, or `host:port`.
    hosts: Vec<String>,
    /// All behind the last host: the database.
    database: String,
    /// Settings but for those that are read here.
    settings: Vec<String>,
    target: Option<Target>,
}

impl Address {
    fn take_apart(url: &str) -> Result<Self, StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| unreadable("it has no `://`"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        // A password may hold an `@`.
        let (user, hosts) = match authority.rfind('@') {
            Some(at) => authority.split_at(at + 1),
            None => ("", authority),
        };
        let mut hosts: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let mut settings = Vec::new();
        let (mut named, mut ports, mut target) = (None, None, None);
        for setting in query.split('&').filter(|setting| !setting.is_empty()) {
            match setting.split_once('=') {
                Some(("target_session_attrs", value)) => target = Some(value.parse()?),
                // Several as a setting, as libpq has them too. A comma in a path of a socket is written as %2C.
                Some(("host", value)) if value.contains(',') => named = Some(list(value)),
                Some(("port", value)) if value.contains(',') => ports = Some(list(value)),
                _ => settings.push(setting.to_owned()),
            }
        }
        if let Some(named) = named {
            hosts = named;
        }
        if let Some(ports) = ports {
            if ports.len() != hosts.len() {
                return Err(unreadable(&format!("it has {} hosts and {} ports", hosts.len(), ports.len())));
            }
            hosts = hosts.into_iter().zip(ports).map(|(host, port)| format!("{host}:{port}")).collect();
        }
        if hosts.len() > 1 && hosts.iter().any(String::is_empty) {
            return Err(unreadable("one of its hosts is empty"));
        }
        Ok(Self { begin: format!("{scheme}://{user}"), hosts, database: database.to_owned(), settings, target })
    }

    /// One address for each host.
    fn urls(&self) -> impl Iterator<Item = String> {
        let settings =
            if self.settings.is_empty() { String::new() } else { format!("?{}", self.settings.join("&")) };
        self.hosts.iter().map(move |host| {
            // A socket's folder is a host too; in this place its slashes need another form.
            let host = if host.starts_with('/') { host.replace('/', "%2F") } else { host.clone() };
            format!("{}{host}{}{settings}", self.begin, self.database)
        })
    }
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::pool::Pool;
    use super::*;

    fn servers(url: &str) -> Servers {
        Servers::of(&PostgresOptions::new(url)).unwrap()
    }

    fn names(url: &str) -> Vec<String> {
        servers(url).servers.iter().map(ToString::to_string).collect()
    }

    fn refusal(url: &str) -> String {
        Servers::of(&PostgresOptions::new(url)).err().expect("a refusal").to_string()
    }

    #[test]
    fn an_address_may_name_several_servers() {
        let one = "postgres://me:secret@localhost:5433/app?sslmode=disable";
        assert_eq!((names(one), servers(one).target), (vec!["localhost:5433".to_owned()], Target::Any));
        let two = "postgres://me:p@ss@a,[::1]:5433/app?application_name=x&target_session_attrs=read-write";
        assert_eq!(
            (names(two), servers(two).target),
            (vec!["a:5432".to_owned(), "[::1]:5433".to_owned()], Target::ReadWrite)
        );
        let server = &servers(two).servers[1];
        assert_eq!((server.role(), server.database(), server.application()), ("me", Some("app"), Some("x")));
        let listed = "postgres://me@/app?host=a,b&port=1,2";
        assert_eq!(
            (names(listed), servers(listed).target),
            (vec!["a:1".to_owned(), "b:2".to_owned()], Target::PreferReadWrite)
        );
    }

    #[test]
    fn a_refused_address_says_why_and_not_what_it_is() {
        let said = refusal("postgres://me:secret@a,b/app?target_session_attrs=master");
        assert!(said.contains("none of any, read-write") && !said.contains("secret"), "{said}");
        let said = refusal("postgres://me:secret@a,b,c/app?port=1,2");
        assert!(said.contains("3 hosts and 2 ports") && !said.contains("secret"), "{said}");
        let said = refusal("postgres://me:secret@a,/app");
        assert!(said.contains("hosts is empty") && !said.contains("secret"), "{said}");
        let said = refusal("postgres://me:secret@a:port/app");
        assert!(said.contains("cannot be read") && !said.contains("secret"), "{said}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_named() {
        // Connections to it succeed, and are never read from.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        for hosts in [address.clone(), format!("{address},{address}")] {
            let patience = Duration::from_millis(200);
            let servers = Servers {
                patience,
                ..Servers::of(&PostgresOptions::new(format!("postgres://me@{hosts}/app"))).unwrap()
            };
            let began = std::time::Instant::now();
            let said =
                Pool::new(Arc::new(servers), 1, patience).acquire().await.err().expect("a refusal").to_string();
            assert!(said.contains(&format!("{address} did not answer within")), "{said}");
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        }
    }
}
