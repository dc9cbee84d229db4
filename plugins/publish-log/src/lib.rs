//! Publisher that writes messages to the host's log and nowhere else: to look at what a subscription would send
//! out.
//!
//! Each line has the message's id, its topic and its size in bytes. With the configuration `payload = "true"` it
//! has the payload too, as far as it is text, cut to [`PAYLOAD_BYTES_MAX`].

use laneway_sdk::prelude::*;

/// Most bytes of a payload that are logged.
const PAYLOAD_BYTES_MAX: usize = 1024;

fn publish(batch: &[Item]) -> Result<Vec<Result<Receipt, Failure>>, Failure> {
    let with_payload = config::parse::<bool>("payload")?.unwrap_or(false);
    Ok(batch.iter().map(|item| publish_one(&item.message, with_payload)).collect())
}

fn publish_one(message: &Message, with_payload: bool) -> Result<Receipt, Failure> {
    let Message { id, topic, body, .. } = message;
    let bytes = body.len();
    if with_payload {
        info!(message = id, topic = topic, bytes = bytes, payload = shown(body), "message");
    } else {
        info!(message = id, topic = topic, bytes = bytes, "message");
    }
    Ok(Receipt { reference: None })
}

/// The payload as a line can hold it: at most [`PAYLOAD_BYTES_MAX`], what is not UTF-8 replaced.
fn shown(body: &[u8]) -> String {
    if body.len() <= PAYLOAD_BYTES_MAX {
        return String::from_utf8_lossy(body).into_owned();
    }
    // Up to three bytes of a character that the cut goes through are dropped, not shown as broken.
    let head = &body[..PAYLOAD_BYTES_MAX];
    let whole = match str::from_utf8(head) {
        Err(error) if error.error_len().is_none() => &head[..error.valid_up_to()],
        _ => head,
    };
    format!("{}… ({} bytes more)", String::from_utf8_lossy(whole), body.len() - whole.len())
}

fn check() -> Result<(), Vec<String>> {
    match config::get("payload").as_deref() {
        None | Some("true" | "false") => Ok(()),
        Some(other) => Err(vec![format!("configuration key `payload` is `{other}`; write `true` or `false`")]),
    }
}

laneway_sdk::publisher!(batch = publish, validate = check);

laneway_sdk::manifest! {}

#[cfg(test)]
mod tests {
    use laneway_sdk::mock::MockHost;

    use super::*;

    fn message() -> Message {
        Message::for_test("orders.created").id("id-1").body("{}")
    }

    #[test]
    fn each_message_is_a_line_without_its_payload() {
        let mut host = MockHost::new();
        let results = host.publish_batch(publish, [message(), message().id("id-2")]);
        assert_eq!(results, [Ok(Receipt { reference: None }), Ok(Receipt { reference: None })]);
        let lines = host.log();
        let ids: Vec<_> = lines.iter().map(|line| line.field("message").unwrap_or_default()).collect();
        assert_eq!(ids, ["id-1", "id-2"]);
        assert_eq!((lines[0].field("topic"), lines[0].field("bytes")), (Some("orders.created"), Some("2")));
        assert_eq!(lines[0].field("payload"), None);
    }

    #[test]
    fn the_payload_is_there_when_it_is_asked_for() {
        let mut host = MockHost::new().with_config("payload", "true");
        assert!(host.publish_batch(publish, [message()])[0].is_ok());
        assert_eq!(host.log()[0].field("payload"), Some("{}"));
    }

    #[test]
    fn a_configuration_that_is_neither_yes_nor_no_is_refused_at_deploy_and_stops_the_batch() {
        let mut host = MockHost::new().with_config("payload", "yes");
        let errors = host.validate(check).unwrap_err();
        assert_eq!(errors, ["configuration key `payload` is `yes`; write `true` or `false`"]);
        let results = host.publish_batch(publish, [message(), message()]);
        assert!(results.iter().all(|result| matches!(result, Err(Failure::Misconfigured(_)))), "{results:?}");
        for good in [MockHost::new(), MockHost::new().with_config("payload", "false")] {
            assert_eq!({ good }.validate(check), Ok(()));
        }
    }

    #[test]
    fn a_long_payload_is_cut_at_a_character() {
        assert_eq!(shown(b"{}"), "{}");
        assert_eq!(shown(b"a\xff"), "a\u{fffd}");
        let long = format!("x{}", "ä".repeat(PAYLOAD_BYTES_MAX));
        let line = shown(long.as_bytes());
        assert!(line.ends_with("ä… (1026 bytes more)"), "{}", &line[1000..]);
    }
}
