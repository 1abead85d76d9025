//! `demo.retry(n, delay_s)`: fails `n` times, then returns the number of retries.

use std::time::Duration;

use countersign::{Context, Policy, Task, TaskError, TaskResult};
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

    fn policy() -> Policy {
        let retry = countersign::Retry::exponential(Duration::from_secs(1)).attempts(u32::MAX);
        Policy { retry, ..Policy::default() }
    }
}

pub(crate) async fn retry(ctx: Context, Retry { n, delay_s }: Retry) -> TaskResult<u32> {
    let retries = ctx.attempt() - 1;
    if retries >= n {
        return Ok(retries);
    }
    let delay = Duration::try_from_secs_f64(delay_s).map_err(|error| {
        TaskError::with_exception("builtins", "ValueError", error.to_string()).no_retry()
    })?;
    Err(TaskError::retry_after(delay, format!("retry {} of {n}", retries + 1)))
}
