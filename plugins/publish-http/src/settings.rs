//! The configuration, checked.

use std::time::Duration;

use crate::request::{is_header_name, is_header_value, is_reserved, size};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Most bytes of configured headers. The rest of what a request may have is for the message's.
const HEADERS_BYTES_MAX: usize = 16 << 10;

/// Where requests go, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub target: Target,
    pub method: Method,
    /// Longest wait for the head of the response.
    pub timeout: Duration,
    /// Name and value.
    pub headers: Vec<(String, String)>,
}

/// The parts of a URL that a request is made of.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    pub https: bool,
    pub authority: String,
    pub path_and_query: String,
}

/// Methods that carry a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Post,
    Put,
    Patch,
    Delete,
}

impl Settings {
    /// Reads the configuration; the errors are for the operator.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let target = match get("url").as_deref().map(str::trim) {
            None | Some("") => Err("configuration key `url` is missing; set it to where messages go".to_owned()),
            Some(url) => target(url).map_err(|wrong| format!("configuration key `url`: {wrong}")),
        };
        let target = target.map_err(|error| errors.push(error)).ok();
        let method = match get("method").as_deref() {
            None | Some("POST") => Method::Post,
            Some("PUT") => Method::Put,
            Some("PATCH") => Method::Patch,
            Some("DELETE") => Method::Delete,
            Some(other) => {
                errors.push(format!("configuration key `method` is `{other}`; use POST, PUT, PATCH or DELETE"));
                Method::Post
            }
        };
        let timeout = match get("timeout_ms").map(|text| text.parse()) {
            None => TIMEOUT_DEFAULT,
            Some(Ok(ms @ 1..)) => Duration::from_millis(ms),
            Some(_) => {
                errors.push("configuration key `timeout_ms` must be a whole number above 0".to_owned());
                TIMEOUT_DEFAULT
            }
        };
        let headers = headers(&get, &mut errors);
        match target {
            Some(target) if errors.is_empty() => Ok(Self { target, method, timeout, headers }),
            _ => Err(errors),
        }
    }
}

fn headers(get: impl Fn(&str) -> Option<String>, errors: &mut Vec<String>) -> Vec<(String, String)> {
    let names = get("headers").unwrap_or_default();
    let mut headers = Vec::new();
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let key = format!("header.{name}");
        match get(&key) {
            _ if !is_header_name(name) => {
                errors.push(format!("configuration key `headers`: `{name}` is no name of a header"));
            }
            _ if is_reserved(name) && !name.eq_ignore_ascii_case("content-type") => {
                errors.push(format!("configuration key `headers`: `{name}` cannot be set"));
            }
            None => errors.push(format!("configuration key `{key}` is missing, which `headers` names")),
            Some(value) if !is_header_value(&value) => {
                errors.push(format!("configuration key `{key}` has a control character, such as a line break"));
            }
            Some(value) => headers.push((name.to_owned(), value)),
        }
    }
    if size(&headers) > HEADERS_BYTES_MAX {
        errors.push(format!("configuration key `headers`: they have over {HEADERS_BYTES_MAX} bytes"));
    }
    headers
}

fn target(url: &str) -> Result<Target, &'static str> {
    let (scheme, rest) = url.split_once("://").ok_or("it must begin with http:// or https://")?;
    let https = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return Err("it must begin with http:// or https://"),
    };
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it has a space or a character outside ASCII; percent-encode it");
    }
    let rest = rest.split('#').next().unwrap_or(rest);
    let (authority, path_and_query) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("it has a user or a password; set the header Authorization instead");
    }
    if authority.is_empty() || authority.starts_with(':') {
        return Err("it has no host");
    }
    let path_and_query =
        if path_and_query.starts_with('/') { path_and_query.to_owned() } else { format!("/{path_and_query}") };
    Ok(Target { https, authority: authority.to_owned(), path_and_query })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entries: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        Settings::read(|key| entries.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn only_the_url_is_needed() {
        let settings = read(&[("url", "https://example.com/hook?a=1#top")]).unwrap();
        assert_eq!((settings.method, settings.timeout), (Method::Post, TIMEOUT_DEFAULT));
        let target =
            Target { https: true, authority: "example.com".to_owned(), path_and_query: "/hook?a=1".to_owned() };
        assert_eq!(settings.target, target);
        let target = |url| read(&[("url", url)]).unwrap().target;
        assert_eq!(target("HTTP://[::1]:8080").authority, "[::1]:8080");
        assert_eq!(target("http://example.com?x").path_and_query, "/?x");
    }

    #[test]
    fn every_key_counts() {
        let settings = read(&[
            ("url", "http://localhost:80/"),
            ("method", "PUT"),
            ("timeout_ms", "1500"),
            ("headers", "Authorization, X-Name"),
            ("header.Authorization", "Bearer x"),
            ("header.X-Name", "y"),
        ])
        .unwrap();
        assert_eq!((settings.method, settings.timeout), (Method::Put, Duration::from_millis(1500)));
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(settings.headers, [header("Authorization", "Bearer x"), header("X-Name", "y")]);
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let errors = read(&[
            ("method", "GET"),
            ("timeout_ms", "0"),
            ("headers", "X-A,bad name,Host,laneway-topic,X-B"),
            ("header.X-B", "a\nb"),
        ])
        .unwrap_err();
        let wanted = [
            "`url`",
            "`GET`",
            "`timeout_ms`",
            "`header.X-A`",
            "`bad name`",
            "`Host`",
            "`laneway-topic`",
            "`header.X-B`",
        ];
        assert_eq!(errors.len(), wanted.len());
        for (error, wanted) in errors.iter().zip(wanted) {
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn configured_headers_leave_room_for_those_of_messages() {
        let large = "x".repeat(HEADERS_BYTES_MAX);
        let errors = read(&[("url", "http://x"), ("headers", "X-A"), ("header.X-A", &large)]).unwrap_err();
        assert!(errors[0].contains("over 16384 bytes"), "{errors:?}");
    }

    #[test]
    fn a_url_that_cannot_be_used_is_refused() {
        for (url, wants) in [
            ("ftp://x/", "http://"),
            ("example.com", "http://"),
            ("http:///x", "no host"),
            ("http://:80/", "no host"),
            ("http://me:pw@example.com/", "Authorization"),
            ("http://example.com/a b", "percent-encode"),
        ] {
            let errors = read(&[("url", url)]).unwrap_err();
            assert!(errors[0].contains(wants), "{url}: {errors:?}");
        }
    }
}
