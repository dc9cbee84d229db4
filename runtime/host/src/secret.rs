//! Secrets: a plugin reads a placeholder, and the value takes its place in the headers of a request that leaves.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use laneway_core::{ErrorText, Failure, Name};
use zeroize::Zeroizing;

use crate::cache::hex;
use crate::error::PluginError;
use crate::grant::Allowed;

/// Shortest secret, in bytes: what is shorter can be guessed, and is found in texts by chance.
const SECRET_BYTES_MIN: usize = 8;
/// Longest secret, in bytes: servers take headers of about this size.
const SECRET_BYTES_MAX: usize = 8 << 10;
/// How a configuration's value names a secret.
const OPENING: &str = "{secret:";

/// A value that is shown to nobody, and is overwritten when it is given up.
///
/// ```
/// use laneway_host::Secret;
///
/// let secret = Secret::new("s3cr3t-t0k3n")?;
/// assert_eq!(format!("{secret:?}"), "Secret(..)");
/// assert!(Secret::new("two\nlines").is_err());
/// # Ok::<(), laneway_host::InvalidSecret>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<String>>);

/// Why a value cannot be a secret. Says nothing of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Too short or too long.
    #[error("it has {bytes} bytes; secrets have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// Something that a header cannot carry.
    #[error(
        "it has characters that a header cannot carry; secrets are of printable ASCII, with no space at either end"
    )]
    Characters,
}

impl Secret {
    /// Takes a value that a header can carry.
    ///
    /// # Errors
    /// [`InvalidSecret`] says what is wrong, and not with what.
    pub fn new(value: impl Into<String>) -> Result<Self, InvalidSecret> {
        let value = Zeroizing::new(value.into());
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&value.len()) {
            return Err(InvalidSecret::Length { bytes: value.len() });
        }
        // No CR, LF or NUL: what is put into a header's value cannot end it.
        if !value.bytes().all(|b| matches!(b, b' '..=b'~')) || value.trim() != value.as_str() {
            return Err(InvalidSecret::Characters);
        }
        Ok(Self(Arc::new(value)))
    }

    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What stands for secrets in one loaded plugin.
#[derive(Default)]
pub(crate) struct Placeholders {
    all: Vec<Placeholder>,
    /// What is not to be seen. Longest first: of two of which one begins with the other, the whole is taken.
    hidden: Vec<Hidden>,
}

struct Placeholder {
    /// Random, so that it tells nothing and is found nowhere by chance.
    text: String,
    name: Name,
    secret: Secret,
}

/// A form in which a secret may come back.
struct Hidden {
    form: Zeroizing<String>,
    placeholder: String,
}

/// The end of a body's part that waits for the next one: it may be the beginning of a secret.
#[derive(Default)]
pub(crate) struct Held {
    bytes: Zeroizing<Vec<u8>>,
    /// The same, with what is known to be secret written over.
    masked: Vec<u8>,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.masked.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.masked.len()
    }

    /// What it has, as nothing follows.
    pub(crate) fn take(&mut self) -> Bytes {
        std::mem::take(self).masked.into()
    }
}

impl Placeholders {
    /// Puts placeholders where the configuration names secrets.
    ///
    /// # Errors
    /// [`PluginError::Secret`] if a secret is not there, or the plugin is not to have it.
    pub(crate) fn fill(
        config: &mut BTreeMap<String, String>,
        secrets: &BTreeMap<Name, Secret>,
        allowed: &Allowed,
    ) -> Result<Self, PluginError> {
        let mut made = Self::default();
        for (key, value) in config {
            if value.contains(OPENING) {
                *value = made.filled(key, value, secrets, allowed)?;
            }
        }
        for Placeholder { text, secret, .. } in &made.all {
            let hidden = |form| Hidden { form, placeholder: text.clone() };
            made.hidden.extend(forms(secret.expose()).into_iter().map(hidden));
        }
        made.hidden.sort_by_key(|hidden| std::cmp::Reverse(hidden.form.len()));
        Ok(made)
    }

