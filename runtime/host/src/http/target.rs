//! Where a request goes, written in one way.

use std::fmt;
use std::net::Ipv6Addr;

use hyper::header::{self, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Method, Request, Uri};
use wasmtime_wasi_http::{Error, WasiBody};

use super::request::is_hop_by_hop;
use crate::grant::default_port;

/// Scheme, host and port of a request.
///
/// Connections are kept by the text of the authority, and servers read it in their own way: of the many spellings of one
/// host, all but one are written anew or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) https: bool,
    /// In lower case, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Target {
    /// # Errors
    /// Says what is wrong with a request that is not clear about where it goes.
    pub(crate) fn of(request: &Request<WasiBody>) -> Result<Self, Error> {
        let uri = request.uri();
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        // Any other form would stand in the request line as it is, and could name another host.
        if !uri.path_and_query().is_some_and(|path| path.as_str().starts_with(['/', '?'])) {
            return Err(Error::HttpRequestUriInvalid);
        }
        check_headers(request.headers(), authority)?;
        if request.method() == Method::CONNECT {
            // A tunnel would let the host at its end decide where the request goes.
            return Err(Error::HttpRequestMethodInvalid);
        }
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(Error::HttpRequestUriInvalid),
        };
        let (host, port) = split(authority.as_str()).ok_or(Error::HttpRequestUriInvalid)?;
        Ok(Self { https, host, port: port.unwrap_or(default_port(https)) })
    }

    /// Writes a request so that it says what was looked at, and nothing else.
    pub(crate) fn write(&self, request: &mut Request<WasiBody>) -> Result<(), Error> {
        let authority = self.authority();
        let host = HeaderValue::try_from(&authority).map_err(|_| Error::HttpRequestUriInvalid)?;
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = Some(authority.parse().map_err(|_| Error::HttpRequestUriInvalid)?);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Error::HttpRequestUriInvalid)?;
        request.headers_mut().insert(header::HOST, host);
        Ok(())
    }

    fn authority(&self) -> String {
        let Self { https, host, port } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if *port == default_port(*https) { host } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }
}

/// Host and port; `None` if the text has anything else, or a port in another form than its plain number.
fn split(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        // The colon is one of an IPv6 address.
        Some((_, after)) if after.ends_with(']') => (authority, None),
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let port = match port {
        None => None,
        Some(text) => Some(text.parse::<u16>().ok().filter(|port| port.to_string() == text)?),
    };
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_string(),
        None if host.is_empty() || host.contains(['[', ']', '@', ':']) => return None,
        None => host.to_ascii_lowercase(),
    };
    Some((host, port))
}

/// Looks at what decides where a request ends and whom it is for. The guest's headers went through
/// `is_forbidden_header`; here is what is about to be sent.
fn check_headers(headers: &HeaderMap, authority: &Authority) -> Result<(), Error> {
    let mut hosts = headers.get_all(header::HOST).iter();
    if hosts.next().is_some_and(|host| host != authority.as_str()) || hosts.next().is_some() {
        return Err(Error::HttpProtocolError);
    }
    if headers.keys().any(|name| *name != header::HOST && is_hop_by_hop(name)) {
        return Err(Error::HttpProtocolError);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let is_number = |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.next().is_some_and(|length| !is_number(length)) || lengths.next().is_some() {
        return Err(Error::HttpProtocolError);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_a_port_are_taken_in_one_form_only() {
        for (text, host, port) in [
            ("API.Example.com", "api.example.com", None),
            ("api.example.com:443", "api.example.com", Some(443)),
            ("10.0.0.5:8080", "10.0.0.5", Some(8080)),
            ("[::1]", "::1", None),
            ("[0:0::0001]:80", "::1", Some(80)),
        ] {
            assert_eq!(split(text), Some((host.to_owned(), port)), "{text}");
        }
        for text in [
            "",
            ":443",
            "a.example.com:",
            "a.example.com:0443",
            "a.example.com:+443",
            "a.example.com:99999",
            "a.example.com:abc",
            "a:b:80",
            "user@a.example.com",
            "[10.0.0.5]",
            "[10.0.0.5]admin.corp",
            "[::1]admin.corp",
            "[fe80::1%25eth0]",
        ] {
            assert_eq!(split(text), None, "{text}");
        }
    }
}
