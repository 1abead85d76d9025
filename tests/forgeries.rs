//! Forged data in the broker or the store loses no task and hangs no task.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::approval::ApprovalRequest;
use countersign::protocol::Headers;
use countersign::{
    ApprovalId, Arguments, Client, Config, Context, Handle, Task, TaskResult, Verdict,
};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::{DemoWorker, Running, TIMEOUT, approve, queue_name, servers, wait_for_request};
use tokio::sync::Notify;
use tokio::time::timeout;

const DAY: u64 = 24 * 60 * 60;
const NEWER: &str = "a newer version of Countersign has suspended the task";

#[derive(Serialize, Deserialize)]
struct NeedsApproval {
    seconds: u64,
}

impl Task for NeedsApproval {
    const NAME: &'static str = "test.ask";
    type Output = String;
}

async fn needs_approval(
    ctx: Context,
    NeedsApproval { seconds }: NeedsApproval,
) -> TaskResult<String> {
    let decided =
        ctx.approval("now").title("Now?").expires_in(Duration::from_secs(seconds)).await?;
    Ok(match decided.verdict {
        Verdict::Approved { .. } => "approved",
        _ => "not approved",
    }
    .into())
}

/// A worker with one slot, so that anything that holds a slot forever makes the test fail.
async fn running() -> Running {
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    config.hold = Duration::ZERO;
    let build =
        |worker: countersign::Worker| worker.handle(needs_approval).concurrency(1).prefetch(1);
    Running::start_with(&config, build).await
}

async fn enqueue(running: &Running, seconds: u64) -> Handle<String> {
    let handle =
        running.client.enqueue(NeedsApproval { seconds }).queue(&running.queue).await.unwrap();
    wait_for_request(&running.client, &request_id(&handle, "now")).await;
    handle
}

fn request_id<O: DeserializeOwned>(handle: &Handle<O>, name: &str) -> ApprovalId {
    ApprovalId::of(handle.id(), name, 0)
}

