//! What parking, which drops the handler, does to each kind of handler.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use countersign::{
    ApprovalId, Client, Config, Context, Decided, Handle, Policy, Task, TaskError, TaskResult,
};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use support::{Running, approve, servers, shown};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(60 * 60);

#[derive(Serialize, Deserialize)]
struct Ask {}

impl Task for Ask {
    const NAME: &'static str = "test.ask";
    type Output = u64;
}

/// How often something was done.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn one_more(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn so_far(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A worker that keeps a slot for this long after a park.
async fn running<F, Fut>(hold: Duration, handler: F) -> Running
where
    F: Fn(Context, Ask) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = TaskResult<u64>> + Send + 'static,
{
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    config.hold = hold;
    Running::start_with(&config, |worker| worker.handle(handler, Policy::default())).await
}

async fn ask(running: &Running) -> Handle<u64> {
    running.client.enqueue(Ask {}).queue(&running.queue).await.unwrap()
}

fn question(handle: &Handle<u64>, name: &str) -> ApprovalId {
    ApprovalId::of(handle.id(), name, 0)
}

/// Waits until the task has been parked under this number, and nobody runs it.
async fn parked(handle: &Handle<u64>, number: u64) {
    let client = redis::Client::open(servers().store_url).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let key = format!("cs:park:{{cs}}:{}", handle.id());
    let wait = async {
        loop {
            let fields = ["number", "holder"];
            let park: (Option<u64>, Option<String>) = redis.hmget(&key, &fields).await.unwrap();
            if park == (Some(number), Some(String::new())) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it parks");
}

async fn standing(client: &Client, id: &ApprovalId) -> &'static str {
    client.approval(id).await.unwrap().standing.as_str()
}

async fn answer(handle: Handle<u64>) -> u64 {
    handle.result_within(PATIENCE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_under_join_all_are_one_park_and_each_decision_is_one_run() {
    let runs = Count::default();
    let counted = runs.clone();
    let all = move |ctx: Context, _: Ask| {
        counted.one_more();
        async move {
            let asked = ["a", "b", "c"].map(|name| ctx.approval(name).ask(name));
            let decided: TaskResult<Vec<Decided>> =
                futures_util::future::join_all(asked).await.into_iter().collect();
            Ok(decided?.iter().filter(|decided| decided.is_approved()).count() as u64)
        }
    };
    let running = running(Duration::ZERO, all).await;
    let handle = ask(&running).await;
    parked(&handle, 1).await;
    for name in ["a", "b", "c"] {
        assert_eq!(standing(&running.client, &question(&handle, name)).await, "pending");
    }
    for (number, name) in [(2, "b"), (3, "a")] {
        approve(&running.client, &question(&handle, name)).await;
        parked(&handle, number).await;
    }
    approve(&running.client, &question(&handle, "c")).await;
    assert_eq!((answer(handle).await, runs.so_far()), (3, 4));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_beside_an_approval_is_not_cut() {
    let (done, inside, go) = (Count::default(), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (counted, entered, may_go) = (done.clone(), Arc::clone(&inside), Arc::clone(&go));
    let beside = move |ctx: Context, _: Ask| {
        let (done, entered, may_go) = (counted.clone(), Arc::clone(&entered), Arc::clone(&may_go));
        async move {
            let slow = || async {
                done.one_more();
                entered.notify_one();
                may_go.notified().await;
                Ok::<_, TaskError>(7)
            };
            let (decided, held) =
                tokio::join!(ctx.approval("pay").ask("Pay?"), ctx.step("hold", slow));
            decided?.approved()?;
            held
        }
    };
    let running = running(Duration::ZERO, beside).await;
    let handle = ask(&running).await;
    inside.notified().await;
    go.notify_one();
    approve(&running.client, &question(&handle, "pay")).await;
    assert_eq!((answer(handle).await, done.so_far()), (7, 1));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_inside_a_step_fails_the_task_and_says_where_it_belongs() {
    let inside = |ctx: Context, _: Ask| async move {
        let decided =
            ctx.step("pay", || async { ctx.approval("pay").ask("Pay?").await?.approved() });
        decided.await?;
        Ok(1)
    };
    let running = running(Duration::ZERO, inside).await;
    let error = running.call(Ask {}).await.unwrap_err();
    assert!(error.to_string().contains("ask before it"), "{error}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_within_the_hold_takes_its_branch_and_withdraws_the_question() {
    let impatient = |ctx: Context, _: Ask| async move {
        let asked = ctx.approval("first").ask("At once?");
        tokio::select! {
            decided = asked => Ok(u64::from(decided?.is_approved())),
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                // It is the second park that tells of the first question.
                ctx.approval("second").ask("And later?").await?.approved()?;
                Ok(2)
            }
        }
    };
    let running = running(Duration::from_secs(1), impatient).await;
    let handle = ask(&running).await;
    let (first, second) = (question(&handle, "first"), question(&handle, "second"));
    shown(&running.client, &second).await;
    assert_eq!(standing(&running.client, &first).await, "withdrawn");
    approve(&running.client, &second).await;
    assert_eq!(answer(handle).await, 2);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_beyond_the_hold_begins_anew_with_each_run() {
    let runs = Count::default();
    let counted = runs.clone();
    let patient = move |ctx: Context, _: Ask| {
        counted.one_more();
        async move {
            let decided = timeout(LONG, ctx.approval("pay").ask("Pay?")).await;
            Ok(u64::from(decided??.is_approved()))
        }
    };
    let running = running(Duration::ZERO, patient).await;
    let handle = ask(&running).await;
    parked(&handle, 1).await;
    approve(&running.client, &question(&handle, "pay")).await;
    assert_eq!((answer(handle).await, runs.so_far()), (1, 2));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_under_select_the_undecided_one_is_withdrawn() {
    let either = |ctx: Context, _: Ask| async move {
        tokio::select! {
            left = ctx.approval("left").ask("Left?") => left?.approved().map(|()| 1),
            right = ctx.approval("right").ask("Right?") => right?.approved().map(|()| 2),
        }
    };
    let running = running(Duration::ZERO, either).await;
    let handle = ask(&running).await;
    let (left, right) = (question(&handle, "left"), question(&handle, "right"));
    shown(&running.client, &left).await;
    approve(&running.client, &right).await;
    assert_eq!(answer(handle).await, 2);
    // The drain waits for what follows the result.
    let client = Client::connect(running.client.config()).await.unwrap();
    running.drain().await;
    assert_eq!(standing(&client, &left).await, "withdrawn");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_polled_once_and_then_ignored_is_withdrawn_with_the_task() {
    let go = Arc::new(Notify::new());
    let may_go = Arc::clone(&go);
    let ignoring = move |ctx: Context, _: Ask| {
        let go = Arc::clone(&may_go);
        async move {
            let mut asked = pin!(ctx.approval("pay").ask("Pay?"));
            let is_open = poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx).is_pending())).await;
            go.notified().await;
            Ok(u64::from(is_open))
        }
    };
    let running = running(LONG, ignoring).await;
    let handle = ask(&running).await;
    let id = question(&handle, "pay");
    shown(&running.client, &id).await;
    go.notify_one();
    assert_eq!(answer(handle).await, 1);
    let client = Client::connect(running.client.config()).await.unwrap();
    running.drain().await;
    assert_eq!(standing(&client, &id).await, "withdrawn");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_that_is_spawned_ends_with_an_error_when_its_task_is_parked() {
    let (told, mut tell) = mpsc::unbounded_channel();
    let spawning = move |ctx: Context, _: Ask| {
        let told = told.clone();
        async move {
            let asked = tokio::spawn(async move {
                let decided = ctx.approval("pay").ask("Pay?").await;
                let _ = told
                    .send(decided.as_ref().map(Decided::is_approved).map_err(ToString::to_string));
                decided
            });
            Ok(u64::from(asked.await??.is_approved()))
        }
    };
    let running = running(Duration::ZERO, spawning).await;
    let handle = ask(&running).await;
    let first = timeout(PATIENCE, tell.recv()).await.unwrap().unwrap();
    assert!(first.unwrap_err().contains("was parked"));
    approve(&running.client, &question(&handle, "pay")).await;
    assert_eq!(answer(handle).await, 1);
    assert_eq!(tell.recv().await.unwrap(), Ok(true));
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_work_that_is_spawned_goes_on_and_begins_again_with_each_run() {
    let go = Arc::new(Notify::new());
    let may_go = Arc::clone(&go);
    let (told, mut tell) = mpsc::unbounded_channel();
    let spawning = move |ctx: Context, _: Ask| {
        let (go, told) = (Arc::clone(&may_go), told.clone());
        async move {
            tokio::spawn(async move {
                go.notified().await;
                told.send(())
            });
            ctx.approval("pay").ask("Pay?").await?.approved()?;
            Ok(1)
        }
    };
    let running = running(Duration::ZERO, spawning).await;
    let handle = ask(&running).await;
    parked(&handle, 1).await;
    go.notify_one();
    timeout(PATIENCE, tell.recv()).await.unwrap().expect("the first run's goes on");
    approve(&running.client, &question(&handle, "pay")).await;
    assert_eq!(answer(handle).await, 1);
    go.notify_one();
    timeout(PATIENCE, tell.recv()).await.unwrap().expect("the second run has begun it again");
    running.drain().await;
}

/// Panics when it is dropped, unless it is told that all is well.
struct Bomb {
    is_armed: bool,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.is_armed, "dropped too early");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_whose_drop_panics_does_not_reach_its_worker() {
    let dropped = |ctx: Context, _: Ask| async move {
        let mut bomb = Bomb { is_armed: true };
        ctx.approval("pay").ask("Pay?").await?.approved()?;
        bomb.is_armed = false;
        Ok(1)
    };
    let running = running(Duration::ZERO, dropped).await;
    let handle = ask(&running).await;
    support::parked(&running.client, handle.id()).await;
    approve(&running.client, &question(&handle, "pay")).await;
    assert_eq!(answer(handle).await, 1);
    assert!(running.drain().await.is_clean());
}
