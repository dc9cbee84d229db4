//! What the operator lets a plugin reach.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::Deserialize;

/// All grants of one plugin. Nothing is granted by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grants {
    /// Where it may send HTTP requests.
    #[serde(default)]
    pub http: Vec<HttpGrant>,
}

/// A text that is no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("HTTP grant `{text}`: {wrong}; write it like `https://api.example.com` or `https://*.example.com:8443`")]
pub struct InvalidGrant {
    /// The text as given.
    pub text: String,
    /// What is wrong with it.
    pub wrong: &'static str,
}

/// Scheme, host and port that requests may go to.
///
/// A host is a name, `*.` and a domain for every name below it, or an IP address. A name must resolve to public
/// addresses, except `localhost`, which must resolve to loopback ones. An IP address is granted as it stands.
///
/// ```
/// use laneway_host::HttpGrant;
///
/// let grant: HttpGrant = "https://*.example.com".parse()?;
/// assert_eq!(grant.to_string(), "https://*.example.com");
/// assert!("https://example.com/path".parse::<HttpGrant>().is_err());
/// # Ok::<(), laneway_host::InvalidGrant>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct HttpGrant {
    https: bool,
    host: GrantedHost,
    port: u16,
    private: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum GrantedHost {
    Name(String),
    Below(String),
    Address(IpAddr),
}

/// Which addresses a granted host may resolve to. Ordered from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Public addresses.
    Public,
    /// Loopback addresses, for `localhost`.
    Loopback,
    /// Public, private and loopback ones, for names granted with `private = true`.
    Private,
    /// The address that the grant itself names.
    Literal,
}

impl HttpGrant {
    /// Lets the host's name resolve to private and loopback addresses too. Link-local addresses, where clouds keep
    /// their metadata, stay refused.
    #[must_use]
    pub fn with_private(mut self, private: bool) -> Self {
        self.private = private;
        self
    }

    /// Whether TLS is spoken.
    pub(crate) fn is_https(&self) -> bool {
        self.https
    }

    /// How far a request may reach under this grant, if it is covered. `host` is in lower case, without brackets.
    pub(crate) fn covers(&self, https: bool, host: &str, port: u16) -> Option<Reach> {
        if self.https != https || self.port != port {
            return None;
        }
        let covered = match &self.host {
            GrantedHost::Name(name) => name == host,
            GrantedHost::Below(domain) => host
                .strip_suffix(domain.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty()),
            GrantedHost::Address(address) => host.parse::<IpAddr>().is_ok_and(|found| found == *address),
        };
        covered.then(|| self.reach())
    }

    fn reach(&self) -> Reach {
        match &self.host {
            GrantedHost::Address(_) => Reach::Literal,
            _ if self.private => Reach::Private,
            GrantedHost::Name(name) if name == "localhost" => Reach::Loopback,
            _ => Reach::Public,
        }
    }
}

impl fmt::Display for HttpGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.https { "https://" } else { "http://" })?;
        match &self.host {
            GrantedHost::Name(name) => f.write_str(name)?,
            GrantedHost::Below(domain) => write!(f, "*.{domain}")?,
            GrantedHost::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            GrantedHost::Address(address) => write!(f, "{address}")?,
        }
        if self.port == default_port(self.https) { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl FromStr for HttpGrant {
    type Err = InvalidGrant;

    fn from_str(text: &str) -> Result<Self, InvalidGrant> {
        let invalid = |wrong| InvalidGrant { text: text.to_owned(), wrong };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("it has no scheme"))?;
        let https = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(invalid("its scheme is neither `http` nor `https`")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(invalid("it names more than scheme, host and port"));
        }
        let (host, port) = split_port(authority).map_err(invalid)?;
        Ok(Self {
            https,
            host: parse_host(host).map_err(invalid)?,
            port: port.unwrap_or(default_port(https)),
            private: false,
        })
    }
}

/// Port of a URL that names none.
pub(crate) fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    let (host, port) = match authority.rsplit_once(':') {
        // The last colon of an address in brackets is its own.
        Some((_, rest)) if rest.ends_with(']') => (authority, None),
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    match port.map(str::parse::<u16>) {
        None => Ok((host, None)),
        Some(Ok(port)) if port > 0 => Ok((host, Some(port))),
        Some(_) => Err("its port is no number from 1 to 65535"),
    }
}

