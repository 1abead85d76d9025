//! The test kit for handlers, used as its users use it.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use countersign::testing::{Pool, QUEUE};
use countersign::{Client, Context, ContextWith, Policy, Retry, Task, TaskError, TaskResult};
use futures_util::TryStreamExt;
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

    fn policy() -> Policy {
        Policy { retry: Retry::exponential(HOUR).attempts(5), ..Policy::default() }
    }
}

/// Sends an invoice, sleeps for two hours, and enqueues a reminder; the first two attempts fail.
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
    let pool = Pool::start(|worker| {
        let client = worker.client().clone();
        worker.handle(move |ctx, task| invoice(ctx, task, client.clone()))
    });
    pool.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn simulated_time_passes_at_once_and_the_run_is_reported() {
    let (pool, begun) = (pool().await, Instant::now());
    let run = pool.run(Invoice { number: 21 }).await;
    assert_eq!(run.result.unwrap(), 3, "the third attempt");
    assert!(begun.elapsed() >= 4 * HOUR, "by the pool's clock");
    assert_eq!(run.steps, ["for a while", "send"]);
    let progress: Vec<_> = run.entries.iter().map(|entry| &entry.value).collect();
    assert_eq!(progress, [&json!("sent as 42")]);
    assert!(run.requests.is_empty());

    let enqueued = pool.enqueued("mail").await.unwrap();
    assert_eq!(enqueued.len(), 1);
    assert_eq!(enqueued[0].task::<Remind>().unwrap().whom, "ana");
    assert!(enqueued[0].task::<Invoice>().is_err(), "it is a task of another type");
    assert!(pool.enqueued("mail").await.unwrap().is_empty(), "the first call removed them");
    assert!(pool.drain().await.unwrap().is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_task_without_a_handler_fails_as_in_production() {
    let pool = pool().await;
    let failed = pool.run(Remind { whom: "ben".into() }).await.result.unwrap_err();
    assert_eq!(failed.failure().unwrap().exc_type, "NotRegistered");
}

#[tokio::test(start_paused = true)]
async fn a_handle_can_be_awaited_and_the_entries_of_its_task_are_a_stream() {
    let pool = pool().await;
    let task = pool.client().enqueue(Invoice { number: 21 }).queue(QUEUE);
    let handle = task.await.unwrap();
    let follow = pool.client().follow(handle.id());
    let values = follow.map_ok(|entry| entry.value).try_collect::<Vec<_>>();
    assert_eq!(values.await.unwrap(), [json!("sent as 42")]);

    // The stream ends once, and a stream that has begun can be begun again from another entry.
    let mut follow = pool.client().follow(handle.id());
    assert_eq!(follow.next().await.unwrap().unwrap().number, 1);
    assert!(follow.next().await.is_none() && follow.next().await.is_none());
    assert_eq!(follow.from(1).next().await.unwrap().unwrap().number, 1);
    assert_eq!(handle.await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_registration_overrides_the_policy_of_the_task_type() {
    let pool = Pool::start(|worker| {
        let client = worker.client().clone();
        let handler = move |ctx, task| invoice(ctx, task, client.clone());
        worker.handle_with_policy(handler, Policy::default())
    });
    let failed = pool.await.unwrap().run(Invoice { number: 21 }).await.result.unwrap_err();
    assert_eq!(failed.failure().unwrap().message(), "no stamps", "at the first attempt");
}

/// The state of a worker: the stock of each article.
struct Stock(Mutex<HashMap<String, u32>>);

#[derive(Serialize, Deserialize)]
struct Reserve {
    article: String,
}

impl Task for Reserve {
    const NAME: &'static str = "shop.reserve";
    type Output = u32;
}

/// Takes one piece from the stock, and returns the rest.
async fn reserve(ctx: ContextWith<Stock>, Reserve { article }: Reserve) -> TaskResult<u32> {
    let mut stock = ctx.state().0.lock().unwrap();
    let left = stock.get_mut(&article).ok_or("no such article")?;
    *left = left.checked_sub(1).ok_or("sold out")?;
    Ok(*left)
}

async fn greet(ctx: Context, Remind { whom }: Remind) -> TaskResult<()> {
    assert_eq!((whom.as_str(), ctx.attempt()), ("ana", 1));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn handlers_share_the_state_of_their_worker_and_handlers_without_state_are_unchanged() {
    let stock = Stock(Mutex::new(HashMap::from([("lamp".into(), 3)])));
    let pool = Pool::start(|worker| {
        let worker = worker.handle(greet).with_state(stock);
        worker.handle(reserve).handle_blocking(|ctx: ContextWith<Stock>, _: Invoice| {
            Ok(ctx.state().0.lock().unwrap()["lamp"])
        })
    });
    let pool = pool.await.unwrap();
    for left in [2, 1] {
        assert_eq!(pool.run(Reserve { article: "lamp".into() }).await.result.unwrap(), left);
    }
    assert_eq!(pool.run(Invoice { number: 1 }).await.result.unwrap(), 1, "blocking handlers too");
    pool.run(Remind { whom: "ana".into() }).await.result.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failure_has_a_traceback_with_the_location_of_its_panic_or_error() {
    let pool = Pool::start(|worker| {
        let blocking =
            |_: Context, task: Reserve| -> TaskResult<u32> { panic!("no {}", task.article) };
        let fatal = |_: Context, _: Invoice| async { Err(TaskError::fatal("no number")) };
        let panicking = |_: Context, task: Remind| async move { panic!("no {}", task.whom) };
        worker.handle(panicking).handle_blocking(blocking).handle(fatal)
    });
    let pool = pool.await.unwrap();
    let panicked = pool.run(Remind { whom: "ana".into() }).await.result.unwrap_err();
    let blocked = pool.run(Reserve { article: "lamp".into() }).await.result.unwrap_err();
    let failed = pool.run(Invoice { number: 1 }).await.result.unwrap_err();
    let failures = [
        (panicked, "HandlerPanicked: no ana"),
        (blocked, "HandlerPanicked: no lamp"),
        (failed, "Exception: no number"),
    ];
    for (error, first) in failures {
        let traceback = error.failure().unwrap().traceback.clone().unwrap();
        let lines: Vec<_> = traceback.lines().collect();
        assert_eq!(lines[0], first);
        assert!(lines[1].starts_with("  at tests/testing.rs:"), "{traceback}");
    }
    let unknown = pool.client().enqueue_named("no.such", countersign::Arguments::default());
    let error = unknown.queue(QUEUE).await.unwrap().await.unwrap_err();
    assert_eq!(error.failure().unwrap().traceback.as_deref(), Some("NotRegistered: no.such"));
}
