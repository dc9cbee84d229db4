//! Which headers a message becomes.

use laneway_sdk::{Failure, Item};

/// Headers of the connection, of the framing, or made here: a message's own do not pass.
const RESERVED: [&str; 16] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
    "via",
];
/// Headers of a message that say who sends it.
const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];
const PREFIX: &str = "laneway-";
/// Most bytes of all headers of a request, as [`size`] counts them. The host ends a guest that makes twice as many.
const HEADERS_BYTES_MAX: usize = 64 << 10;
/// What a header takes beside its name and its value, in bytes.
const HEADER_BYTES: usize = 64;

/// The headers of a message's request: names and values, those of the configuration last. A message with too many
/// is rejected.
pub fn headers(item: &Item, configured: &[(String, String)]) -> Result<Vec<(String, String)>, Failure> {
    let message = &item.message;
    let content_type = if is_header_value(&message.content_type) && !message.content_type.is_empty() {
        message.content_type.as_str()
    } else {
        "application/octet-stream"
    };
    let mut made = vec![
        ("content-type".to_owned(), content_type.to_owned()),
        ("content-length".to_owned(), message.body.len().to_string()),
        ("laneway-message-id".to_owned(), message.id.clone()),
        ("laneway-topic".to_owned(), message.topic.clone()),
        ("laneway-attempt".to_owned(), item.attempt.number.to_string()),
    ];
    if let Some(key) = &message.key {
        made.push(("laneway-key".to_owned(), percent_encoded(key)));
    }
    if let Some(tenant) = &message.tenant {
        made.push(("laneway-tenant".to_owned(), percent_encoded(tenant)));
    }
    for header in &message.headers {
        if is_header_name(&header.name) && !is_reserved(&header.name) && is_header_value(&header.value) {
            made.push((header.name.clone(), header.value.clone()));
        }
    }
    made.retain(|(name, _)| !configured.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)));
    made.extend_from_slice(configured);
    match size(&made) {
        0..=HEADERS_BYTES_MAX => Ok(made),
        size => {
            let text =
                format!("the request would have {size} bytes of headers; at most {HEADERS_BYTES_MAX} are sent");
            Err(Failure::reject("headers_too_large", text))
        }
    }
}

/// Whose word a request gives for who sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// That of the configuration, or nobody's: the same for all messages.
    Ours,
    /// The message's own.
    OfMessage,
}

/// Whose credentials a message's request has.
pub fn credentials(item: &Item, configured: &[(String, String)]) -> Credentials {
    let is_own = item.message.headers.iter().any(|header| {
        CREDENTIALS.iter().any(|name| header.name.eq_ignore_ascii_case(name))
            && !configured.iter().any(|(name, _)| name.eq_ignore_ascii_case(&header.name))
    });
    if is_own { Credentials::OfMessage } else { Credentials::Ours }
}

/// What headers take, in bytes.
pub fn size(headers: &[(String, String)]) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len() + HEADER_BYTES).sum()
}

/// Whether a name speaks for HTTP itself or is made here.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
        || name.get(..PREFIX.len()).is_some_and(|head| head.eq_ignore_ascii_case(PREFIX))
}

/// Whether a text can be the name of a header: a token of HTTP.
pub fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Whether a text can be the value of a header: no control character but the tab.
pub fn is_header_value(value: &str) -> bool {
    value.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use laneway_sdk::{Attempt, Header, Lane, Message};

    use super::*;

    fn item(headers: &[(&str, &str)]) -> Item {
        let headers = headers
            .iter()
            .map(|(name, value)| Header { name: (*name).to_owned(), value: (*value).to_owned() })
            .collect();
        Item {
            message: Message {
                id: "id-1".to_owned(),
                topic: "orders.created".to_owned(),
                key: Some("50% of ä".to_owned()),
                content_type: "text/csv".to_owned(),
                headers,
                tenant: None,
                priority: 0,
                body: b"a,b".to_vec(),
            },
            attempt: Attempt { number: 3, max: 5, lane: Lane::Primary, deadline_ms: 1000, maybe_duplicate: true },
        }
    }

    fn value<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
        headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    #[test]
    fn the_envelope_travels_as_headers() {
        let headers = headers(&item(&[]), &[]).unwrap();
        assert_eq!(value(&headers, "content-type"), ["text/csv"]);
        assert_eq!(value(&headers, "content-length"), ["3"]);
        assert_eq!(value(&headers, "laneway-message-id"), ["id-1"]);
        assert_eq!(value(&headers, "laneway-topic"), ["orders.created"]);
        assert_eq!(value(&headers, "laneway-attempt"), ["3"]);
        assert_eq!(value(&headers, "laneway-key"), ["50%25%20of%20%C3%A4"]);
        assert!(value(&headers, "laneway-tenant").is_empty());
    }

    #[test]
    fn headers_of_the_message_pass_unless_http_or_laneway_speaks_for_them() {
        let sent = headers(
            &item(&[
                ("x-trace", "1"),
                ("Host", "evil"),
                ("Transfer-Encoding", "chunked"),
                ("Content-Length", "0"),
                ("Laneway-Message-Id", "forged"),
                ("bad name", "x"),
                ("x-split", "a\r\nb: c"),
            ]),
            &[],
        )
        .unwrap();
        assert_eq!(value(&sent, "x-trace"), ["1"]);
        assert_eq!(value(&sent, "content-length"), ["3"]);
        assert_eq!(value(&sent, "laneway-message-id"), ["id-1"]);
        for name in ["host", "transfer-encoding", "bad name", "x-split"] {
            assert!(value(&sent, name).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_configured_header_replaces_one_of_the_message() {
        let configured = [
            ("Authorization".to_owned(), "ours".to_owned()),
            ("Content-Type".to_owned(), "application/json".to_owned()),
        ];
        let sent = headers(&item(&[("authorization", "theirs")]), &configured).unwrap();
        assert_eq!(value(&sent, "authorization"), ["ours"]);
        assert_eq!(value(&sent, "content-type"), ["application/json"]);
    }

    #[test]
    fn a_message_may_bring_credentials_of_its_own() {
        let ours = [("authorization".to_owned(), "ours".to_owned())];
        assert_eq!(credentials(&item(&[("x", "y")]), &[]), Credentials::Ours);
        assert_eq!(credentials(&item(&[("Authorization", "theirs")]), &[]), Credentials::OfMessage);
        assert_eq!(credentials(&item(&[("Authorization", "theirs")]), &ours), Credentials::Ours, "it is replaced");
    }

    #[test]
    fn a_message_with_too_many_headers_is_rejected() {
        let rejected = |item: &Item| match headers(item, &[]) {
            Err(Failure::Reject(detail)) => detail.code == "headers_too_large",
            _ => false,
        };
        assert!(rejected(&item(&[("x-large", &"x".repeat(HEADERS_BYTES_MAX))])));
        assert!(!rejected(&item(&[("x-large", &"x".repeat(HEADERS_BYTES_MAX / 2))])));
        let names: Vec<String> = (0..1100).map(|n| format!("x-{n}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        assert!(rejected(&item(&many)));
        let mut keyed = item(&[]);
        keyed.message.key = Some("ä".repeat(HEADERS_BYTES_MAX / 5));
        assert!(rejected(&keyed), "the key counts as it is sent");
    }
}