fn parse_host(host: &str) -> Result<GrantedHost, &'static str> {
    if let Some(inner) = host.strip_prefix('[') {
        let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        return address.map(|a| GrantedHost::Address(a.into())).ok_or("its IPv6 address is not well formed");
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return match address {
            IpAddr::V4(_) => Ok(GrantedHost::Address(address)),
            IpAddr::V6(_) => Err("an IPv6 address stands in brackets"),
        };
    }
    let host = host.to_ascii_lowercase();
    let (below, name) = match host.strip_prefix("*.") {
        Some(domain) => (true, domain),
        None => (false, host.as_str()),
    };
    let well_formed = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if !name.split('.').all(well_formed) {
        return Err("its host is not well formed");
    }
    if !below {
        Ok(GrantedHost::Name(host))
    } else if name.contains('.') {
        Ok(GrantedHost::Below(name.to_owned()))
    } else {
        Err("`*.` stands before a domain of two labels or more")
    }
}

/// A grant in a configuration file: its text, or a table.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Table(WrittenTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTable {
    url: String,
    #[serde(default)]
    private: bool,
}

impl TryFrom<Written> for HttpGrant {
    type Error = InvalidGrant;

    fn try_from(written: Written) -> Result<Self, InvalidGrant> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Table(table) => Ok(table.url.parse::<Self>()?.with_private(table.private)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(text: &str) -> HttpGrant {
        text.parse().unwrap()
    }

    #[test]
    fn grants_cover_scheme_host_and_port_exactly() {
        let api = grant("https://api.example.com");
        assert_eq!(api.covers(true, "api.example.com", 443), Some(Reach::Public));
        for (https, host, port) in [
            (false, "api.example.com", 443),
            (true, "api.example.com", 8443),
            (true, "example.com", 443),
            (true, "evil-api.example.com", 443),
            (true, "api.example.com.", 443),
            (true, "api.example.com.evil.org", 443),
        ] {
            assert_eq!(api.covers(https, host, port), None, "{https} {host} {port}");
        }
        assert_eq!(grant("HTTPS://x.org".to_lowercase().as_str()).covers(true, "x.org", 443), Some(Reach::Public));
        assert_eq!(grant("https://API.Example.com").covers(true, "api.example.com", 443), Some(Reach::Public));
    }

    #[test]
    fn a_wildcard_covers_names_below_but_not_the_domain_itself() {
        let below = grant("https://*.example.com:8443");
        assert!(below.covers(true, "a.example.com", 8443).is_some());
        assert!(below.covers(true, "a.b.example.com", 8443).is_some());
        assert!(below.covers(true, "example.com", 8443).is_none());
        assert!(below.covers(true, ".example.com", 8443).is_none());
        assert!(below.covers(true, "badexample.com", 8443).is_none());
    }

    #[test]
    fn only_what_is_named_reaches_further_than_the_public_internet() {
        assert_eq!(grant("http://127.0.0.1:8080").covers(false, "127.0.0.1", 8080), Some(Reach::Literal));
        assert_eq!(grant("http://[::1]:8080").covers(false, "::1", 8080), Some(Reach::Literal));
        assert_eq!(grant("http://[::1]:8080").covers(false, "0:0:0:0:0:0:0:1", 8080), Some(Reach::Literal));
        assert_eq!(grant("http://127.0.0.1").covers(false, "::ffff:127.0.0.1", 80), None);
        assert_eq!(grant("http://localhost:8080").covers(false, "localhost", 8080), Some(Reach::Loopback));
        assert_eq!(grant("http://db.internal").covers(false, "db.internal", 80), Some(Reach::Public));
        assert_eq!(
            grant("http://db.internal").with_private(true).covers(false, "db.internal", 80),
            Some(Reach::Private)
        );
    }

    #[test]
    fn bad_grants_say_what_is_wrong() {
        for (text, wants) in [
            ("api.example.com", "no scheme"),
            ("ftp://example.com", "neither"),
            ("https://example.com/v1", "more than"),
            ("https://user@example.com", "more than"),
            ("https://example.com:0", "port"),
            ("https://example.com:https", "port"),
            ("https://*", "well formed"),
            ("https://*.com", "two labels"),
            ("https://a.*.com", "well formed"),
            ("https://", "well formed"),
            ("https://::1", "well formed"),
            ("https://[::1", "well formed"),
            ("https://exa mple.com", "well formed"),
        ] {
            let error = text.parse::<HttpGrant>().unwrap_err().to_string();
            assert!(error.contains(wants), "{text}: {error}");
        }
        for text in ["https://example.com", "http://127.0.0.1:8080", "https://[::1]", "https://*.example.com:1"] {
            assert_eq!(grant(text).to_string(), text);
        }
    }
}
