//! Publisher: hands each message on. Here it goes to the host's log; put your destination in its place.

use laneway_sdk::prelude::*;

/// Most characters of a payload that are shown.
const SHOWN_MAX: usize = 200;

fn publish(item: &Item) -> Result<Receipt, Failure> {
    let prefix = config::get("prefix").unwrap_or_default();
    info!("{}", line(&prefix, &item.message));
    // The destination's own id for the message goes here, if it gives one.
    Ok(Receipt { reference: None })
}

fn line(prefix: &str, message: &Message) -> String {
    let payload: String = String::from_utf8_lossy(&message.body).chars().take(SHOWN_MAX).collect();
    format!("{prefix}{}: {payload}", message.topic)
}

/// Checks the configuration, once, when the plugin is deployed.
fn check() -> Result<(), Vec<String>> {
    match config::get("prefix") {
        Some(prefix) if prefix.len() > SHOWN_MAX => Err(vec![format!("`prefix` has more than {SHOWN_MAX} bytes")]),
        _ => Ok(()),
    }
}

laneway_sdk::publisher!(publish, validate = check);

/// What the plugin is called, and what it asks for.
#[cfg(target_family = "wasm")]
#[used]
#[unsafe(link_section = "laneway-manifest")]
static MANIFEST: [u8; include_bytes!("../manifest.json").len()] = *include_bytes!("../manifest.json");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_topic_and_payload() {
        let message = Message {
            id: "1".to_owned(),
            topic: "orders.created".to_owned(),
            key: None,
            content_type: "application/json".to_owned(),
            headers: Vec::new(),
            tenant: None,
            priority: 0,
            body: b"{}".to_vec(),
        };
        assert_eq!(line("new ", &message), "new orders.created: {}");
    }
}
