//! The kit that users test their handlers with, as they use it.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::testing::Pool;
use countersign::{Client, Context, Policy, Retry, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(60 * 60);

#[derive(Serialize, Deserialize)]
struct Remind {
    whom: String,
}

impl Task for Remind {
    const NAME: &'static str = "mail.remind";
    const QUEUE: Option<&'static str> = Some("mail");
    type Output = ();
}

#[derive(Serialize, Deserialize)]
struct Invoice {
    number: u64,
}

impl Task for Invoice {
    const NAME: &'static str = "billing.invoice";
    type Output = u32;
}

/// Sends an invoice, waits for two hours, and has somebody reminded; the post is out of order twice.
async fn invoice(ctx: Context, Invoice { number }: Invoice, client: Client) -> TaskResult<u32> {
    if ctx.attempt() < 3 {
        return Err(TaskError::retry_after(HOUR, "no stamps"));
    }
    let sent = ctx.step("send", || async { TaskResult::Ok(number * 2) }).await?;
    ctx.progress(&format!("sent as {sent}")).await?;
    ctx.sleep("for a while", 2 * HOUR).await?;
    client.enqueue(Remind { whom: "ana".into() }).await?;
    Ok(ctx.attempt())
}

async fn pool() -> Pool {
    let retry = Retry::exponential(HOUR).attempts(5);
    let policy = Policy { retry, ..Policy::default() };
    let pool = Pool::start(|worker| {
        let client = worker.client().clone();
        worker.handle(move |ctx, task| invoice(ctx, task, client.clone()), policy)
    });
    pool.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn hours_and_two_retries_take_no_time_and_everything_is_there_to_be_looked_at() {
    let (pool, begun) = (pool().await, Instant::now());
    let ran = pool.run(Invoice { number: 21 }).await;
    assert_eq!(ran.result.unwrap(), 3, "the third attempt");
    assert!(begun.elapsed() >= 4 * HOUR, "by the pool's clock");
    assert_eq!(ran.steps, ["for a while", "send"]);
    let said: Vec<_> = ran.said.iter().map(|entry| &entry.value).collect();
    assert_eq!(said, [&json!("sent as 42")]);
    assert!(ran.asked.is_empty());

    let enqueued = pool.enqueued("mail").await.unwrap();
    assert_eq!(enqueued.len(), 1);
    assert_eq!(enqueued[0].task::<Remind>().unwrap().whom, "ana");
    assert!(enqueued[0].task::<Invoice>().is_err(), "it is another task");
    assert!(pool.enqueued("mail").await.unwrap().is_empty(), "they were taken out");
    assert!(pool.drain().await.unwrap().is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_nobody_has_fails_as_it_does_in_production() {
    let pool = pool().await;
    let failed = pool.run(Remind { whom: "ben".into() }).await.result.unwrap_err();
    assert_eq!(failed.failure().unwrap().exc_type, "NotRegistered");
}
