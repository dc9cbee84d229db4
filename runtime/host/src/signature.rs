//! Who vouches for a component: Ed25519 signatures in minisign's format.
//!
//! A signature is four lines of text, made by `laneway plugin sign` or by minisign itself, over the BLAKE2b hash of the
//! component's bytes, and over its own trusted comment. The legacy form, over the bytes themselves, which minisign
//! made by default before version 0.10, is refused: one form is enough to trust.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{Error, PublicKey, Signature};

/// Largest text of a signature, in bytes: minisign's own limits on its lines, with room.
const SIGNATURE_TEXT_BYTES_MAX: usize = 16 << 10;
/// Bytes of a public key: algorithm, id, key.
const PUBLIC_KEY_BYTES: usize = 42;
/// Bytes of a secret key, which somebody may take for the public one.
const SECRET_KEY_BYTES: usize = 158;
/// What a signature of the bytes themselves begins with.
const LEGACY: &[u8] = b"Ed";

/// Identity of a key pair, as minisign shows it. Drawn at random with the pair, and no secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// The id in a decoded key or signature, which follows two bytes of algorithm.
    fn of(decoded: &[u8]) -> Option<Self> {
        decoded.get(2..10).and_then(|id| id.try_into().ok()).map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no public key. The text itself is not shown: it may be a secret one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPublicKey {
    /// No key is given, so that no signature could be trusted.
    #[error("no public key is given; name at least one, or ask for no signatures")]
    None,
    /// It is a secret key.
    #[error(
        "key {0} is a secret key, and whoever reads it can sign; give the public key, the line in the `.pub` file that \
         begins with `RW`, and make a new pair if others may have seen the secret one"
    )]
    Secret(usize),
    /// It is something else.
    #[error(
        "key {0} is no minisign public key; give the line in the `.pub` file that begins with `RW`, or the whole text of \
         that file"
    )]
    Malformed(usize),
}

/// Why a component is not trusted. Holds no key and no part of the component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is no signature.
    #[error(
        "it is not signed, and signatures are required here; sign it with `laneway plugin sign`, with one of the keys {}",
        list(.trusted)
    )]
    Missing {
        /// Keys whose signature would do.
        trusted: Vec<KeyId>,
    },
    /// The signature is no signature.
    #[error("its signature is malformed: {0}; sign it again with `laneway plugin sign`")]
    Malformed(&'static str),
    /// It is signed in the old way.
    #[error(
        "its signature by key {key} is of the legacy form, which is not accepted; sign it again with `laneway plugin \
         sign`, or with minisign 0.10 or later and without its option `-l`"
    )]
    Legacy {
        /// The key that it names.
        key: KeyId,
    },
    /// The key that made the signature is not one of those that are trusted.
    #[error(
        "it is signed with key {key}, which is not trusted here; trusted are {}; sign it with one of those, or add the \
         public key of {key} to `require_signatures`",
        list(.trusted)
    )]
    Untrusted {
        /// The key that it names.
        key: KeyId,
        /// Keys whose signature would do.
        trusted: Vec<KeyId>,
    },
    /// The signature is not one of these bytes.
    #[error(
        "its signature does not hold: key {key} signed other bytes, or the signature or its comment was changed; get \
         both files again from where they come from, or sign it again"
    )]
    Mismatch {
        /// The key that it names.
        key: KeyId,
    },
}

fn list(keys: &[KeyId]) -> String {
    keys.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ")
}

/// Public keys that are trusted to sign components. At least one.
///
/// ```
/// use laneway_host::{PublicKeys, SignatureError};
///
/// let keys = PublicKeys::parse(&["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".to_owned()])?;
/// let refused = keys.check(b"a component", None).unwrap_err();
/// assert!(matches!(refused, SignatureError::Missing { .. }));
/// # Ok::<(), laneway_host::InvalidPublicKey>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKeys(Vec<(KeyId, PublicKey)>);

impl PublicKeys {
    /// Reads keys, each the line of a minisign public key or the whole text of its file.
    ///
    /// # Errors
    /// [`InvalidPublicKey`] says which one, counted from 1, and what to give instead.
    pub fn parse(texts: &[String]) -> Result<Self, InvalidPublicKey> {
        let keys =
            texts.iter().zip(1..).map(|(text, number)| parse_key(text, number)).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(InvalidPublicKey::None) } else { Ok(Self(keys)) }
    }

    /// The keys' ids, in the order in which the keys were given.
    #[must_use]
    pub fn ids(&self) -> Vec<KeyId> {
        self.0.iter().map(|(id, _)| *id).collect()
    }

    /// Checks that one of the keys signed these bytes, and answers which. `signature` is the text of a `.minisig` file.
    ///
    /// # Errors
    /// [`SignatureError`] says why the component is not trusted.
    pub fn check(&self, component: &[u8], signature: Option<&str>) -> Result<KeyId, SignatureError> {
        let text = signature.ok_or_else(|| SignatureError::Missing { trusted: self.ids() })?;
        let (key, signature) = read(text)?;
        let mut candidates = self.0.iter().filter(|(id, _)| *id == key).peekable();
        if candidates.peek().is_none() {
            return Err(SignatureError::Untrusted { key, trusted: self.ids() });
        }
        // Ids are drawn at random, and nobody keeps two keys from having the same.
        if candidates.any(|(_, public)| public.verify(component, &signature, false).is_ok()) {
            Ok(key)
        } else {
            Err(SignatureError::Mismatch { key })
        }
    }
}

