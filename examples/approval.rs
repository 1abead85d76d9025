//! A payment that needs an approval. While the task waits, it holds neither a slot nor a message.
//!
//! `cargo run --example approval`, with RabbitMQ and Redis running.

use std::time::Duration;

use countersign::{Client, Config, Context, Error, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

#[derive(Serialize, Deserialize)]
struct Payment {
    to: String,
    cents: u64,
}

impl Task for Payment {
    const NAME: &'static str = "example.payment";
    const QUEUE: Option<&'static str> = Some("example-approval");
    type Output = String;
}

async fn pay(ctx: Context, payment: Payment) -> TaskResult<String> {
    let Payment { to, cents } = ctx
        .approval("pay")
        .title(format!("Pay {} cents to {}?", payment.cents, payment.to))
        .effect("the payment cannot be reversed")
        .expires_in(Duration::from_secs(60))
        .action("bank.pay", payment)
        .await?
        .approved()?;
    Ok(format!("{to} has {cents} cents"))
}

/// Reads the open request and approves it, as `countersign approvals approve` does.
async fn approve_payment(client: &Client) -> Result<(), Error> {
    loop {
        for record in client.pending_approvals(100).await?.requests {
            if record.request.action.name == "bank.pay" {
                println!("{}", record.request.title);
                println!("{}", client.decide(&record.approve("ana")).await?);
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let config = Config::load()?;
    let client = Client::connect(&config).await?;
    let worker =
        Worker::new(&Client::connect(&config).await?).queue("example-approval").handle(pay);
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));

    let receipt = client.enqueue(Payment { to: "Bob".into(), cents: 500 }).await?;
    approve_payment(&client).await?;
    println!("{}", receipt.result_within(Duration::from_secs(30)).await?);

    drop(stop);
    let _ = worker.await;
    client.close().await;
    Ok(())
}
