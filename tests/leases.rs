//! A worker owns a resumed task only as long as it renews its claim.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{ApprovalId, Config, Context, Handle, Task, TaskResult, Worker};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use support::{Running, TIMEOUT, approve, servers};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

#[derive(Serialize, Deserialize)]
struct Deploy {}

impl Task for Deploy {
    const NAME: &'static str = "test.deploy";
    type Output = usize;
}

/// Controls and observes the runs of one task after its approval.
struct Runs {
    worker: Running,
    redis: MultiplexedConnection,
    handle: Handle<usize>,
    /// Receives `begun` and `dropped`.
    events: mpsc::UnboundedReceiver<&'static str>,
    go: Arc<Notify>,
}

struct SendOnDrop(mpsc::UnboundedSender<&'static str>);

impl Drop for SendOnDrop {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

impl Runs {
    /// Starts a task that was suspended and approved, and that runs until the test notifies it.
    async fn begin() -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let (go, count) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let start = Arc::clone(&go);
        let deploy = move |ctx: Context, _: Deploy| {
            let (sender, start, count) = (sender.clone(), Arc::clone(&start), Arc::clone(&count));
            async move {
                ctx.approval("deploy").title("Deploy?").await?.approved()?;
                count.fetch_add(1, Ordering::SeqCst);
                let _ = sender.send("begun");
                let on_drop = SendOnDrop(sender);
                start.notified().await;
                drop(on_drop);
                TaskResult::Ok(count.load(Ordering::SeqCst))
            }
        };
        let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
        (config.hold, config.lease) = (Duration::ZERO, Duration::from_secs(1));
        let build = |worker: Worker| worker.handle(deploy);
        let worker = Running::start_with(&config, build).await;
        let handle = worker.client.enqueue(Deploy {}).queue(&worker.queue).await.unwrap();
        let redis = redis::Client::open(servers().store_url).unwrap();
        let redis = redis.get_multiplexed_async_connection().await.unwrap();
        let mut this = Self { worker, redis, handle, events, go };
        this.approve().await;
        assert_eq!(this.next_event().await, "begun");
        this
    }

    async fn approve(&self) {
        let id = ApprovalId::of(self.handle.id(), "deploy", 0);
        approve(&self.worker.client, &id).await;
    }

    async fn next_event(&mut self) -> &'static str {
        timeout(TIMEOUT, self.events.recv()).await.unwrap().unwrap()
    }

    /// Returns the time at which the claim ends.
    async fn until(&mut self) -> i64 {
        let key = format!("cs:park:{{cs}}:{}", self.handle.id());
        redis::cmd("HGET").arg(key).arg("until").query_async(&mut self.redis).await.unwrap()
    }

    /// Waits until the claim is extended.
    async fn renewed(&mut self) {
        let before = self.until().await;
        let renewed = async {
            while self.until().await <= before {
                tokio::task::yield_now().await;
            }
        };
        timeout(TIMEOUT, renewed).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_while_the_task_runs() {
    let mut runs = Runs::begin().await;
    // At the fourth renewal, the first lease of the run would have expired.
    for _ in 0..4 {
        runs.renewed().await;
    }
    runs.go.notify_one();
    assert_eq!(runs.next_event().await, "dropped");
    assert_eq!(runs.handle.result_within(TIMEOUT).await.unwrap(), 1, "the task ran once");
    runs.worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_loses_its_lease_ends_and_runs_again_when_that_lease_expires() {
    let mut runs = Runs::begin().await;
    let key = format!("cs:park:{{cs}}:{}", runs.handle.id());
    let until = runs.until().await + 1000;
    let mut take = redis::cmd("HSET");
    take.arg(key).arg("holder").arg("another").arg("until").arg(until);
    let _: () = take.query_async(&mut runs.redis).await.unwrap();
    assert_eq!(runs.next_event().await, "dropped");
    assert_eq!(runs.next_event().await, "begun");
    runs.go.notify_one();
    assert_eq!(runs.handle.result_within(TIMEOUT).await.unwrap(), 2);
    runs.worker.drain().await;
}