fn parse_key(text: &str, number: usize) -> Result<(KeyId, PublicKey), InvalidPublicKey> {
    // The key is the last line, whether the comment above it is there or not.
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let decoded = STANDARD.decode(line).unwrap_or_default();
    match decoded.len() {
        PUBLIC_KEY_BYTES => {
            let key = PublicKey::from_base64(line).map_err(|_| InvalidPublicKey::Malformed(number))?;
            Ok((KeyId::of(&decoded).ok_or(InvalidPublicKey::Malformed(number))?, key))
        }
        SECRET_KEY_BYTES => Err(InvalidPublicKey::Secret(number)),
        _ => Err(InvalidPublicKey::Malformed(number)),
    }
}

/// Reads a signature and the id of the key that it names.
fn read(text: &str) -> Result<(KeyId, Signature), SignatureError> {
    if text.len() > SIGNATURE_TEXT_BYTES_MAX {
        return Err(SignatureError::Malformed("it is too long"));
    }
    let signature = Signature::decode(text).map_err(|error| {
        SignatureError::Malformed(match error {
            Error::UnsupportedAlgorithm => "its algorithm is unknown",
            _ => "it is not the four lines of a minisign signature, or they are cut off",
        })
    })?;
    // The second line, which could be decoded a moment ago.
    let decoded = text.lines().nth(1).and_then(|line| STANDARD.decode(line).ok()).unwrap_or_default();
    let key = KeyId::of(&decoded).ok_or(SignatureError::Malformed("its second line is not base64"))?;
    if decoded.starts_with(LEGACY) {
        return Err(SignatureError::Legacy { key });
    }
    Ok((key, signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with minisign 0.11.
    const COMPONENT: &[u8] = b"a component";
    const PUBLIC: &str = "RWThRGtKuTrSjuc9SJPSMXO4JyDh+PDLlbIiLuyY2c1QSxqAcIertFB1";
    const OTHER: &str = "RWRfCCzY+jS/m4HUt52RRKUingxmW/LNmTxj5MYrjsqPShcfyQGZWdi4";
    const SIGNED: &str = "untrusted comment: signature from minisign secret key\n\
        RUThRGtKuTrSjo1XrZczCVwyZpqj2TGeQ+VNbuFGmHeCq1a6fKFbAsyM0BwW1vHhnBSNqMEgTw2nAKI6ZKxJKLIeZX6ChVikig0=\n\
        trusted comment: from the build of 2026-01-01\n\
        Z9nI1vEkydmvQ2S1B4/WuWl9zhCtc5b47lowP3SnTbTioYHKB/YvPf6wgpE5fQxWJy/B3TANEcxW6GJAMA8vCw==\n";
    const LEGACY_SIGNED: &str = "untrusted comment: signature from minisign secret key\n\
        RWThRGtKuTrSjp1EK/XqPZWAYtWsGTXVD70T2Sev3rYNTR6bnBgxyP8/FpkluLFHJoicj8ZPhBQaco9jJ9dxiRlviAQLUeam9wg=\n\
        trusted comment: from the build of 2026-01-01\n\
        NHlbSFLxvQTGslblxpq/YD2nMfsyFpf68z294QPn3ZjwVIR6MZdDSxTdPPBIY9M07vHv47us79UMgPPWFpARCA==\n";
    /// A secret key that protects nothing.
    const SECRET: &str = "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA4URrSrk60o6wNK4kSXpk6Md8\
        2PA3B7Z6J93af/CAhJ6/BmUEq4NYcOc9SJPSMXO4JyDh+PDLlbIiLuyY2c1QSxqAcIertFB1AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\
        AAAAAAAAAAA=";

    fn keys(texts: &[&str]) -> PublicKeys {
        PublicKeys::parse(&texts.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    fn id(public: &str) -> KeyId {
        keys(&[public]).ids()[0]
    }

    #[test]
    fn a_signature_of_minisign_itself_is_taken_with_the_key_that_made_it() {
        let signed = keys(&[OTHER, PUBLIC]).check(COMPONENT, Some(SIGNED)).unwrap();
        assert_eq!(signed.to_string(), "8ED23AB94A6B44E1");
        let file = format!("untrusted comment: minisign public key 8ED23AB94A6B44E1\r\n{PUBLIC}\r\n");
        assert_eq!(keys(&[&file]), keys(&[PUBLIC]));
        assert_eq!(keys(&[PUBLIC]).check(COMPONENT, Some(&SIGNED.replace('\n', "\r\n"))), Ok(signed));
    }

    #[test]
    fn a_component_without_a_signature_is_refused() {
        let refused = keys(&[PUBLIC]).check(COMPONENT, None).unwrap_err();
        assert_eq!(refused, SignatureError::Missing { trusted: vec![id(PUBLIC)] });
        let text = refused.to_string();
        assert!(text.contains("laneway plugin sign") && text.contains("8ED23AB94A6B44E1"), "{text}");
    }

    #[test]
    fn a_changed_byte_of_the_component_is_refused() {
        for place in 0..COMPONENT.len() {
            let mut changed = COMPONENT.to_vec();
            changed[place] ^= 1;
            let refused = keys(&[PUBLIC]).check(&changed, Some(SIGNED)).unwrap_err();
            assert_eq!(refused, SignatureError::Mismatch { key: id(PUBLIC) });
        }
        for other in [&b""[..], b"a componen", b"a component\0"] {
            assert!(keys(&[PUBLIC]).check(other, Some(SIGNED)).is_err());
        }
    }

    #[test]
    fn a_key_that_is_not_trusted_is_named_with_those_that_are() {
        let refused = keys(&[OTHER]).check(COMPONENT, Some(SIGNED)).unwrap_err();
        assert_eq!(refused, SignatureError::Untrusted { key: id(PUBLIC), trusted: vec![id(OTHER)] });
        let text = refused.to_string();
        assert!(text.contains("8ED23AB94A6B44E1") && text.contains("9BBF34FAD82C085F"), "{text}");
        assert!(!text.contains(PUBLIC) && !text.contains(OTHER), "{text}");
    }

    #[test]
    fn a_key_that_only_claims_the_id_of_another_is_refused() {
        let mut forged = STANDARD.decode(OTHER).unwrap();
        forged[2..10].copy_from_slice(&id(PUBLIC).0);
        let forged = STANDARD.encode(forged);
        let refused = keys(&[&forged]).check(COMPONENT, Some(SIGNED)).unwrap_err();
        assert_eq!(refused, SignatureError::Mismatch { key: id(PUBLIC) });
        // Both have the id, and one of them signed.
        assert_eq!(keys(&[&forged, PUBLIC]).check(COMPONENT, Some(SIGNED)), Ok(id(PUBLIC)));
    }

    #[test]
    fn a_changed_trusted_comment_is_refused() {
        for (from, to) in [("2026-01-01", "2026-01-02"), ("from the", "from  the"), ("2026-01-01", "2026-01-01 ")] {
            let changed = SIGNED.replace(from, to);
            assert_ne!(changed, SIGNED);
            let refused = keys(&[PUBLIC]).check(COMPONENT, Some(&changed)).unwrap_err();
            assert_eq!(refused, SignatureError::Mismatch { key: id(PUBLIC) });
        }
    }

    #[test]
    fn a_signature_that_is_cut_off_anywhere_is_refused() {
        let whole = SIGNED.trim_end();
        for end in 0..whole.len() {
            assert!(keys(&[PUBLIC]).check(COMPONENT, Some(&whole[..end])).is_err(), "{end} bytes were taken");
        }
        for text in ["", "\n\n\n\n", "not a signature", &"x".repeat(SIGNATURE_TEXT_BYTES_MAX + 1)] {
            let refused = keys(&[PUBLIC]).check(COMPONENT, Some(text)).unwrap_err();
            assert!(matches!(refused, SignatureError::Malformed(_)), "{refused}");
        }
    }

    #[test]
    fn a_changed_character_of_the_signature_is_refused() {
        let lines: Vec<&str> = SIGNED.lines().collect();
        for number in [1, 3] {
            for place in 0..lines[number].len() {
                let mut line = lines[number].as_bytes().to_vec();
                line[place] = if line[place] == b'B' { b'C' } else { b'B' };
                let line = String::from_utf8(line).unwrap();
                let changed = SIGNED.replace(lines[number], &line);
                assert!(keys(&[PUBLIC]).check(COMPONENT, Some(&changed)).is_err(), "{changed}");
            }
        }
    }

    #[test]
    fn the_legacy_form_is_refused_and_says_how_to_sign_again() {
        let refused = keys(&[PUBLIC]).check(COMPONENT, Some(LEGACY_SIGNED)).unwrap_err();
        assert_eq!(refused, SignatureError::Legacy { key: id(PUBLIC) });
        assert!(refused.to_string().contains("laneway plugin sign"), "{refused}");
    }

    #[test]
    fn what_is_no_public_key_is_refused_and_not_shown() {
        let parse = |text: &str| PublicKeys::parse(&[PUBLIC.to_owned(), text.to_owned()]).unwrap_err();
        for text in ["", "RWQ", &PUBLIC[1..], &PUBLIC[..52], "untrusted comment: minisign public key", "\u{e4}"] {
            assert_eq!(parse(text), InvalidPublicKey::Malformed(2), "{text}");
        }
        let file = format!("untrusted comment: minisign secret key\n{SECRET}\n");
        for secret in [SECRET, &file] {
            let error = parse(secret);
            assert_eq!(error, InvalidPublicKey::Secret(2));
            assert!(!error.to_string().contains("4URr") && error.to_string().contains("key 2"), "{error}");
        }
        assert_eq!(PublicKeys::parse(&[]), Err(InvalidPublicKey::None));
    }
}
