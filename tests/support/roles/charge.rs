//! A worker that aborts before or after it records the step of its task.

use countersign::{Context, Task, TaskError, TaskResult, Worker};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use crate::servers;

/// The environment variable that names the point at which the worker aborts.
pub const CRASH: &str = "COUNTERSIGN_TEST_CRASH";
/// The values of [`CRASH`].
pub const BEFORE_THE_RECORD: &str = "before the record";
pub const AFTER_THE_RECORD: &str = "after the record";

/// A task with one step, which appends the task's id to a Redis list.
#[derive(Debug, Serialize, Deserialize)]
pub struct Capture {
    pub list: String,
}

impl Task for Capture {
    const NAME: &'static str = "test.capture";
    type Output = String;
}

pub async fn capture(ctx: Context, Capture { list }: Capture) -> TaskResult<String> {
    let crash = std::env::var(CRASH).unwrap_or_default();
    let id = ctx.id().to_string();
    let effect = || async {
        let redis = redis::Client::open(servers().store_url)?;
        let mut redis = redis.get_multiplexed_async_connection().await?;
        let _: usize = redis.rpush(&list, &id).await?;
        if crash == BEFORE_THE_RECORD {
            std::process::abort();
        }
        Ok::<_, TaskError>(format!("receipt of {id}"))
    };
    let receipt = ctx.step("capture", effect).await?;
    if crash == AFTER_THE_RECORD {
        std::process::abort();
    }
    Ok(receipt)
}

pub(super) async fn run(queue: &str) {
    let client = super::client().await;
    let worker = Worker::new(&client).queue(queue).handle(capture);
    worker.run(std::future::pending()).await.unwrap();
}
