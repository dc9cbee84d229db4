//! What a handler's function can ask a message's body to be.

use std::ops::Deref;

use serde::de::DeserializeOwned;

use crate::{Failure, Message};

/// What a message's body can be read as. The parameter of a handler's function chooses: [`Json`], `Vec<u8>`,
/// `String`, or `()` for a handler that does not look at it.
///
/// ```
/// use laneway_sdk::{Failure, Message, Payload};
///
/// struct Csv(Vec<String>);
///
/// impl Payload for Csv {
///     fn from_message(message: &Message) -> Result<Self, Failure> {
///         let line = std::str::from_utf8(&message.body)?;
///         Ok(Self(line.split(',').map(str::to_owned).collect()))
///     }
/// }
/// ```
pub trait Payload: Sized {
    /// Reads the body.
    ///
    /// # Errors
    /// The failure that answers for the message; the handler is not called. [`Failure::Reject`] for a body that no
    /// attempt can read.
    fn from_message(message: &Message) -> Result<Self, Failure>;
}

/// A body in JSON. One that is not, or is not a `T`, is rejected with code `bad_payload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeserializeOwned> Payload for Json<T> {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        serde_json::from_slice(&message.body).map(Self).map_err(|error| Failure::reject("bad_payload", error))
    }
}

impl Payload for Vec<u8> {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        Ok(message.body.clone())
    }
}

/// A body that is not UTF-8 is rejected with code `bad_payload`.
impl Payload for String {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        match std::str::from_utf8(&message.body) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(Failure::reject("bad_payload", error)),
        }
    }
}

impl Payload for () {
    fn from_message(_: &Message) -> Result<Self, Failure> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Detail;

    fn message(body: &[u8]) -> Message {
        Message {
            id: "1".to_owned(),
            topic: "a.b".to_owned(),
            key: None,
            content_type: "application/json".to_owned(),
            headers: Vec::new(),
            tenant: None,
            priority: 0,
            body: body.to_vec(),
        }
    }

    #[test]
    fn a_body_that_cannot_be_read_is_rejected() {
        let rejected = |result: Result<(), Failure>| match result {
            Err(Failure::Reject(Detail { code, .. })) => code == "bad_payload",
            _ => false,
        };
        assert!(rejected(Json::<u32>::from_message(&message(b"\"x\"")).map(drop)));
        assert!(rejected(Json::<u32>::from_message(&message(b"")).map(drop)));
        assert!(rejected(String::from_message(&message(b"\xff")).map(drop)));
    }

    #[test]
    fn a_body_is_read_as_what_is_asked_for() {
        assert_eq!(Json::<Vec<u32>>::from_message(&message(b"[1,2]")), Ok(Json(vec![1, 2])));
        assert_eq!(String::from_message(&message("ä".as_bytes())), Ok("ä".to_owned()));
        assert_eq!(Vec::from_message(&message(b"\xff")), Ok(vec![255]));
        assert_eq!(<()>::from_message(&message(b"\xff")), Ok(()));
    }
}
