//! One place that HTTP requests may go to.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use hyper::Method;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

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
/// addresses, except `localhost`, which must resolve to loopback ones. An IP address is granted as it stands. Without
/// methods, all are granted.
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
    /// Empty is all.
    methods: Vec<Method>,
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

    /// Grants these methods only; with none given, all.
    ///
    /// # Errors
    /// [`InvalidGrant`] if one is no method, is not in capitals, or would open a tunnel.
    pub fn with_methods<'a>(mut self, methods: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidGrant> {
        let text = self.to_string();
        let invalid = |wrong| InvalidGrant { text: text.clone(), wrong };
        for method in methods {
            match Method::from_bytes(method.as_bytes()) {
                Ok(Method::CONNECT) => return Err(invalid("`CONNECT` is granted to nobody")),
                Ok(parsed) if !method.bytes().any(|b| b.is_ascii_lowercase()) => self.methods.push(parsed),
                _ => return Err(invalid("its methods are not all like \"GET\", in capitals")),
            }
        }
        Ok(self)
    }

    /// Whether names may resolve to private addresses.
    pub(crate) fn is_private(&self) -> bool {
        self.private
    }

    /// Whether requests of this method are granted.
    pub(crate) fn allows(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// The methods by name; none means all.
    pub(crate) fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// Whether all hosts of the other are among the hosts of this one. Methods are not looked at.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        if self.https != other.https || self.port != other.port {
            return false;
        }
        match (&self.host, &other.host) {
            (GrantedHost::Below(domain), GrantedHost::Name(name)) => is_below(name, domain),
            (GrantedHost::Below(domain), GrantedHost::Below(other)) => other == domain || is_below(other, domain),
            (mine, other) => mine == other,
        }
    }

    /// As it stands in a configuration file.
    pub(crate) fn written(&self) -> String {
        if self.methods.is_empty() && !self.private {
            return format!("\"{self}\"");
        }
        let mut keys = format!("url = \"{self}\"");
        if !self.methods.is_empty() {
            let methods: Vec<String> = self.methods.iter().map(|method| format!("\"{method}\"")).collect();
            keys.push_str(&format!(", methods = [{}]", methods.join(", ")));
        }
        if self.private {
            keys.push_str(", private = true");
        }
        format!("{{ {keys} }}")
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
            GrantedHost::Below(domain) => is_below(host, domain),
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
            methods: Vec::new(),
        })
    }
}

fn is_below(host: &str, domain: &str) -> bool {
    let label = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
    label.is_some_and(|label| !label.is_empty())
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
    if is_number(name.rsplit('.').next().unwrap_or_default()) {
        return Err("its host is a number, which some read as an address; write all four parts of an IPv4 address");
    }
    if !below {
        Ok(GrantedHost::Name(host))
    } else if name.contains('.') {
        Ok(GrantedHost::Below(name.to_owned()))
    } else {
        Err("`*.` stands before a domain of two labels or more")
    }
}

/// Whether the last label of a host makes it an address to those who read numbers in decimal, octal and hexadecimal.
fn is_number(label: &str) -> bool {
    match label.strip_prefix("0x") {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// A grant as it is written: its text, or a table.
pub(crate) enum Written {
    Text(String),
    Table(WrittenTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenTable {
    url: String,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    private: bool,
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or a table with `url`, `methods` and `private`")
            }

            fn visit_str<E>(self, text: &str) -> Result<Written, E> {
                Ok(Written::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Written, A::Error> {
                WrittenTable::deserialize(MapAccessDeserializer::new(map)).map(Written::Table)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl TryFrom<Written> for HttpGrant {
    type Error = InvalidGrant;

    fn try_from(written: Written) -> Result<Self, InvalidGrant> {
        match written {
            Written::Text(text) => text.parse(),
            Written::Table(table) => table
                .url
                .parse::<Self>()?
                .with_private(table.private)
                .with_methods(table.methods.iter().map(String::as_str)),
        }
    }
}

impl Serialize for HttpGrant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Table<'a> {
            url: &'a str,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            methods: &'a [&'a str],
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            private: bool,
        }
        let url = self.to_string();
        if self.methods.is_empty() && !self.private {
            return serializer.serialize_str(&url);
        }
        let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        Table { url: &url, methods: &methods, private: self.private }.serialize(serializer)
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
    fn methods_are_granted_by_name_or_all() {
        let read = |text: &str| -> Result<HttpGrant, serde_json::Error> { serde_json::from_str(text) };
        let all = read(r#""https://x.org""#).unwrap();
        assert!(all.allows(&Method::GET) && all.allows(&Method::PATCH));
        let text = r#"{"url":"https://x.org","methods":["GET","PURGE"],"private":true}"#;
        let some = read(text).unwrap();
        assert!(some.allows(&Method::GET) && some.allows(&Method::from_bytes(b"PURGE").unwrap()));
        assert!(!some.allows(&Method::POST) && !some.allows(&Method::from_bytes(b"get").unwrap()));
        assert_eq!(serde_json::to_string(&some).unwrap(), text);
        assert_eq!(some.written(), r#"{ url = "https://x.org", methods = ["GET", "PURGE"], private = true }"#);
        for (text, wants) in [
            (r#"{"url":"https://x.org","methods":["get"]}"#, "capitals"),
            (r#"{"url":"https://x.org","methods":["CONNECT"]}"#, "nobody"),
            (r#"{"url":"https://x.org","method":["GET"]}"#, "unknown field `method`"),
            ("7", "a URL, or a table"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wants), "{text}: {error}");
        }
    }

    #[test]
    fn a_grant_includes_those_whose_hosts_are_all_its_own() {
        let wide = grant("https://*.example.com");
        for text in ["https://a.example.com", "https://*.example.com", "https://*.b.example.com"] {
            assert!(wide.includes(&grant(text)), "{text}");
        }
        for text in
            ["https://example.com", "http://a.example.com", "https://a.example.com:1", "https://*.example.org"]
        {
            assert!(!wide.includes(&grant(text)), "{text}");
        }
        assert!(!grant("https://a.example.com").includes(&wide));
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
            ("http://2130706433", "number"),
            ("http://127.1", "number"),
            ("http://0177.0.0.1", "number"),
            ("http://0x7f.0.0.1", "number"),
            ("http://0x7f000001", "number"),
            ("http://*.example.0x7f", "number"),
            ("http://256.1.1.1", "number"),
        ] {
            let error = text.parse::<HttpGrant>().unwrap_err().to_string();
            assert!(error.contains(wants), "{text}: {error}");
        }
        for text in ["https://example.com", "http://127.0.0.1:8080", "https://[::1]", "https://*.example.com:1"] {
            assert_eq!(grant(text).to_string(), text);
        }
    }
}
