//! A service outside a task requests an approval.
//!
//! `cargo run --example outside_approval`, with RabbitMQ and Redis running.

use std::time::Duration;

use countersign::approval::Risk;
use countersign::{ApprovalRequest, Client, Config, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::connect(&Config::load()?).await?;
    let request = ApprovalRequest { risk: Risk::High, ..ApprovalRequest::new("Deploy version 7?") };
    let handle = client.request_approval(request).await?;

    let undecided = handle.wait(Duration::from_millis(100)).await?;
    println!("{}: {}", undecided.status, undecided.approved);

    let record = client.approval(handle.id()).await?;
    client.decide(&record.reject("ana", "not on a Friday")).await?;
    let resolution = handle.wait(Duration::from_secs(30)).await?;
    println!("{}: {}", resolution.status, resolution.reason.unwrap_or_default());
    client.close().await;
    Ok(())
}
