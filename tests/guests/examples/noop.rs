//! Handler that does nothing: what is left is the cost of the sandbox.

use laneway_sdk::prelude::*;

fn handle((): (), _: &Context) -> Result<(), Failure> {
    Ok(())
}

laneway_sdk::handler!(handle);
