//! The effect of a suspension, which drops the handler, on each kind of handler.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use countersign::{
    ApprovalId, Client, Config, Context, Decided, Handle, Task, TaskError, TaskResult,
};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use support::{Running, TIMEOUT, approve, servers, wait_for_request};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60 * 60);

#[derive(Serialize, Deserialize)]
struct NeedsApproval {}

impl Task for NeedsApproval {
    const NAME: &'static str = "test.ask";
    type Output = u64;
}

/// Counts calls.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn increment(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Starts a worker that keeps a slot for this long after a suspension.
async fn running<F, Fut>(hold: Duration, handler: F) -> Running
where
    F: Fn(Context, NeedsApproval) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = TaskResult<u64>> + Send + 'static,
{
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    config.hold = hold;
    Running::start_with(&config, |worker| worker.handle(handler)).await
}

async fn enqueue(running: &Running) -> Handle<u64> {
    running.client.enqueue(NeedsApproval {}).queue(&running.queue).await.unwrap()
}

fn request_id(handle: &Handle<u64>, name: &str) -> ApprovalId {
    ApprovalId::of(handle.id(), name, 0)
}

/// Waits until the task is suspended under this number, and no worker runs it.
async fn wait_until_suspended(handle: &Handle<u64>, number: u64) {
    let client = redis::Client::open(servers().store_url).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let key = format!("cs:park:{{cs}}:{}", handle.id());
    let wait = async {
        loop {
            let fields = ["number", "holder"];
            let stored: (Option<u64>, Option<String>) = redis.hmget(&key, &fields).await.unwrap();
            if stored == (Some(number), Some(String::new())) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, wait).await.expect("the task is suspended");
}

async fn status(client: &Client, id: &ApprovalId) -> &'static str {
    client.approval(id).await.unwrap().status.as_str()
}

