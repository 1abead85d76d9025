//! A service that is no task asks a person.
//!
//! `cargo run --example outside_approval`, with RabbitMQ and Redis running.

use std::time::Duration;

use countersign::approval::Risk;
use countersign::{Client, Config, Error, Question};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::connect(&Config::load()?).await?;
    let question = Question { risk: Risk::High, ..Question::new("Deploy version 7?") };
    let requested = client.request_approval(question).await?;

    let nobody = requested.wait(Duration::from_millis(100)).await?;
    println!("{}: {}", nobody.status, nobody.approved);

    let asked = client.approval(requested.id()).await?;
    client.decide(&asked.reject("ana", "not on a Friday")).await?;
    let resolution = requested.wait(Duration::from_secs(30)).await?;
    println!("{}: {}", resolution.status, resolution.reason.unwrap_or_default());
    client.close().await;
    Ok(())
}
