//! Deadlines are by the store's clock: a worker whose own is wrong by an hour changes nothing.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::process::Stdio;
use std::time::Duration;

use countersign::approval::Answer;
use countersign::{
    ApprovalId, Client, Config, Context, Handle, Policy, Retry, Task, TaskError, TaskResult,
    Verdict, Worker,
};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use support::{Running, queue_name, servers};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Tells a child of this test by how many seconds its clock is wrong.
const CLOCK: &str = "COUNTERSIGN_TEST_CLOCK";
const QUEUE: &str = "COUNTERSIGN_TEST_QUEUE";
const WRONG: [&str; 2] = ["3600", "-3600"];

#[derive(Serialize, Deserialize)]
struct Ask {
    seconds: u64,
    fails_once: bool,
}

impl Task for Ask {
    const NAME: &'static str = "test.ask";
    type Output = String;
}

async fn ask(ctx: Context, Ask { seconds, fails_once }: Ask) -> TaskResult<String> {
    let asked = ctx.approval("now").ask("Now?").expires_in(Duration::from_secs(seconds)).await?;
    if fails_once && ctx.attempt() == 1 {
        return Err(TaskError::retry_after(RETRY_PAUSE, "not yet"));
    }
    Ok(match asked.verdict {
        Verdict::Approved { .. } => "approved",
        Verdict::Expired => "expired",
        _ => "otherwise",
    }
    .into())
}

fn worker(worker: Worker) -> Worker {
    let retry = Retry::exponential(Duration::from_millis(10)).attempts(3);
    worker.handle(ask, Policy { retry, ..Policy::default() })
}

fn config() -> Config {
    let mut config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    config.hold = Duration::ZERO;
    config.lease = Duration::from_secs(3);
    config
}

/// No test: a worker whose clock is wrong.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a worker whose clock is wrong"]
async fn wrong_worker() {
    let Ok(queue) = std::env::var(QUEUE) else { return };
    let client = Client::connect(&config()).await.unwrap();
    worker(Worker::new(&client).queue(queue)).run(std::future::pending()).await.unwrap();
}

fn wrong(queue: &str, clock: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "wrong_worker", "--ignored"])
        .envs([(QUEUE, queue), (CLOCK, clock)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn enqueue(client: &Client, queue: &str, task: Ask) -> (Handle<String>, ApprovalId) {
    let handle = client.enqueue(task).queue(queue).await.unwrap();
    let id = ApprovalId::of(handle.id(), "now", 0);
    let shown = async {
        while let Err(error) = client.approval(&id).await {
            assert!(error.is_no_approval(), "{error}");
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, shown).await.expect("it asks");
    (handle, id)
}

async fn expired(client: &Client, id: &ApprovalId) {
    let wait = async {
        while client.approval(id).await.unwrap().standing.as_str() != "expired" {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("its deadline passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_before_the_deadline_counts() {
    let client = Client::connect(&config()).await.unwrap();
    for clock in WRONG {
        let queue = queue_name();
        let _worker = wrong(&queue, clock);
        let task = Ask { seconds: 30 * 60, fails_once: true };
        let (handle, id) = enqueue(&client, &queue, task).await;
        let asked = client.approval(&id).await.unwrap();
        assert_eq!(client.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
        assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "approved", "{clock} s");
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_after_the_deadline_is_refused_and_the_task_ends_then() {
    let client = Client::connect(&config()).await.unwrap();
    for clock in WRONG {
        let queue = queue_name();
        let _worker = wrong(&queue, clock);
        let (handle, id) = enqueue(&client, &queue, Ask { seconds: 2, fails_once: false }).await;
        let asked = client.approval(&id).await.unwrap();
        assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "expired", "{clock} s");
        let ended = client.approval(&id).await.unwrap();
        assert!(ended.read_at > asked.at, "it ended before its deadline");
        let late = client.decide(&asked.approve("ana")).await.unwrap();
        assert_eq!(late, Answer::Expired { at: asked.at });
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_after_the_deadline_is_refused_while_no_worker_is_there() {
    let client = Client::connect(&config()).await.unwrap();
    let queue = queue_name();
    let mut parks = wrong(&queue, WRONG[0]);
    let (handle, id) = enqueue(&client, &queue, Ask { seconds: 2, fails_once: false }).await;
    let asked = client.approval(&id).await.unwrap();
    parks.kill().await.unwrap();
    expired(&client, &id).await;
    let late = client.decide(&asked.approve("ana")).await.unwrap();
    assert_eq!(late, Answer::Expired { at: asked.at });
    let _wakes = wrong(&queue, WRONG[1]);
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "expired");
    client.close().await;
}

/// The next attempt carries the time at which it is due, by the clock of who sent it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_was_sent_by_a_fast_clock_is_not_put_off_by_a_true_one() {
    let client = Client::connect(&config()).await.unwrap();
    let queue = queue_name();
    let mut fast = wrong(&queue, WRONG[0]);
    let (handle, id) = enqueue(&client, &queue, Ask { seconds: 30 * 60, fails_once: true }).await;
    let asked = client.approval(&id).await.unwrap();
    assert_eq!(client.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
    retried(&handle).await;
    fast.kill().await.unwrap();
    let heir = Running::start_with(&config(), |heir| worker(heir.queue(&queue))).await;
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "approved");
    heir.drain().await;
    client.close().await;
}

/// Waits until the next attempt is on its way, and nothing that was sent before counts.
async fn retried(handle: &Handle<String>) {
    let redis = redis::Client::open(servers().store_url).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let key = format!("cs:park:{{cs}}:{}", handle.id());
    let wait = async {
        while redis.hget::<_, _, u64>(&key, "number").await.unwrap() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it is tried again");
}
