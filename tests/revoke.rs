//! Revoked tasks, and retries that end by their deadline.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{
    Client, Config, Context, Handle, Policy, Retry, Revoke, Task, TaskError, TaskId, TaskResult,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::{Running, TIMEOUT, queue_name, servers};
use tokio::sync::Notify;

#[derive(Clone, Serialize, Deserialize)]
struct Work {
    n: u32,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    type Output = u32;
}

/// A handler that counts its runs.
fn counting(runs: &Arc<AtomicUsize>) -> impl Fn(Context, Work) -> Ready<TaskResult<u32>> + use<> {
    let runs = Arc::clone(runs);
    move |_, Work { n }| {
        runs.fetch_add(1, Ordering::SeqCst);
        ready(Ok(n))
    }
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
    let count = counting(&runs);
    let running = Running::start(|worker| worker.queue(&queue).handle(count)).await;
    let error = revoked.result_within(TIMEOUT).await.unwrap_err();
    assert!(error.is_revoked(), "{error}");
    assert_eq!(other.result_within(TIMEOUT).await.unwrap(), 2);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    running.drain().await;
    client.close().await;
}

/// Broadcasts 5,000 revocations one by one, as a loop of Celery's `app.control.revoke` does, and one of
/// 60,000 ids. A worker that starts afterwards runs none of these tasks.
#[tokio::test(flavor = "multi_thread")]
async fn no_revocation_of_a_burst_is_dropped() {
    const BURST: usize = 5_000;
    let listening = Running::start(|worker| worker.handle(echo)).await;
    let queue = queue_name();
    let mut handles = Vec::new();
    for n in 0..200 {
        handles.push(listening.client.enqueue(Work { n }).queue(&queue).await.unwrap());
    }
    let padding = |count: usize| (0..count).map(|_| TaskId::random().to_string());
    let (single, listed) = handles.split_at(100);
    let ids = |handles: &[Handle<u32>]| handles.iter().map(|it| it.id().to_string()).collect();
    let (single, listed): (Vec<String>, Vec<String>) = (ids(single), ids(listed));
    let mut one_by_one: Vec<String> = single.into_iter().chain(padding(BURST - 100)).collect();
    one_by_one.sort();
    let list: Vec<String> = listed.into_iter().chain(padding(59_900)).collect();
    let revoke = |ids: Value| json!({"method": "revoke", "arguments": {"task_id": ids}});
    let url = servers().broker_url;
    let broker = lapin::Connection::connect(&url, Default::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let requests = one_by_one.iter().map(|id| revoke(json!(id))).chain([revoke(json!(list))]);
    for request in requests {
        let (body, properties) = (request.to_string(), Default::default());
        let (exchange, key) = ("celery.pidbox".into(), "".into());
        let options = Default::default();
        let sent = channel.basic_publish(exchange, key, options, body.as_bytes(), properties);
        drop(sent.await.unwrap());
    }
    let redis = redis::Client::open(servers().store_url).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let stored = async {
        // The mailbox is read in order: the list is its last request.
        let last = list.last().unwrap();
        loop {
            let mut score = redis::cmd("ZSCORE");
            let score = score.arg("cs:revoked").arg(last).query_async(&mut redis).await;
            if score.unwrap_or(None::<f64>).is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, stored).await.unwrap();
    broker.close(200, "".into()).await.unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let count = counting(&runs);
    let running = Running::start(|worker| worker.queue(&queue).handle(count)).await;
    for handle in handles {
        let error = handle.result_within(TIMEOUT).await.unwrap_err();
        assert!(error.is_revoked(), "{error}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    running.drain().await;
    listening.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_running_task_is_cancelled_and_its_result_is_discarded() {
    let (begun, cancelled) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (begins, counted) = (Arc::clone(&begun), Arc::clone(&cancelled));
    let cancellable = move |ctx: Context, Work { n }: Work| {
        let (begins, counted) = (Arc::clone(&begins), Arc::clone(&counted));
        async move {
            begins.notify_one();
            ctx.cancelled().await;
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(n)
        }
    };
    let running = Running::start(|worker| worker.handle(cancellable)).await;
    let handle = running.client.enqueue(Work { n: 1 }).queue(&running.queue).await.unwrap();
    begun.notified().await;
    running.client.revoke(&[handle.id().clone()], Revoke::Terminate).await.unwrap();
    let error = handle.result_within(TIMEOUT).await.unwrap_err();
    assert!(error.is_revoked() && error.to_string().contains("terminated"), "{error}");
    assert_eq!(cancelled.load(Ordering::SeqCst), 1);
    assert!(running.drain().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_that_does_not_listen_is_dropped() {
    let begun = Arc::new(Notify::new());
    let begins = Arc::clone(&begun);
    let stuck = move |_: Context, _: Work| {
        begins.notify_one();
        std::future::pending::<TaskResult<u32>>()
    };
    let running = Running::start(|worker| worker.handle(stuck)).await;
    let handle = running.client.enqueue(Work { n: 1 }).queue(&running.queue).await.unwrap();
    begun.notified().await;
    running.client.revoke(&[handle.id().clone()], Revoke::Terminate).await.unwrap();
    assert!(handle.result_within(TIMEOUT).await.unwrap_err().is_revoked());
    assert!(running.drain().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_does_not_change_an_ended_task() {
    let running = Running::start(|worker| worker.handle(echo)).await;
    let handle = running.client.enqueue(Work { n: 7 }).queue(&running.queue).await.unwrap();
    let id = handle.id().clone();
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 7);
    running.client.revoke(std::slice::from_ref(&id), Revoke::Terminate).await.unwrap();
    assert_eq!(running.call(Work { n: 8 }).await.unwrap(), 8);
    let again = running.client.handle::<u32>(id);
    assert_eq!(again.result_within(TIMEOUT).await.unwrap(), 7);
    running.drain().await;
}

/// Of attempts 0.4 s apart, at most three begin within 1 s of the first one.
#[tokio::test(flavor = "multi_thread")]
async fn no_attempt_starts_after_max_elapsed() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let fail = move |_: Context, _: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Err::<u32, _>(TaskError::retry_after(Duration::from_millis(400), "not yet")) }
    };
    let retry = Retry::fixed(Duration::ZERO).attempts(100).max_elapsed(Duration::from_secs(1));
    let policy = Policy { retry, ..Policy::default() };
    let running = Running::start(|worker| worker.handle_with_policy(fail, policy)).await;
    let error = running.call(Work { n: 1 }).await.unwrap_err();
    assert_eq!(error.failure().unwrap().message(), "not yet");
    let runs = runs.load(Ordering::SeqCst);
    assert!((2..=3).contains(&runs), "{runs} attempts");
    running.drain().await;
}
