//! Handler that adds 1 to the counter `messages`, which never conflicts.

use laneway_sdk::prelude::*;

fn handle((): (), cx: &Context) -> Result<(), Failure> {
    cx.state().add("messages", 1);
    Ok(())
}

laneway_sdk::handler!(handle);
