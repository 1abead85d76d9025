//! `demo.retry(n, delay_s)`: fails `n` times, then answers how often it was tried again.

use std::time::Duration;

use countersign::{Context, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(crate) struct Retry {
    n: u32,
    delay_s: f64,
}

impl Task for Retry {
    const NAME: &'static str = "demo.retry";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = u32;
}

pub(crate) async fn retry(ctx: Context, Retry { n, delay_s }: Retry) -> TaskResult<u32> {
    let retries = ctx.attempt() - 1;
    if retries >= n {
        return Ok(retries);
    }
    let delay = Duration::try_from_secs_f64(delay_s)
        .map_err(|error| TaskError::raise("builtins", "ValueError", error.to_string()).never())?;
    Err(TaskError::retry_after(delay, format!("retry {} of {n}", retries + 1)))
}
