//! Enqueues two tasks of the demo worker, one typed and one by its name, and prints the results.
//!
//! `cargo run --example enqueue`, with a demo worker running.

use std::time::Duration;

use countersign::{Arguments, Client, Config, Error, Task};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Add {
    x: i64,
    y: i64,
}

impl Task for Add {
    const NAME: &'static str = "demo.add";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = i64;
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::connect(&Config::load()?).await?;
    let wait = Duration::from_secs(10);

    let sum = client.enqueue(Add { x: 2, y: 3 }).await?;
    println!("demo.add(2, 3) = {}", sum.result_within(wait).await?);

    let arguments = Arguments::of(&("from", "Rust"))?;
    let echo = client.enqueue_named("demo.echo", arguments).queue("demo").await?;
    println!("demo.echo = {}", echo.result_within(wait).await?);

    let failing = client.enqueue_named("demo.fail", Arguments::of(&("on purpose",))?).queue("demo");
    match failing.await?.result_within(wait).await {
        Err(error) => {
            println!("demo.fail: {}", error.failure().map_or(error.to_string(), |f| f.to_string()))
        }
        Ok(value) => println!("demo.fail returned {value}"),
    }
    client.close().await;
    Ok(())
}
