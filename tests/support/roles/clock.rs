//! A worker whose clock may be wrong.

use std::time::Duration;

use countersign::{
    Client, Config, Context, Policy, Retry, Task, TaskError, TaskResult, Verdict, Worker,
};
use serde::{Deserialize, Serialize};

use crate::servers;

/// The environment variable with the error of the worker's clock in seconds.
pub const CLOCK: &str = "COUNTERSIGN_TEST_CLOCK";
const RETRY_DELAY: Duration = Duration::from_secs(2);

/// A task that waits for a decision, and returns its verdict.
#[derive(Debug, Serialize, Deserialize)]
pub struct NeedsApproval {
    /// The time until the deadline of the approval.
    pub seconds: u64,
    /// Whether the first run after the decision fails.
    pub fails_once: bool,
}

impl Task for NeedsApproval {
    const NAME: &'static str = "test.ask";
    type Output = String;
}

async fn needs_approval(
    ctx: Context,
    NeedsApproval { seconds, fails_once }: NeedsApproval,
) -> TaskResult<String> {
    let decided =
        ctx.approval("now").title("Now?").expires_in(Duration::from_secs(seconds)).await?;
    if fails_once && ctx.attempt() == 1 {
        return Err(TaskError::retry_after(RETRY_DELAY, "not yet"));
    }
    Ok(match decided.verdict {
        Verdict::Approved { .. } => "approved",
        Verdict::Expired => "expired",
        _ => "otherwise",
    }
    .into())
}

/// Adds the handler.
pub fn worker(worker: Worker) -> Worker {
    let retry = Retry::exponential(Duration::from_millis(10)).attempts(3);
    worker.handle_with_policy(needs_approval, Policy { retry, ..Policy::default() })
}

/// Returns the settings of the worker and of the test.
#[must_use]
pub fn config() -> Config {
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    config.hold = Duration::ZERO;
    config.lease = Duration::from_secs(3);
    config
}

pub(super) async fn run(queue: &str) {
    let client = Client::connect(&config()).await.unwrap();
    worker(Worker::new(&client).queue(queue)).run(std::future::pending()).await.unwrap();
}
