//! A worker and an approver that abort at a failpoint.

use std::time::Duration;

use countersign::{
    ApprovalId, Client, Config, Context, Policy, Retry, Task, TaskError, TaskResult, Worker,
};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use crate::{TIMEOUT, servers};

/// The environment variable that names the failpoint at which the process aborts.
pub const FAILPOINT: &str = "COUNTERSIGN_TEST_FAULT";
/// The environment variable that makes the inline wait for a decision long.
pub const HOLD: &str = "COUNTERSIGN_TEST_HOLD";
/// With a prefetch of 1, the second message of a channel arrives after the ack of the first one.
pub const ACKED: &str = "suspended message acked";

/// A task with an approval between two steps.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pay {
    /// The Redis list in which its effects are counted.
    pub list: String,
    /// The time until the deadline of the approval.
    pub seconds: u64,
    /// Whether the first run after the decision fails.
    pub fails_once: bool,
}

impl Task for Pay {
    const NAME: &'static str = "test.pay";
    type Output = String;
}

async fn pay(ctx: Context, Pay { list, seconds, fails_once }: Pay) -> TaskResult<String> {
    ctx.step("reserve", || effect(&list, "reserved")).await?;
    if is_long_run() {
        std::future::pending::<()>().await;
    }
    let request = ctx.approval("pay").title("Pay?").expires_in(Duration::from_secs(seconds));
    let is_approved = request.await?.is_approved();
    effect(&list, "resumed").await?;
    if fails_once && ctx.attempt() == 1 {
        return Err(TaskError::retry_after(Duration::ZERO, "not yet"));
    }
    ctx.step("capture", || effect(&list, "captured")).await?;
    Ok(if is_approved { "approved" } else { "expired" }.into())
}

/// Whether the task has to continue without its message; if so, it does not end before that.
fn is_long_run() -> bool {
    std::env::var(FAILPOINT).is_ok_and(|failpoint| failpoint.starts_with("long"))
}

async fn effect(list: &str, what: &str) -> TaskResult<()> {
    let redis = redis::Client::open(servers().store_url)?;
    Ok(redis.get_multiplexed_async_connection().await?.rpush(list, what).await?)
}

/// Does nothing, except at one failpoint, where it aborts the process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Pass {}

impl Task for Pass {
    const NAME: &'static str = "test.pass";
    type Output = ();
}

async fn pass(_: Context, _: Pass) -> TaskResult<()> {
    if std::env::var(FAILPOINT).is_ok_and(|failpoint| failpoint == ACKED) {
        std::process::abort();
    }
    Ok(())
}

/// Adds the handlers. One message of a queue is prefetched: the next one arrives when it is settled.
pub fn worker(worker: Worker) -> Worker {
    let retry = Retry::exponential(Duration::from_millis(10)).attempts(3);
    let worker = worker.handle_with_policy(pay, Policy { retry, ..Policy::default() });
    worker.handle(pass).prefetch(1)
}

/// Returns the settings of a worker or a decider with a Redis of its own.
#[must_use]
pub fn config(store_url: &str) -> Config {
    let mut config = Config::new(&servers().broker_url, store_url).unwrap();
    config.lease = Duration::from_secs(5);
    config.hold = if std::env::var(HOLD).is_ok() { TIMEOUT } else { Duration::ZERO };
    if is_long_run() {
        // The worker holds a message for at most two seconds, and acks it early after one.
        config.consumer_timeout = Duration::from_secs(3);
    }
    config
}

pub(super) async fn run(queue: &str, store_url: &str) {
    let client = Client::connect(&config(store_url)).await.unwrap();
    let worker = worker(Worker::new(&client).queue(queue));
    worker.run(std::future::pending()).await.unwrap();
}

pub(super) async fn approve(id: &str, store_url: &str) {
    let client = Client::connect(&config(store_url)).await.unwrap();
    crate::approve(&client, &ApprovalId::parse(id).unwrap()).await;
}