async fn redis() -> MultiplexedConnection {
    let client = redis::Client::open(servers().store_url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

fn suspension_key<O: DeserializeOwned>(handle: &Handle<O>) -> String {
    format!("cs:park:{{cs}}:{}", handle.id())
}

/// Waits until the worker has processed all messages that are in the resume queue now.
async fn wait_until_processed(running: &Running) {
    let queue = format!("{}.countersign-resume", running.queue);
    let expired = running.client.enqueue(NeedsApproval { seconds: DAY }).queue(queue);
    let handle = expired.await.unwrap();
    wait_for_request(&running.client, &request_id(&handle, "now")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_suspend_header_does_not_exhaust_the_numbers_of_a_task() {
    let running = running().await;
    let handle = enqueue(&running, DAY).await;
    for forged in ["wake 9007199254740991", "original 9007199254740991", "wake 9", "original 12"] {
        let mut headers = Headers::new();
        headers.insert("x-countersign-ticket".into(), forged.into());
        let queue = format!("{}.countersign-resume", running.queue);
        let forged = running.client.enqueue(NeedsApproval { seconds: DAY }).queue(queue);
        forged.id(handle.id().as_str()).headers(headers).await.unwrap();
    }
    wait_until_processed(&running).await;
    approve(&running.client, &request_id(&handle, "now")).await;
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "approved");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_suspended_message_leaves_the_task_to_its_wake_message() {
    let running = running().await;
    let handle = enqueue(&running, 5).await;
    let _: () = redis().await.hset(suspension_key(&handle), "message", "no message").await.unwrap();
    approve(&running.client, &request_id(&handle, "now")).await;
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "approved");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_newer_version_is_an_error_with_advice() {
    let running = running().await;
    let handle = enqueue(&running, DAY).await;
    let id = request_id(&handle, "now");
    let key = format!("cs:ask:{{cs}}:{id}");
    let text: String = redis().await.hget(&key, "document").await.unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    document["v"] = json!(ApprovalRequest::VERSION + 1);
    let _: () = redis().await.hset(&key, "document", document.to_string()).await.unwrap();
    let error = running.client.approval(&id).await.unwrap_err().to_string();
    assert!(error.contains("newer Countersign (format 3)") && error.contains("upgrade"), "{error}");
    let _: () = redis().await.hset(&key, "document", text).await.unwrap();
    approve(&running.client, &id).await;
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "approved");
    running.drain().await;
}

/// Two tasks that an older worker must not touch, and one of its own, which shows that it continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_of_a_newer_version_is_postponed_and_logged_once() {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let options = ["-Q", &queue, "-c", "1", "--prefetch", "1"];
    let mut worker = DemoWorker::spawn(&options, &[("COUNTERSIGN_APPROVALS_HOLD", "0s")]);
    let enqueue = async |queue: &str| -> Handle<Value> {
        let refund = Arguments::of(&("o-1", 50_000)).unwrap();
        let handle = client.enqueue_named("demo.refund", refund).queue(queue).await.unwrap();
        wait_for_request(&client, &request_id(&handle, "over-limit")).await;
        handle
    };
    let newer = [enqueue(&queue).await, enqueue(&queue).await];
    for handle in &newer {
        let _: () = redis().await.hset(suspension_key(handle), "v", "2").await.unwrap();
        approve(&client, &request_id(handle, "over-limit")).await;
    }
    worker.wait_for_log(NEWER).await;
    enqueue(&format!("{queue}.countersign-resume")).await;
    for handle in newer {
        let holder: String = redis().await.hget(suspension_key(&handle), "holder").await.unwrap();
        assert_eq!(holder, "", "no worker claims it");
        let _: () = redis().await.hset(suspension_key(&handle), "v", "1").await.unwrap();
        let receipt: Value = handle.result_within(TIMEOUT).await.unwrap();
        assert!(receipt.as_str().unwrap().starts_with("refunded"), "{receipt}");
    }
    assert_eq!(worker.stderr().matches(NEWER).count(), 1);
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    client.close().await;
}

/// Notifies when it is dropped.
struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Another run has begun to suspend the same message and may die: the message is postponed, not acked.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_suspend_is_postponed_and_repeats_no_step() {
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    (config.hold, config.lease) = (Duration::ZERO, Duration::from_secs(1));
    let (steps, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, notify) = (Arc::clone(&steps), Arc::clone(&dropped));
    let reserve = move |ctx: Context, task: NeedsApproval| {
        let (counted, notify) = (Arc::clone(&counted), NotifyOnDrop(Arc::clone(&notify)));
        async move {
            let _notify = notify;
            let count = || async { TaskResult::Ok(counted.fetch_add(1, Ordering::SeqCst)) };
            ctx.step("reserve", count).await?;
            needs_approval(ctx, task).await
        }
    };
    let build = |worker: countersign::Worker| worker.handle(reserve);
    let running = Running::start_with(&config, build).await;
    let id = queue_name();
    let key = format!("cs:park:{{cs}}:{id}");
    let other = [("v", "1"), ("number", "0"), ("holder", "other"), ("until", "9007199254740991")];
    let _: () = redis().await.hset_multiple(&key, &other).await.unwrap();
    let handle =
        running.client.enqueue(NeedsApproval { seconds: DAY }).queue(&running.queue).id(&id).await;
    let handle = handle.unwrap();
    timeout(TIMEOUT, dropped.notified()).await.expect("the run tries to suspend");
    let held: [String; 2] = redis().await.hmget(&key, &["number", "holder"]).await.unwrap();
    assert_eq!(held, ["0", "other"]);
    // Simulates the death of the other run.
    let _: () = redis().await.hset(&key, "until", "0").await.unwrap();
    wait_for_request(&running.client, &request_id(&handle, "now")).await;
    approve(&running.client, &request_id(&handle, "now")).await;
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "approved");
    assert_eq!(steps.load(Ordering::SeqCst), 1);
    running.drain().await;
}
