//! A worker on a database file that records the effects of its tasks in another file.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use countersign::{Client, Config, Context, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};

use crate::TIMEOUT;

/// The environment variable with the path of the record of effects: a line for each run.
pub const EFFECTS: &str = "COUNTERSIGN_TEST_EFFECTS";
/// The queue of the tasks.
pub const QUEUE: &str = "stops";
const LONGEST_RUN: u64 = 50;

/// A task that appends its number to the record, and returns it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Note {
    pub number: usize,
}

impl Task for Note {
    const NAME: &'static str = "test.note";
    type Output = usize;
}

async fn note(_: Context, Note { number }: Note) -> TaskResult<usize> {
    let path = std::env::var(EFFECTS)?;
    let mut effects = std::fs::File::options().append(true).create(true).open(path)?;
    // A single write, so that lines of two processes do not mix.
    effects.write_all(format!("{number}\n").as_bytes())?;
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..LONGEST_RUN))).await;
    Ok(number)
}

/// Returns the settings of the worker and of the test.
#[must_use]
pub fn config(file: &Path) -> Config {
    let mut config = Config::embedded(&format!("sqlite:{}", file.display())).unwrap();
    config.publish_timeout = TIMEOUT;
    config
}

/// The worker holds more messages than it runs.
pub(super) async fn run(file: &Path) {
    let client = Client::connect(&config(file)).await.unwrap();
    let worker = Worker::new(&client).queue(QUEUE).concurrency(2).prefetch(16);
    worker.handle(note).run(std::future::pending()).await.unwrap();
}
