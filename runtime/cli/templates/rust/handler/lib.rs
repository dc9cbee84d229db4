//! Handler: counts orders, and remembers the largest one.

use laneway_sdk::prelude::*;

/// What the payload of a message must be; more fields do no harm.
#[derive(Debug, Deserialize)]
struct Order {
    number: u64,
    total: f64,
}

/// What is kept under the key `largest`.
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
struct Largest {
    number: u64,
    total: f64,
}

impl Largest {
    fn see(&mut self, order: &Order) {
        if order.total > self.total {
            *self = Self { number: order.number, total: order.total };
        }
    }
}

fn handle(order: Json<Order>, cx: &Context) -> Result<(), Failure> {
    if order.total < 0.0 {
        return Err(Failure::reject("negative_total", format_args!("order {} has total {}", order.number, order.total)));
    }
    cx.state().add("orders", 1);
    let largest = cx.state().update_json("largest", |largest: &mut Largest| largest.see(&order))?;
    info!("order {} arrived; the largest is {}", order.number, largest.number);
    Ok(())
}

laneway_sdk::handler!(handle);

/// What the plugin is called, and what it asks for.
#[cfg(target_family = "wasm")]
#[used]
#[unsafe(link_section = "laneway-manifest")]
static MANIFEST: [u8; include_bytes!("../manifest.json").len()] = *include_bytes!("../manifest.json");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_order_is_remembered() {
        let mut largest = Largest::default();
        for (number, total) in [(1, 10.0), (2, 30.0), (3, 20.0)] {
            largest.see(&Order { number, total });
        }
        assert_eq!(largest, Largest { number: 2, total: 30.0 });
    }
}
