//! Tasks that are taken back, and retries that come to an end in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{Client, Config, Context, Policy, Retry, Revoke, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};
use support::{Running, queue_name, servers};
use tokio::sync::Notify;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Serialize, Deserialize)]
struct Work {
    n: u32,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    type Output = u32;
}

async fn echo(_: Context, Work { n }: Work) -> TaskResult<u32> {
    Ok(n)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_revoked_before_any_worker_starts_never_runs() {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let revoked = client.enqueue(Work { n: 1 }).queue(&queue).await.unwrap();
    let other = client.enqueue(Work { n: 2 }).queue(&queue).await.unwrap();
    client.revoke(&[revoked.id().clone()], Revoke::IfQueued).await.unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let count = move |_: Context, Work { n }: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Ok(n) }
    };
    let running =
        Running::start(|worker| worker.queue(&queue).handle(count, Policy::default())).await;
    let error = revoked.result_within(PATIENCE).await.unwrap_err();
    assert!(error.is_revoked(), "{error}");
    assert_eq!(other.result_within(PATIENCE).await.unwrap(), 2);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    running.drain().await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_is_told_and_its_answer_counts_no_more() {
    let (begun, told) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (begins, hears) = (Arc::clone(&begun), Arc::clone(&told));
    let obedient = move |ctx: Context, Work { n }: Work| {
        let (begins, hears) = (Arc::clone(&begins), Arc::clone(&hears));
        async move {
            begins.notify_one();
            ctx.cancelled().await;
            hears.fetch_add(1, Ordering::SeqCst);
            Ok(n)
        }
    };
    let running = Running::start(|worker| worker.handle(obedient, Policy::default())).await;
    let handle = running.client.enqueue(Work { n: 1 }).queue(&running.queue).await.unwrap();
    begun.notified().await;
    running.client.revoke(&[handle.id().clone()], Revoke::EvenRunning).await.unwrap();
    let error = handle.result_within(PATIENCE).await.unwrap_err();
    assert!(error.is_revoked() && error.to_string().contains("terminated"), "{error}");
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert!(running.drain().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_that_does_not_listen_is_dropped() {
    let begun = Arc::new(Notify::new());
    let begins = Arc::clone(&begun);
    let deaf = move |_: Context, _: Work| {
        begins.notify_one();
        std::future::pending::<TaskResult<u32>>()
    };
    let running = Running::start(|worker| worker.handle(deaf, Policy::default())).await;
    let handle = running.client.enqueue(Work { n: 1 }).queue(&running.queue).await.unwrap();
    begun.notified().await;
    running.client.revoke(&[handle.id().clone()], Revoke::EvenRunning).await.unwrap();
    assert!(handle.result_within(PATIENCE).await.unwrap_err().is_revoked());
    assert!(running.drain().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_stays_as_it_is() {
    let running = Running::start(|worker| worker.handle(echo, Policy::default())).await;
    let handle = running.client.enqueue(Work { n: 7 }).queue(&running.queue).await.unwrap();
    let id = handle.id().clone();
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), 7);
    running.client.revoke(std::slice::from_ref(&id), Revoke::EvenRunning).await.unwrap();
    assert_eq!(running.call(Work { n: 8 }).await.unwrap(), 8);
    let again = running.client.handle::<u32>(id);
    assert_eq!(again.result_within(PATIENCE).await.unwrap(), 7);
    running.drain().await;
}

/// Of attempts with pauses of 0.4 s, at most three begin within 1 s of the first one.
#[tokio::test(flavor = "multi_thread")]
async fn no_attempt_begins_after_the_deadline_of_all() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let fail = move |_: Context, _: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Err::<u32, _>(TaskError::retry_after(Duration::from_millis(400), "not yet")) }
    };
    let retry = Retry::fixed(Duration::ZERO).attempts(100).within(Duration::from_secs(1));
    let policy = Policy { retry, ..Policy::default() };
    let running = Running::start(|worker| worker.handle(fail, policy)).await;
    let error = running.call(Work { n: 1 }).await.unwrap_err();
    assert_eq!(error.failure().unwrap().message(), "not yet");
    let runs = runs.load(Ordering::SeqCst);
    assert!((2..=3).contains(&runs), "{runs} attempts");
    running.drain().await;
}
