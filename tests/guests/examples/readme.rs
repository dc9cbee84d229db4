//! The handler of the README.

use laneway_sdk::prelude::*;

#[derive(Deserialize)]
struct Order {
    number: u64,
}

fn handle(order: Json<Order>, cx: &Context) -> Result<(), Failure> {
    cx.state().add("orders", 1);
    info!("order {} arrived", order.number);
    Ok(())
}

laneway_sdk::handler!(handle);
