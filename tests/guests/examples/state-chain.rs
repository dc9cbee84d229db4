//! Handler that reads the key `n`, a decimal number, and writes the next: a message processed twice, or one lost,
//! shows.

use laneway_sdk::prelude::*;

fn handle((): (), cx: &Context) -> Result<(), Failure> {
    let state = cx.state();
    let n: u64 = match state.get("n") {
        Some(value) => String::from_utf8(value)?.parse()?,
        None => 0,
    };
    state.put("n", (n + 1).to_string().as_bytes());
    Ok(())
}

laneway_sdk::handler!(handle);
