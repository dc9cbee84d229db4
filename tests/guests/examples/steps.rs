//! Handler that does what its payload, a list of steps, says.

use std::time::Duration;

use laneway_sdk::prelude::*;

/// One step. What reads something writes it under the last key, so that it shows.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Writes a key.
    Put(String, String),
    /// Deletes a key.
    Delete(String),
    /// Reads a key.
    Get(String, String),
    /// Adds to a counter.
    Add(String, i64),
    /// Reads a counter.
    Count(String, String),
    /// Emits a message.
    Emit(Box<Sent>),
    /// Notes something with the marker.
    Annotate(String),
    /// Reads a key of the configuration.
    Config(String, String),
    /// Writes as many keys, of as many bytes each.
    PutMany(u32, usize),
    /// Logs as many lines, of as many bytes each.
    LogMany(u32, usize),
    /// Fails with this text.
    Reject(String),
}

/// A message to emit.
#[derive(Deserialize)]
pub struct Sent {
    topic: String,
    #[serde(default)]
    body: String,
    key: Option<String>,
    priority: Option<i32>,
    content_type: Option<String>,
    #[serde(default)]
    headers: Vec<(String, String)>,
    delay_ms: Option<u64>,
}

/// The handler; a test runs it on the mock host, too.
pub fn handle(steps: Json<Vec<Step>>, cx: &Context) -> Result<(), Failure> {
    steps.0.into_iter().try_for_each(|step| take(step, cx))
}

fn take(step: Step, cx: &Context) -> Result<(), Failure> {
    let state = cx.state();
    match step {
        Step::Put(key, value) => state.put(&key, value.as_bytes()),
        Step::Delete(key) => state.delete(&key),
        Step::Get(key, to) => match state.get(&key) {
            Some(value) => state.put(&to, &value),
            None => state.put(&to, b"nothing"),
        },
        Step::Add(counter, delta) => state.add(&counter, delta),
        Step::Count(counter, to) => state.put(&to, state.count(&counter).to_string().as_bytes()),
        Step::Emit(sent) => drop(cx.emit(outgoing(*sent))?),
        Step::Annotate(note) => cx.annotate(&note)?,
        Step::Config(key, to) => state.put(&to, cx.config(&key).unwrap_or_default().as_bytes()),
        Step::PutMany(count, bytes) => {
            (0..count).for_each(|n| state.put(&format!("many/{n}"), &vec![b'x'; bytes]));
        }
        Step::LogMany(count, bytes) => (0..count).for_each(|_| info!("{}", "x".repeat(bytes))),
        Step::Reject(why) => return Err(Failure::reject("asked", why)),
    }
    Ok(())
}

fn outgoing(sent: Sent) -> Outgoing {
    let mut outgoing = Outgoing::new(sent.topic, sent.body);
    (outgoing.key, outgoing.priority, outgoing.content_type) = (sent.key, sent.priority, sent.content_type);
    outgoing.headers = sent.headers;
    match sent.delay_ms {
        Some(ms) => outgoing.delay(Duration::from_millis(ms)),
        None => outgoing,
    }
}

laneway_sdk::handler!(handle);
