//! A resumed task is its worker's for as long as the worker renews its claim, and no longer.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{ApprovalId, Config, Context, Handle, Policy, Task, TaskResult, Worker};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use support::{Running, approve, servers};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Deploy {}

impl Task for Deploy {
    const NAME: &'static str = "test.deploy";
    type Output = usize;
}

/// What a run does once its question is decided.
struct Runs {
    worker: Running,
    redis: MultiplexedConnection,
    handle: Handle<usize>,
    /// Says `begun` and `dropped`.
    said: mpsc::UnboundedReceiver<&'static str>,
    go: Arc<Notify>,
}

struct Said(mpsc::UnboundedSender<&'static str>);

impl Drop for Said {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

impl Runs {
    /// A task that was parked, was approved, and runs until it is told to go.
    async fn begin() -> Self {
        let (says, said) = mpsc::unbounded_channel();
        let (go, count) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::clone(&go);
        let deploy = move |ctx: Context, _: Deploy| {
            let (says, gate, count) = (says.clone(), Arc::clone(&gate), Arc::clone(&count));
            async move {
                ctx.approval("deploy").ask("Deploy?").await?.approved()?;
                count.fetch_add(1, Ordering::SeqCst);
                let _ = says.send("begun");
                let said = Said(says);
                gate.notified().await;
                drop(said);
                TaskResult::Ok(count.load(Ordering::SeqCst))
            }
        };
        let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
        (config.hold, config.lease) = (Duration::ZERO, Duration::from_secs(1));
        let build = |worker: Worker| worker.handle(deploy, Policy::default());
        let worker = Running::start_with(&config, build).await;
        let handle = worker.client.enqueue(Deploy {}).queue(&worker.queue).await.unwrap();
        let redis = redis::Client::open(servers().store_url).unwrap();
        let redis = redis.get_multiplexed_async_connection().await.unwrap();
        let mut this = Self { worker, redis, handle, said, go };
        this.approve().await;
        assert_eq!(this.says().await, "begun");
        this
    }

    async fn approve(&self) {
        let id = ApprovalId::of(self.handle.id(), "deploy", 0);
        approve(&self.worker.client, &id).await;
    }

    async fn says(&mut self) -> &'static str {
        timeout(PATIENCE, self.said.recv()).await.unwrap().unwrap()
    }

    /// Until when the claim holds.
    async fn until(&mut self) -> i64 {
        let key = format!("cs:park:{{cs}}:{}", self.handle.id());
        redis::cmd("HGET").arg(key).arg("until").query_async(&mut self.redis).await.unwrap()
    }

    /// Waits until the claim holds for longer than it did.
    async fn renewed(&mut self) {
        let before = self.until().await;
        let renewed = async {
            while self.until().await <= before {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, renewed).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_renewed_for_as_long_as_the_task_runs() {
    let mut runs = Runs::begin().await;
    // By the fourth, the lease that the run began with is over.
    for _ in 0..4 {
        runs.renewed().await;
    }
    runs.go.notify_one();
    assert_eq!(runs.says().await, "dropped");
    assert_eq!(runs.handle.result_within(PATIENCE).await.unwrap(), 1, "it ran once");
    runs.worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_claim_is_anothers_ends_and_runs_again_when_that_one_is_silent() {
    let mut runs = Runs::begin().await;
    let key = format!("cs:park:{{cs}}:{}", runs.handle.id());
    let until = runs.until().await + 1000;
    let mut take = redis::cmd("HSET");
    take.arg(key).arg("holder").arg("another").arg("until").arg(until);
    let _: () = take.query_async(&mut runs.redis).await.unwrap();
    assert_eq!(runs.says().await, "dropped");
    assert_eq!(runs.says().await, "begun");
    runs.go.notify_one();
    assert_eq!(runs.handle.result_within(PATIENCE).await.unwrap(), 2);
    runs.worker.drain().await;
}
