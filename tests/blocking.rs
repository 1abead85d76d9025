//! The client for synchronous programs: approvals, revocation, streams.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::mpsc;
use std::time::Duration;

use countersign::approval::{ApprovalRequest, DecideResult};
use countersign::{Config, Context, Revoke, Task, TaskResult, blocking};
use serde::{Deserialize, Serialize};
use serde_json::json;
use support::{Running, TIMEOUT, servers};

#[derive(Serialize, Deserialize)]
struct Count {
    to: u32,
}

impl Task for Count {
    const NAME: &'static str = "test.count";
    type Output = u32;
}

async fn count(ctx: Context, Count { to }: Count) -> TaskResult<u32> {
    for number in 1..=to {
        ctx.progress(&number).await?;
    }
    Ok(to)
}

fn connect() -> blocking::Client {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    blocking::Client::connect(&config).unwrap()
}

/// Runs `work`, which blocks, while a worker runs.
async fn in_a_thread(running: Running, work: impl FnOnce(&str) + Send + 'static) {
    let queue = running.queue.clone();
    tokio::task::spawn_blocking(move || work(&queue)).await.unwrap();
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_an_iterator() {
    let running = Running::start(|worker| worker.handle(count)).await;
    let work = |queue: &str| {
        let client = connect();
        let handle = client.send(client.enqueue(Count { to: 3 }).queue(queue)).unwrap();
        let values = |entry: Result<countersign::StreamEntry, _>| entry.unwrap().value;
        let entries: Vec<_> = client.follow(handle.id()).map(values).collect();
        assert_eq!(entries, [json!(1), json!(2), json!(3)]);
        let last: Vec<_> = client.follow(handle.id()).from(3).map(values).collect();
        assert_eq!(last, [json!(3)]);
        assert_eq!(client.result(handle).unwrap(), 3);
        client.close();
    };
    in_a_thread(running, work).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_is_terminated() {
    let (begun, begins) = mpsc::sync_channel(1);
    let running = Running::start(|worker| {
        worker.handle(move |_: Context, _: Count| {
            begun.send(()).unwrap();
            std::future::pending()
        })
    });
    let work = move |queue: &str| {
        let client = connect();
        let handle = client.send(client.enqueue(Count { to: 1 }).queue(queue)).unwrap();
        begins.recv_timeout(TIMEOUT).unwrap();
        client.revoke(&[handle.id().clone()], Revoke::Terminate).unwrap();
        let error = client.result_within(handle, TIMEOUT).unwrap_err();
        assert!(error.is_revoked(), "{error}");
        client.close();
    };
    in_a_thread(running.await, work).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_made_extended_decided_and_awaited() {
    let work = || {
        let client = connect();
        let requested = client.request_approval(ApprovalRequest::new("Deploy version 7?")).unwrap();
        assert_eq!(requested.wait(Duration::ZERO).unwrap().status, "timeout");
        let pending = client.pending_approvals(10_000).unwrap().requests;
        assert!(pending.iter().any(|request| request.request.id == *requested.id()));

        let day = Duration::from_secs(24 * 60 * 60);
        let before = client.approval(requested.id()).unwrap();
        client.extend_approval(requested.id(), "ana", 400 * day).unwrap_err();
        let extended = client.extend_approval(requested.id(), "ana", 300 * day).unwrap();
        let after = client.approval(requested.id()).unwrap();
        assert_ne!(before.status, after.status, "{extended:?}");

        let decided = client.decide(&after.approve("ana")).unwrap();
        assert!(matches!(decided, DecideResult::Applied), "{decided:?}");
        let again = client.requested_approval(requested.id());
        let resolution = again.wait(TIMEOUT).unwrap();
        assert!(resolution.approved && resolution.by.as_deref() == Some("ana"), "{resolution:?}");
        client.close();
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}
