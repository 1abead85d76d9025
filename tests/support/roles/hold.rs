//! A consumer that holds a message until it is killed.

use countersign::Config;
use countersign::backend::{Queue, connect};

/// The line that it prints when it has received the message.
pub const HOLDS: &str = "it holds a message";

pub(super) async fn run(broker_url: &str, store_url: &str, queue: &str) {
    let backends = connect(&Config::new(broker_url, store_url).unwrap()).unwrap();
    let _held = backends.broker.consume(&Queue::new(queue), 1).next().await.unwrap();
    println!("{HOLDS}");
    std::future::pending::<()>().await;
}
