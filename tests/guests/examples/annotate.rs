//! Handler that notes its payload, an object of texts, with its marker.

use std::collections::BTreeMap;

use laneway_sdk::prelude::*;

fn handle(note: Json<BTreeMap<String, String>>, cx: &Context) -> Result<(), Failure> {
    cx.annotate("the last one holds")?;
    cx.annotate(&*note)
}

laneway_sdk::handler!(handle);
