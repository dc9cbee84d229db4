//! Handler that emits a copy of each message, with its key and headers, to `copied.<topic>`.

use laneway_sdk::prelude::*;

fn handle(body: Vec<u8>, cx: &Context) -> Result<(), Failure> {
    let message = cx.message();
    let mut copy = Outgoing::new(format!("copied.{}", message.topic), body).content_type(&message.content_type);
    copy.key.clone_from(&message.key);
    for header in &message.headers {
        copy = copy.header(&header.name, &header.value);
    }
    cx.emit(copy)?;
    Ok(())
}

laneway_sdk::handler!(handle);
