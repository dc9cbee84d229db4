//! Handler that fails as the payload says: `ok`, `retry`, `retry:<n>` (up to attempt n, then success), `throttled`,
//! `throttled:<ms>`, `reject`, `unknown` or `misconfigured`. The code is the word. Before it fails, it writes
//! effects, so that a test can see that none of them is committed.

use std::time::Duration;

use laneway_sdk::prelude::*;

fn handle(wish: String, cx: &Context) -> Result<(), Failure> {
    let (word, number) = match wish.trim().split_once(':') {
        Some((word, number)) => (word, Some(number.parse::<u64>()?)),
        None => (wish.trim(), None),
    };
    cx.state().put("last", wish.as_bytes());
    cx.state().add(word, 1);
    match word {
        "ok" => Ok(()),
        "retry" if number.is_some_and(|until| u64::from(cx.attempt().number) > until) => Ok(()),
        "retry" => Err(Failure::retry(word, "asked to be tried again")),
        "throttled" => Err(Failure::throttled(number.map(Duration::from_millis), "asked for a pause")),
        "reject" => Err(Failure::reject(word, "asked to be rejected")),
        "unknown" => Err(Failure::unknown_outcome(word, "asked for an unknown outcome")),
        "misconfigured" => Err(Failure::misconfigured(word, "asked to be misconfigured")),
        other => Err(Failure::reject("bad_wish", format_args!("`{other}` is no wish"))),
    }
}

laneway_sdk::handler!(handle);
