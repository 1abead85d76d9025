//! What somebody else has put into the broker or the store: nothing is lost by it, nobody hangs.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::approval::Question;
use countersign::protocol::Headers;
use countersign::{
    ApprovalId, Arguments, Client, Config, Context, Handle, Policy, Task, TaskResult, Verdict,
};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::{DemoWorker, Running, approve, queue_name, servers, shown};
use tokio::sync::Notify;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const DAY: u64 = 24 * 60 * 60;
const NEWER: &str = "a newer Countersign has parked it";

#[derive(Serialize, Deserialize)]
struct Ask {
    seconds: u64,
}

impl Task for Ask {
    const NAME: &'static str = "test.ask";
    type Output = String;
}

async fn ask(ctx: Context, Ask { seconds }: Ask) -> TaskResult<String> {
    let asked = ctx.approval("now").ask("Now?").expires_in(Duration::from_secs(seconds)).await?;
    Ok(match asked.verdict {
        Verdict::Approved { .. } => "approved",
        _ => "not approved",
    }
    .into())
}

/// A worker with one slot: whatever holds it for good is seen.
async fn running() -> Running {
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    config.hold = Duration::ZERO;
    let build = |worker: countersign::Worker| {
        worker.handle(ask, Policy::default()).concurrency(1).prefetch(1)
    };
    Running::start_with(&config, build).await
}

async fn enqueue(running: &Running, seconds: u64) -> Handle<String> {
    let handle = running.client.enqueue(Ask { seconds }).queue(&running.queue).await.unwrap();
    shown(&running.client, &question(&handle, "now")).await;
    handle
}

fn question<O: DeserializeOwned>(handle: &Handle<O>, name: &str) -> ApprovalId {
    ApprovalId::of(handle.id(), name, 0)
}

async fn redis() -> MultiplexedConnection {
    let client = redis::Client::open(servers().store_url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

fn park<O: DeserializeOwned>(handle: &Handle<O>) -> String {
    format!("cs:park:{{cs}}:{}", handle.id())
}

/// Waits until all that is in the queue of resumed tasks by now was looked at.
async fn looked_at(running: &Running) {
    let queue = format!("{}.countersign-resume", running.queue);
    let expired = running.client.enqueue(Ask { seconds: DAY }).queue(queue);
    let handle = expired.await.unwrap();
    shown(&running.client, &question(&handle, "now")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_from_the_end_of_all_numbers_ends_no_tasks_numbers() {
    let running = running().await;
    let handle = enqueue(&running, DAY).await;
    for forged in ["wake 9007199254740991", "original 9007199254740991", "wake 9", "original 12"] {
        let mut headers = Headers::new();
        headers.insert("x-countersign-ticket".into(), forged.into());
        let queue = format!("{}.countersign-resume", running.queue);
        let forged = running.client.enqueue(Ask { seconds: DAY }).queue(queue);
        forged.id(handle.id().as_str()).headers(headers).await.unwrap();
    }
    looked_at(&running).await;
    approve(&running.client, &question(&handle, "now")).await;
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "approved");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_message_that_cannot_be_read_leaves_the_task_to_its_wake() {
    let running = running().await;
    let handle = enqueue(&running, 5).await;
    let _: () = redis().await.hset(park(&handle), "message", "no message").await.unwrap();
    approve(&running.client, &question(&handle, "now")).await;
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "approved");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_of_a_newer_version_says_what_to_do() {
    let running = running().await;
    let handle = enqueue(&running, DAY).await;
    let id = question(&handle, "now");
    let key = format!("cs:ask:{{cs}}:{id}");
    let text: String = redis().await.hget(&key, "document").await.unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    document["v"] = json!(Question::VERSION + 1);
    let _: () = redis().await.hset(&key, "document", document.to_string()).await.unwrap();
    let error = running.client.approval(&id).await.unwrap_err().to_string();
    assert!(error.contains("newer Countersign (format 3)") && error.contains("upgrade"), "{error}");
    let _: () = redis().await.hset(&key, "document", text).await.unwrap();
    approve(&running.client, &id).await;
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "approved");
    running.drain().await;
}

/// Two tasks that an older worker is to leave alone, and one of its own to show that it went on.
#[tokio::test(flavor = "multi_thread")]
async fn a_park_of_a_newer_version_is_put_off_and_that_is_said_once() {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let options = ["-Q", &queue, "-c", "1", "--prefetch", "1"];
    let mut worker = DemoWorker::spawn(&options, &[("COUNTERSIGN_APPROVALS_HOLD", "0s")]);
    let enqueue = async |queue: &str| -> Handle<Value> {
        let refund = Arguments::of(&("o-1", 50_000)).unwrap();
        let handle = client.enqueue_named("demo.refund", refund).queue(queue).await.unwrap();
        shown(&client, &question(&handle, "over-limit")).await;
        handle
    };
    let newer = [enqueue(&queue).await, enqueue(&queue).await];
    for handle in &newer {
        let _: () = redis().await.hset(park(handle), "v", "2").await.unwrap();
        approve(&client, &question(handle, "over-limit")).await;
    }
    worker.says(NEWER).await;
    enqueue(&format!("{queue}.countersign-resume")).await;
    for handle in newer {
        let holder: String = redis().await.hget(park(&handle), "holder").await.unwrap();
        assert_eq!(holder, "", "nobody claims it");
        let _: () = redis().await.hset(park(&handle), "v", "1").await.unwrap();
        let receipt: Value = handle.result_within(PATIENCE).await.unwrap();
        assert!(receipt.as_str().unwrap().starts_with("refunded"), "{receipt}");
    }
    assert_eq!(worker.stderr().matches(NEWER).count(), 1);
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    client.close().await;
}

/// Tells when it is dropped.
struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Whoever else has begun to park the same message may die: the message is put off, not acked.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_would_park_beside_another_is_put_off_and_repeats_no_step() {
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    (config.hold, config.lease) = (Duration::ZERO, Duration::from_secs(1));
    let (steps, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, told) = (Arc::clone(&steps), Arc::clone(&dropped));
    let reserve = move |ctx: Context, task: Ask| {
        let (counted, told) = (Arc::clone(&counted), Told(Arc::clone(&told)));
        async move {
            let _told = told;
            let count = || async { TaskResult::Ok(counted.fetch_add(1, Ordering::SeqCst)) };
            ctx.step("reserve", count).await?;
            ask(ctx, task).await
        }
    };
    let build = |worker: countersign::Worker| worker.handle(reserve, Policy::default());
    let running = Running::start_with(&config, build).await;
    let id = queue_name();
    let key = format!("cs:park:{{cs}}:{id}");
    let other = [("v", "1"), ("number", "0"), ("holder", "other"), ("until", "9007199254740991")];
    let _: () = redis().await.hset_multiple(&key, &other).await.unwrap();
    let handle = running.client.enqueue(Ask { seconds: DAY }).queue(&running.queue).id(&id).await;
    let handle = handle.unwrap();
    timeout(PATIENCE, dropped.notified()).await.expect("it would park");
    let held: [String; 2] = redis().await.hmget(&key, &["number", "holder"]).await.unwrap();
    assert_eq!(held, ["0", "other"]);
    // The other one has died.
    let _: () = redis().await.hset(&key, "until", "0").await.unwrap();
    shown(&running.client, &question(&handle, "now")).await;
    approve(&running.client, &question(&handle, "now")).await;
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "approved");
    assert_eq!(steps.load(Ordering::SeqCst), 1);
    running.drain().await;
}
