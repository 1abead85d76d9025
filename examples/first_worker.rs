//! The worker of the README.
//!
//! `cargo run --example first_worker`, with RabbitMQ and Redis running.

use countersign::{Client, Config, Context, Policy, Retry, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Serialize, Deserialize)]
struct Refund {
    order: String,
    cents: u64,
}

impl Task for Refund {
    const NAME: &'static str = "billing.refund"; // the name that Celery producers use
    const QUEUE: Option<&'static str> = Some("billing");
    type Output = String;

    fn policy() -> Policy {
        let retry = Retry::exponential(Duration::from_secs(1)).attempts(5);
        Policy { retry, ..Policy::default() }
    }
}

async fn refund(ctx: Context, task: Refund) -> TaskResult<String> {
    Ok(format!("{} refunded, {} cents, attempt {}", task.order, task.cents, ctx.attempt()))
}

#[tokio::main]
async fn main() -> Result<(), countersign::Error> {
    let client = Client::connect(&Config::load()?).await?;
    let report = Worker::new(&client)
        .queue("billing")
        .concurrency(32)
        .prefetch(64)
        .handle(refund)
        .run(countersign::shutdown_signal())
        .await?; // returns a DrainReport
    println!("{report:?}");
    Ok(())
}
