//! `demo.sleep(seconds)`: waits, and returns the number of seconds.

use std::time::Duration;

use countersign::{Context, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(crate) struct Sleep {
    seconds: f64,
}

impl Task for Sleep {
    const NAME: &'static str = "demo.sleep";
    const QUEUE: Option<&'static str> = Some("demo");
    type Output = f64;
}

pub(crate) async fn sleep(_: Context, Sleep { seconds }: Sleep) -> TaskResult<f64> {
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| {
        TaskError::with_exception("builtins", "ValueError", error.to_string()).no_retry()
    })?;
    tokio::time::sleep(duration).await;
    Ok(seconds)
}