async fn result(handle: Handle<u64>) -> u64 {
    handle.result_within(TIMEOUT).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn approvals_under_join_all_are_one_suspension_and_each_decision_is_one_run() {
    let runs = Count::default();
    let counted = runs.clone();
    let all = move |ctx: Context, _: NeedsApproval| {
        counted.increment();
        async move {
            let approvals = ["a", "b", "c"].map(|name| ctx.approval(name).title(name));
            let decided: TaskResult<Vec<Decided>> =
                futures_util::future::join_all(approvals).await.into_iter().collect();
            Ok(decided?.iter().filter(|decided| decided.is_approved()).count() as u64)
        }
    };
    let running = running(Duration::ZERO, all).await;
    let handle = enqueue(&running).await;
    wait_until_suspended(&handle, 1).await;
    for name in ["a", "b", "c"] {
        assert_eq!(status(&running.client, &request_id(&handle, name)).await, "pending");
    }
    for (number, name) in [(2, "b"), (3, "a")] {
        approve(&running.client, &request_id(&handle, name)).await;
        wait_until_suspended(&handle, number).await;
    }
    approve(&running.client, &request_id(&handle, "c")).await;
    assert_eq!((result(handle).await, runs.get()), (3, 4));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_concurrent_with_an_approval_is_not_dropped() {
    let (done, inside, go) = (Count::default(), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (counted, entered, may_go) = (done.clone(), Arc::clone(&inside), Arc::clone(&go));
    let concurrent = move |ctx: Context, _: NeedsApproval| {
        let (done, entered, may_go) = (counted.clone(), Arc::clone(&entered), Arc::clone(&may_go));
        async move {
            let slow = || async {
                done.increment();
                entered.notify_one();
                may_go.notified().await;
                Ok::<_, TaskError>(7)
            };
            let (decided, held) =
                tokio::join!(ctx.approval("pay").title("Pay?"), ctx.step("hold", slow));
            decided?.approved()?;
            held
        }
    };
    let running = running(Duration::ZERO, concurrent).await;
    let handle = enqueue(&running).await;
    inside.notified().await;
    go.notify_one();
    approve(&running.client, &request_id(&handle, "pay")).await;
    assert_eq!((result(handle).await, done.get()), (7, 1));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_inside_a_step_fails_the_task_with_advice() {
    let inside = |ctx: Context, _: NeedsApproval| async move {
        let decided =
            ctx.step("pay", || async { ctx.approval("pay").title("Pay?").await?.approved() });
        decided.await?;
        Ok(1)
    };
    let running = running(Duration::ZERO, inside).await;
    let error = running.call(NeedsApproval {}).await.unwrap_err();
    assert!(error.to_string().contains("request it before the step"), "{error}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_within_the_inline_wait_wins_and_withdraws_the_request() {
    let timed = |ctx: Context, _: NeedsApproval| async move {
        let request = ctx.approval("first").title("At once?");
        tokio::select! {
            decided = request => Ok(u64::from(decided?.is_approved())),
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                // The second suspension withdraws the first request.
                ctx.approval("second").title("And later?").await?.approved()?;
                Ok(2)
            }
        }
    };
    // The decision on the second request has to arrive within it.
    let running = running(Duration::from_secs(30), timed).await;
    let handle = enqueue(&running).await;
    let (first, second) = (request_id(&handle, "first"), request_id(&handle, "second"));
    wait_for_request(&running.client, &second).await;
    assert_eq!(status(&running.client, &first).await, "withdrawn");
    approve(&running.client, &second).await;
    assert_eq!(result(handle).await, 2);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_beyond_the_inline_wait_restarts_with_each_run() {
    let runs = Count::default();
    let counted = runs.clone();
    let timed = move |ctx: Context, _: NeedsApproval| {
        counted.increment();
        async move {
            let decided = timeout(LONG, ctx.approval("pay").title("Pay?")).await;
            Ok(u64::from(decided??.is_approved()))
        }
    };
    let running = running(Duration::ZERO, timed).await;
    let handle = enqueue(&running).await;
    wait_until_suspended(&handle, 1).await;
    approve(&running.client, &request_id(&handle, "pay")).await;
    assert_eq!((result(handle).await, runs.get()), (1, 2));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn select_withdraws_the_undecided_request() {
    let either = |ctx: Context, _: NeedsApproval| async move {
        tokio::select! {
            left = ctx.approval("left").title("Left?") => left?.approved().map(|()| 1),
            right = ctx.approval("right").title("Right?") => right?.approved().map(|()| 2),
        }
    };
    let running = running(Duration::ZERO, either).await;
    let handle = enqueue(&running).await;
    let (left, right) = (request_id(&handle, "left"), request_id(&handle, "right"));
    wait_for_request(&running.client, &left).await;
    approve(&running.client, &right).await;
    assert_eq!(result(handle).await, 2);
    // The drain also waits for the work after the result.
    let client = Client::connect(running.client.config()).await.unwrap();
    running.drain().await;
    assert_eq!(status(&client, &left).await, "withdrawn");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_polled_once_and_ignored_is_withdrawn_with_its_task() {
    let go = Arc::new(Notify::new());
    let may_go = Arc::clone(&go);
    let ignoring = move |ctx: Context, _: NeedsApproval| {
        let go = Arc::clone(&may_go);
        async move {
            let mut request = pin!(ctx.approval("pay").title("Pay?"));
            let is_open = poll_fn(|cx| Poll::Ready(request.as_mut().poll(cx).is_pending())).await;
            go.notified().await;
            Ok(u64::from(is_open))
        }
    };
    let running = running(LONG, ignoring).await;
    let handle = enqueue(&running).await;
    let id = request_id(&handle, "pay");
    wait_for_request(&running.client, &id).await;
    go.notify_one();
    assert_eq!(result(handle).await, 1);
    let client = Client::connect(running.client.config()).await.unwrap();
    running.drain().await;
    assert_eq!(status(&client, &id).await, "withdrawn");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spawned_approval_fails_when_its_task_is_suspended() {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let spawning = move |ctx: Context, _: NeedsApproval| {
        let sender = sender.clone();
        async move {
            let spawned = tokio::spawn(async move {
                let decided = ctx.approval("pay").title("Pay?").await;
                let _ = sender
                    .send(decided.as_ref().map(Decided::is_approved).map_err(ToString::to_string));
                decided
            });
            Ok(u64::from(spawned.await??.is_approved()))
        }
    };
    let running = running(Duration::ZERO, spawning).await;
    let handle = enqueue(&running).await;
    let first = timeout(TIMEOUT, receiver.recv()).await.unwrap().unwrap();
    assert!(first.unwrap_err().contains("was suspended"));
    approve(&running.client, &request_id(&handle, "pay")).await;
    assert_eq!(result(handle).await, 1);
    assert_eq!(receiver.recv().await.unwrap(), Ok(true));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spawned_work_continues_and_starts_again_with_each_run() {
    let go = Arc::new(Notify::new());
    let may_go = Arc::clone(&go);
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let spawning = move |ctx: Context, _: NeedsApproval| {
        let (go, sender) = (Arc::clone(&may_go), sender.clone());
        async move {
            tokio::spawn(async move {
                go.notified().await;
                sender.send(())
            });
            ctx.approval("pay").title("Pay?").await?.approved()?;
            Ok(1)
        }
    };
    let running = running(Duration::ZERO, spawning).await;
    let handle = enqueue(&running).await;
    wait_until_suspended(&handle, 1).await;
    go.notify_one();
    timeout(TIMEOUT, receiver.recv()).await.unwrap().expect("the work of the first run continues");
    approve(&running.client, &request_id(&handle, "pay")).await;
    assert_eq!(result(handle).await, 1);
    go.notify_one();
    timeout(TIMEOUT, receiver.recv()).await.unwrap().expect("the second run has started it again");
    running.drain().await;
}

/// Panics when it is dropped, unless it was disarmed.
struct Bomb {
    is_armed: bool,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.is_armed, "dropped too early");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_drop_does_not_reach_the_worker() {
    let dropped = |ctx: Context, _: NeedsApproval| async move {
        let mut bomb = Bomb { is_armed: true };
        ctx.approval("pay").title("Pay?").await?.approved()?;
        bomb.is_armed = false;
        Ok(1)
    };
    let running = running(Duration::ZERO, dropped).await;
    let handle = enqueue(&running).await;
    support::wait_until_suspended(&running.client, handle.id()).await;
    approve(&running.client, &request_id(&handle, "pay")).await;
    assert_eq!(result(handle).await, 1);
    assert!(running.drain().await.is_clean());
}
