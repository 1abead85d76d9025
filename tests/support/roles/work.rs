//! Workers whose handler aborts the process or blocks its thread.

use std::time::Duration;

use countersign::{Context, Task, Worker};
use serde::{Deserialize, Serialize};

/// The number with which the handler aborts the process.
pub const POISON: u32 = 13;

/// A task that returns its number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    pub n: u32,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    type Output = u32;
}

pub(super) async fn run_aborting(queue: &str) {
    let client = super::client().await;
    let aborting = |_: Context, Work { n }: Work| async move {
        if n == POISON {
            std::process::abort();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(n)
    };
    let worker = Worker::new(&client).queue(queue).concurrency(4).prefetch(8);
    worker.handle(aborting).run(std::future::pending()).await.unwrap();
}

/// The handler blocks its thread for `n` milliseconds. The worker logs to standard error.
pub(super) async fn run_blocking(queue: &str) {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let client = super::client().await;
    let blocking = |_: Context, Work { n }: Work| async move {
        std::thread::sleep(Duration::from_millis(n.into()));
        Ok(n)
    };
    let worker = Worker::new(&client).queue(queue);
    worker.handle(blocking).run(std::future::pending()).await.unwrap();
}
