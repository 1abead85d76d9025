//! Long sleeps are suspended, and the messages of long runs are acked early: neither blocks other tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{Arguments, Client, Config, Context, Policy, Retry, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};
use support::{DemoWorker, Running, TIMEOUT, queue_name, servers};

/// Longer than a sleep that holds its slot.
const LONG: Duration = Duration::from_secs(6);

#[derive(Serialize, Deserialize)]
struct Nag {
    seconds: u64,
}

impl Task for Nag {
    const NAME: &'static str = "test.nag";
    type Output = usize;
}

#[derive(Serialize, Deserialize)]
struct Quick {}

impl Task for Quick {
    const NAME: &'static str = "test.quick";
    type Output = ();
}

fn again_at_once() -> Policy {
    let retry = Retry::exponential(Duration::from_millis(10)).attempts(10);
    Policy { retry, ..Policy::default() }
}

/// Passes the counter of runs to a handler.
fn counted<F, Fut>(handler: F) -> impl Fn(Context, Nag) -> Fut
where
    F: Fn(Context, Nag, Arc<AtomicUsize>) -> Fut,
{
    let runs = Arc::new(AtomicUsize::new(0));
    move |ctx, nag| {
        runs.fetch_add(1, Ordering::SeqCst);
        handler(ctx, nag, Arc::clone(&runs))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_in_a_long_sleep_holds_no_permit_and_resumes() {
    let nag = counted(|ctx, Nag { seconds }, runs| async move {
        ctx.sleep("rest", Duration::from_secs(seconds)).await?;
        Ok(runs.load(Ordering::SeqCst))
    });
    let quick = |_: Context, _: Quick| async { Ok(()) };
    let running = Running::start(|worker| worker.concurrency(1).handle(nag).handle(quick)).await;
    let asleep = running.client.enqueue(Nag { seconds: LONG.as_secs() }).queue(&running.queue);
    let asleep = asleep.await.unwrap();
    // There is one slot, and the sleeping task came first.
    running.call(Quick {}).await.unwrap();
    let status = running.client.status(asleep.id()).await.unwrap();
    assert_eq!(status.unwrap().state.as_str(), "PARKED");
    assert_eq!(asleep.result_within(TIMEOUT).await.unwrap(), 2, "one run before, one after");
    let drained = running.drain().await;
    assert_eq!(drained.abandoned, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_sleep_is_not_repeated() {
    let nag = counted(|ctx, Nag { seconds }, runs| async move {
        ctx.sleep("rest", Duration::from_secs(seconds)).await?;
        if ctx.attempt() < 3 {
            return Err(TaskError::retry_after(Duration::ZERO, "not yet"));
        }
        let again = ctx.sleep("rest", Duration::from_secs(seconds)).await.unwrap_err();
        assert_eq!(again.failure().exc_type, "DuplicateStep");
        Ok(runs.load(Ordering::SeqCst))
    });
    let running = Running::start(|worker| worker.handle_with_policy(nag, again_at_once())).await;
    // One run is suspended, and each of the three attempts has one run that is not.
    assert_eq!(running.call(Nag { seconds: LONG.as_secs() }).await.unwrap(), 4);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_inside_a_step_or_in_place_of_one_is_an_error() {
    let nag = |ctx: Context, Nag { seconds }: Nag| async move {
        let long = Duration::from_secs(seconds);
        let inside = ctx.step("work", || ctx.sleep("rest", long)).await.unwrap_err();
        assert!(inside.failure().message().contains("inside a step"), "{}", inside.failure());
        ctx.step("money", || async { Ok::<_, TaskError>("held".to_owned()) }).await?;
        Err(TaskError::retry_after(Duration::ZERO, "once more"))
    };
    let changed = move |ctx: Context, task: Nag| async move {
        if ctx.attempt() == 1 {
            return nag(ctx, task).await;
        }
        ctx.sleep("money", Duration::from_secs(task.seconds)).await?;
        TaskResult::Ok(0)
    };
    let running =
        Running::start(|worker| worker.handle_with_policy(changed, again_at_once())).await;
    let error = running.call(Nag { seconds: 60 }).await.unwrap_err();
    assert_eq!(error.failure().unwrap().exc_type, "JournalMismatch", "{error}");
    assert!(error.to_string().contains("\"money\""), "{error}");
    running.drain().await;
}

/// The worker prefetches one message, so a second task shows that the first message is acked. Its worker
/// is killed: the wake message runs the task again.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_run_acks_its_message_early_and_survives_its_worker() {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let arguments = ["-Q", &queue, "-c", "2", "--prefetch", "1"];
    // The worker holds a message for at most two seconds, and acks it early after one.
    let variables =
        [("COUNTERSIGN_BROKER_CONSUMER_TIMEOUT", "3s"), ("COUNTERSIGN_APPROVALS_LEASE", "3s")];
    let mut worker = DemoWorker::spawn(&arguments, &variables);
    worker.ready().await;
    let seconds = Arguments::of(&(LONG.as_secs(),)).unwrap();
    let long = client.enqueue_named("demo.sleep", seconds).queue(&queue);
    let long = long.time_limits(None, Some(Duration::from_secs(3600))).await.unwrap();
    let add = Arguments::of(&(1, 2)).unwrap();
    let add = client.enqueue_named("demo.add", add).queue(&queue).await.unwrap();
    assert_eq!(add.result_within(TIMEOUT).await.unwrap(), 3);
    assert!(worker.stderr().contains("acking its message early"), "{}", worker.stderr());
    let status = client.status(long.id()).await.unwrap();
    assert!(!status.is_some_and(|status| status.state.is_terminal()), "it runs");
    worker.kill9().await;
    let mut worker = DemoWorker::spawn(&arguments, &variables);
    worker.ready().await;
    long.result_within(TIMEOUT).await.unwrap();
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    client.close().await;
}
