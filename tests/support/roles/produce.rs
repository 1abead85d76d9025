//! A producer that enqueues to a database file until it is killed.

use std::path::Path;

use countersign::{Arguments, Client, Config};

/// The queue of the tasks.
pub const QUEUE: &str = "embedded";

/// Prints a line with the id of each accepted task.
pub(super) async fn run(file: &Path) {
    let config = Config::embedded(&format!("sqlite:{}", file.display())).unwrap();
    let client = Client::connect(&config).await.unwrap();
    loop {
        let echo = client.enqueue_named("demo.echo", Arguments::of(&("hi",)).unwrap());
        let handle = echo.queue(QUEUE).await.unwrap();
        println!("accepted {}", handle.id());
    }
}
