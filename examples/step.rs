//! A payment that is held once, although its task runs twice.
//!
//! `cargo run --example step`, with RabbitMQ and Redis running.

use std::time::Duration;

use countersign::{Client, Config, Context, Error, Policy, Retry, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

#[derive(Serialize, Deserialize)]
struct Charge {
    order: String,
    cents: u64,
}

impl Task for Charge {
    const NAME: &'static str = "example.charge";
    const QUEUE: Option<&'static str> = Some("example-step");
    type Output = String;

    fn policy() -> Policy {
        let retry = Retry::exponential(Duration::from_millis(100)).attempts(3);
        Policy { retry, ..Policy::default() }
    }
}

async fn charge(ctx: Context, task: Charge) -> TaskResult<String> {
    println!("attempt {}", ctx.attempt());
    let held = ctx.step("hold", || hold(&task.order, task.cents)).await?;
    // The second attempt gets `held` from the journal, and does not call `hold` again.
    ctx.step("capture", || capture(&held, ctx.attempt())).await
}

async fn hold(order: &str, cents: u64) -> TaskResult<String> {
    println!("the bank holds {cents} cents for {order}");
    Ok(format!("hold of {order}"))
}

async fn capture(held: &str, attempt: u32) -> TaskResult<String> {
    if attempt == 1 {
        return Err("the bank does not answer".into());
    }
    println!("the bank captures the {held}");
    Ok(format!("receipt for the {held}"))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let config = Config::load()?;
    let client = Client::connect(&config).await?;
    let worker = Worker::new(&Client::connect(&config).await?).queue("example-step").handle(charge);
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));

    let receipt = client.enqueue(Charge { order: "o-1".into(), cents: 500 }).await?;
    println!("{}", receipt.result_within(Duration::from_secs(30)).await?);

    drop(stop);
    let _ = worker.await;
    client.close().await;
    Ok(())
}