    fn filled(
        &mut self,
        key: &str,
        value: &str,
        secrets: &BTreeMap<Name, Secret>,
        allowed: &Allowed,
    ) -> Result<String, PluginError> {
        let mut filled = String::with_capacity(value.len() + 64);
        let mut rest = value;
        while let Some((before, after)) = rest.split_once(OPENING) {
            let refused = |name: &str, wrong: String| PluginError::Secret {
                key: key.to_owned(),
                name: name.to_owned(),
                wrong,
            };
            let Some((name, after)) = after.split_once('}') else {
                return Err(refused("", format!("`{OPENING}` has no `}}`; write it like `{OPENING}API_TOKEN}}`")));
            };
            let parsed = Name::parse(name).map_err(|error| refused(name, error.to_string()))?;
            allowed.secret(&parsed).map_err(|why| refused(name, why))?;
            let Some(secret) = secrets.get(&parsed) else {
                let line =
                    format!("this node does not have it; add under `[secrets]`: {name} = {{ env = \"{name}\" }}");
                return Err(refused(name, line));
            };
            filled.push_str(before);
            filled.push_str(self.of(&parsed, secret)?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn of(&mut self, name: &Name, secret: &Secret) -> Result<&str, PluginError> {
        let place = match self.all.iter().position(|known| known.name == *name) {
            Some(place) => place,
            None => {
                let mut random = [0; 16];
                getrandom::fill(&mut random)
                    .map_err(|error| PluginError::Http(format!("random bytes: {error}")))?;
                let text = format!("laneway-secret-{}", hex(&random));
                self.all.push(Placeholder { text, name: name.clone(), secret: secret.clone() });
                self.all.len() - 1
            }
        };
        Ok(&self.all[place].text)
    }

    /// Puts the secrets into a request's headers, and says whether there were any. For requests that are granted, as
    /// they leave.
    pub(crate) fn reveal(&self, headers: &mut HeaderMap) -> bool {
        let pairs = self.all.iter().map(|it| (it.text.as_str(), it.secret.expose()));
        replace_in(headers, true, pairs)
    }

    /// Takes them out of a response's headers, for a server may send back what it got.
    pub(crate) fn conceal(&self, headers: &mut HeaderMap) {
        replace_in(headers, false, self.hidden.iter().map(|it| (it.form.as_str(), it.placeholder.as_str())));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Takes the secrets out of a part of a response's body, and leaves its length as it is. What may be the beginning
    /// of one is held back, for the next part to go on with.
    pub(crate) fn mask(&self, held: &mut Held, part: &[u8]) -> Bytes {
        let Held { mut bytes, mut masked } = std::mem::take(held);
        bytes.extend_from_slice(part);
        masked.extend_from_slice(part);
        for secret in self.hidden.iter().map(|hidden| hidden.form.as_bytes()) {
            let mut from = 0;
            while let Some(at) = find(&bytes[from..], secret) {
                masked[from + at..from + at + secret.len()].fill(b'*');
                // One may begin within the other.
                from += at + 1;
            }
        }
        let begun = |secret: &[u8]| {
            let longest = bytes.len().min(secret.len() - 1);
            (1..=longest).rev().find(|&length| bytes.ends_with(&secret[..length])).unwrap_or(0)
        };
        let kept = self.hidden.iter().map(|hidden| begun(hidden.form.as_bytes())).max().unwrap_or(0);
        let clear = bytes.len() - kept;
        *held = Held { bytes: Zeroizing::new(bytes[clear..].to_vec()), masked: masked.split_off(clear) };
        masked.into()
    }

    /// A text of the guest's without secrets: it may have read one in a response.
    pub(crate) fn hide<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut hidden = Cow::Borrowed(text);
        for Hidden { form, placeholder } in &self.hidden {
            if hidden.contains(form.as_str()) {
                hidden = hidden.replace(form.as_str(), placeholder).into();
            }
        }
        hidden
    }

    /// A failure whose text has no secrets.
    pub(crate) fn hide_in(&self, mut failure: Failure) -> Failure {
        if self.is_empty() {
            return failure;
        }
        match &mut failure {
            Failure::Retry { error, .. }
            | Failure::Throttled { error, .. }
            | Failure::Reject { error, .. }
            | Failure::UnknownOutcome { error, .. }
            | Failure::Misconfigured { error, .. } => {
                if let Cow::Owned(hidden) = self.hide(error.as_str()) {
                    *error = ErrorText::new(hidden);
                }
            }
            Failure::Interrupted | Failure::Stale => {}
        }
        failure
    }
}

/// How a server that sends a secret back may write it: as it is, and as JSON, of which some write `/` as `\\/`. What it
/// encodes in yet another way is not known for what it is.
fn forms(secret: &str) -> Vec<Zeroizing<String>> {
    let quoted = Zeroizing::new(secret.replace('\\', r"\\").replace('"', "\\\""));
    let slashes = Zeroizing::new(quoted.replace('/', r"\/"));
    let mut forms = vec![Zeroizing::new(secret.to_owned()), quoted, slashes];
    forms.dedup();
    forms
}

/// Replaces in all values, and says whether there was anything to replace.
fn replace_in<'a>(
    headers: &mut HeaderMap,
    is_sensitive: bool,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> bool {
    let mut found = false;
    for (from, to) in pairs {
        for value in headers.values_mut() {
            if let Some(replaced) = replace(value.as_bytes(), from.as_bytes(), to.as_bytes())
                // Both are valid in a header, so the whole is.
                && let Ok(mut replaced) = HeaderValue::from_bytes(&replaced)
            {
                replaced.set_sensitive(is_sensitive);
                *value = replaced;
                found = true;
            }
        }
    }
    found
}

/// The bytes with each occurrence replaced; `None` if there is none.
fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut at = find(bytes, from)?;
    let mut replaced = Zeroizing::new(Vec::with_capacity(bytes.len() + to.len()));
    let mut rest = bytes;
    loop {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(to);
        rest = &rest[at + from.len()..];
        match find(rest, from) {
            Some(next) => at = next,
            None => break,
        }
    }
    replaced.extend_from_slice(rest);
    Some(replaced)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Grants;

    const VALUE: &str = "s3cr3t-t0k3n";

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn fill(value: &str) -> Result<(String, Placeholders), PluginError> {
        let secrets = ["TOKEN", "OTHER"].map(|it| (name(it), Secret::new(VALUE).unwrap()));
        let grants = Grants { secrets: ["TOKEN", "GONE"].map(name).into(), ..Grants::default() };
        let mut config = BTreeMap::from([("auth".to_owned(), value.to_owned())]);
        let allowed = Allowed::new(name("s"), grants, None, &config)?;
        let placeholders = Placeholders::fill(&mut config, &secrets.into(), &allowed)?;
        Ok((config.remove("auth").unwrap(), placeholders))
    }

    #[test]
    fn a_value_that_no_header_can_carry_is_no_secret_and_is_not_shown() {
        for value in ["", "short", "two\r\nlines here", "nul\0 inside it", " space before", "ünicode-value"] {
            let error = Secret::new(value).unwrap_err().to_string();
            assert!(value.is_empty() || !error.contains(value), "{error}");
        }
        assert!(Secret::new("x".repeat(8193)).is_err());
        let secret = Secret::new(VALUE).unwrap();
        assert!(!format!("{secret:?}").contains(VALUE));
    }

    #[test]
    fn a_placeholder_stands_for_a_secret_in_headers_and_back() {
        let (filled, placeholders) = fill("Bearer {secret:TOKEN}, {secret:TOKEN}!").unwrap();
        let (first, second) = filled.strip_prefix("Bearer ").unwrap().split_once(", ").unwrap();
        assert_eq!(second, format!("{first}!"), "one for each secret");
        assert!(!filled.contains(VALUE) && !filled.contains("TOKEN"));
        assert_ne!(fill("{secret:TOKEN}").unwrap().0, first, "another one for each plugin");
        let mut headers = HeaderMap::new();
        headers.append("a", filled.parse().unwrap());
        headers.append("b", "x".parse().unwrap());
        headers.append("b", first.parse().unwrap());
        let before = headers.clone();
        placeholders.reveal(&mut headers);
        assert_eq!(headers["a"], format!("Bearer {VALUE}, {VALUE}!"));
        assert_eq!(headers.get_all("b").iter().collect::<Vec<_>>(), ["x", VALUE]);
        assert!(!format!("{headers:?}").contains(VALUE));
        placeholders.conceal(&mut headers);
        assert_eq!(headers, before);
        assert_eq!(placeholders.hide(&format!("got {VALUE}")), format!("got {first}"));
    }

    #[test]
    fn a_body_has_no_secret_however_it_is_cut_into_parts() {
        let placeholders = fill("{secret:TOKEN}").unwrap().1;
        let body = format!("a {VALUE} b s3c s3cr3t-t0k3 {VALUE}{VALUE} s3cr3t");
        let wants = body.replace(VALUE, &"*".repeat(VALUE.len()));
        for size in 1..=body.len() {
            let (mut held, mut seen) = (Held::default(), Vec::new());
            for part in body.as_bytes().chunks(size) {
                seen.extend_from_slice(&placeholders.mask(&mut held, part));
                assert!(held.len() < VALUE.len());
            }
            seen.extend_from_slice(&held.take());
            assert_eq!(String::from_utf8(seen).unwrap(), wants, "in parts of {size}");
        }
    }

    /// Placeholders for these secrets.
    fn of(values: &[&str]) -> Placeholders {
        let names: Vec<Name> = (0..values.len()).map(|i| name(&format!("S{i}"))).collect();
        let secrets = names.iter().cloned().zip(values.iter().map(|it| Secret::new(*it).unwrap())).collect();
        let mut config = names.iter().map(|it| (it.to_string(), format!("{{secret:{it}}}"))).collect();
        let grants = Grants { secrets: names.into_iter().collect(), ..Grants::default() };
        let allowed = Allowed::new(name("s"), grants, None, &config).unwrap();
        Placeholders::fill(&mut config, &secrets, &allowed).unwrap()
    }

    fn masked(placeholders: &Placeholders, body: &str, size: usize) -> String {
        let (mut held, mut seen) = (Held::default(), Vec::new());
        for part in body.as_bytes().chunks(size) {
            seen.extend_from_slice(&placeholders.mask(&mut held, part));
        }
        seen.extend_from_slice(&held.take());
        String::from_utf8(seen).unwrap()
    }

    #[test]
    fn of_secrets_that_overlap_nothing_is_left() {
        let placeholders = of(&["abcdefgh", "abcdefgh12345678", "5678zzzz", "abcdabcd"]);
        for (body, wants) in [
            ("<abcdefgh12345678>", "<****************>"),
            ("<abcdefgh1234567>", "<********1234567>"),
            ("<abcdefgh12345678zzzz>", "<********************>"),
            ("<abcdabcdabcdefgh>", "<****************>"),
            ("<abcdabcdabcd>", "<************>"),
            ("<abcdefgh", "<********"),
        ] {
            for size in 1..=body.len() {
                assert_eq!(masked(&placeholders, body, size), wants, "{body} in parts of {size}");
            }
        }
        let text = placeholders.hide("got abcdefgh12345678").into_owned();
        assert!(!text.contains("abcdefgh") && !text.contains("12345678"), "{text}");
    }

    #[test]
    fn a_secret_that_comes_back_as_json_is_known() {
        let secret = r#"pa"ss\w0rd/x"#;
        let placeholders = of(&[secret]);
        let json = serde_json::to_string(secret).unwrap();
        for body in [json.clone(), json.replace('/', r"\/"), secret.to_owned()] {
            for size in 1..=body.len() {
                let seen = masked(&placeholders, &body, size);
                assert!(!seen.contains("pa") && !seen.contains("w0rd"), "{seen}");
            }
            assert!(!placeholders.hide(&body).contains("w0rd"));
        }
    }

    #[test]
    fn a_secret_that_a_plugin_is_not_to_have_is_refused_with_the_line_that_grants_it() {
        for (value, wants) in [
            ("{secret:OTHER}", "grants.secrets = [\"GONE\", \"TOKEN\", \"OTHER\"]"),
            ("{secret:GONE}", "GONE = { env = \"GONE\" }"),
            ("{secret:a b}", "contains ' '"),
            ("{secret:TOKEN", "no `}`"),
        ] {
            let error = fill(value).err().unwrap().to_string();
            assert!(
                error.contains(wants) && error.contains("`auth`") && !error.contains(VALUE),
                "{value}: {error}"
            );
        }
    }
}
