//! What went wrong with a request, in words. The guest gets one of a few error codes, and people need more: which address,
//! which certificate, which line. The words go into the error of an attempt that fails.

use std::error::Error as StdError;
use std::io;

use jiff::Timestamp;
use rustls::{CertificateError, Error as TlsError};

/// Longest text on one request, in bytes. A part of it may be the server's.
const TEXT_BYTES_MAX: usize = 600;

/// The causes of an error, the outermost first. An I/O error names as its source the source of what it wraps, and so hides
/// that itself.
pub(super) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |found: &&'a (dyn StdError + 'static)| {
        let found: &'a (dyn StdError + 'static) = *found;
        match found.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => found.source(),
        }
    })
}

/// All that the causes of a client's error say, each thing once. Its own text says only at which step it was.
pub(super) fn in_words(error: &(dyn StdError + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    for cause in causes(error).skip(1) {
        if cause.downcast_ref::<io::Error>().is_some_and(|error| error.get_ref().is_some()) {
            // It says what the next one says.
            continue;
        }
        let text = match cause.downcast_ref() {
            Some(error) => of_tls(error),
            None => cause.to_string(),
        };
        // Many a type repeats its source.
        if said.iter().all(|before| !before.contains(&text)) {
            said.push(text);
        }
    }
    let mut words = if said.is_empty() { error.to_string() } else { said.join(": ") };
    if words.len() > TEXT_BYTES_MAX {
        words.truncate(words.floor_char_boundary(TEXT_BYTES_MAX));
        words.push('…');
    }
    words
}

fn of_tls(error: &TlsError) -> String {
    let TlsError::InvalidCertificate(error) = error else { return error.to_string() };
    match error {
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "the server's certificate expired at {}; it needs a new one, if the clock of this node is right",
            time(not_after.as_secs())
        ),
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "the server's certificate is not valid before {}; look at the clock of this node",
            time(not_before.as_secs())
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = match presented.as_slice() {
                [] => "no name at all".to_owned(),
                names => names.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", "),
            };
            format!("the server's certificate is for {names}, and not for `{}`", expected.to_str())
        }
        // The second: an authority of that name is known, but has another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the server's certificate is of an authority that this system does not know; if it is to be trusted, add the \
             authority's certificate to those of the system"
                .to_owned()
        }
        other => format!("the server's certificate is not accepted: {other}"),
    }
}

/// A name as the TLS library writes it, which is with its kind.
fn bare(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    format!("`{}`", inner.trim_matches('"'))
}

fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    // A certificate can name years that the calendar here does not have.
    time.map_or_else(|| "a time that cannot be".to_owned(), |time| time.to_string())
}
