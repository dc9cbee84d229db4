//! Publisher that publishes nowhere: what is left is the cost of the sandbox.

use laneway_sdk::prelude::*;

fn publish(batch: &[Item]) -> Result<Vec<Result<Receipt, Failure>>, Failure> {
    Ok(batch.iter().map(|_| Ok(Receipt { reference: None })).collect())
}

laneway_sdk::publisher!(batch = publish);
