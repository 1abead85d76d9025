//! Deadlines use the store's clock: a worker whose clock is wrong by an hour changes nothing.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use countersign::approval::DecideResult;
use countersign::{ApprovalId, Client, Handle};
use redis::AsyncCommands;
use support::roles::clock::{CLOCK, NeedsApproval, config, worker};
use support::{Running, TIMEOUT, queue_name, roles, servers};
use tokio::process::Child;
use tokio::time::timeout;

/// Errors of a clock in seconds.
const WRONG: [&str; 2] = ["3600", "-3600"];

fn wrong(queue: &str, clock: &str) -> Child {
    roles::command("clock", &[queue]).env(CLOCK, clock).spawn().unwrap()
}

async fn enqueue(
    client: &Client,
    queue: &str,
    task: NeedsApproval,
) -> (Handle<String>, ApprovalId) {
    let handle = client.enqueue(task).queue(queue).await.unwrap();
    let id = ApprovalId::of(handle.id(), "now", 0);
    let requested = async {
        while let Err(error) = client.approval(&id).await {
            assert!(error.is_no_approval(), "{error}");
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, requested).await.expect("the approval is requested");
    (handle, id)
}

async fn expired(client: &Client, id: &ApprovalId) {
    let wait = async {
        while client.approval(id).await.unwrap().status.as_str() != "expired" {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, wait).await.expect("the deadline passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_before_the_deadline_counts() {
    let client = Client::connect(&config()).await.unwrap();
    for clock in WRONG {
        let queue = queue_name();
        let _worker = wrong(&queue, clock);
        let task = NeedsApproval { seconds: 30 * 60, fails_once: true };
        let (handle, id) = enqueue(&client, &queue, task).await;
        let record = client.approval(&id).await.unwrap();
        assert_eq!(client.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);
        assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "approved", "{clock} s");
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_after_the_deadline_is_refused_and_the_task_ends_then() {
    let client = Client::connect(&config()).await.unwrap();
    for clock in WRONG {
        let queue = queue_name();
        let _worker = wrong(&queue, clock);
        let (handle, id) =
            enqueue(&client, &queue, NeedsApproval { seconds: 2, fails_once: false }).await;
        let record = client.approval(&id).await.unwrap();
        assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "expired", "{clock} s");
        let ended = client.approval(&id).await.unwrap();
        assert!(ended.read_at > record.at, "the task ended before the deadline");
        let late = client.decide(&record.approve("ana")).await.unwrap();
        assert_eq!(late, DecideResult::Expired { at: record.at });
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_after_the_deadline_is_refused_while_no_worker_runs() {
    let client = Client::connect(&config()).await.unwrap();
    let queue = queue_name();
    let mut suspending = wrong(&queue, WRONG[0]);
    let (handle, id) =
        enqueue(&client, &queue, NeedsApproval { seconds: 2, fails_once: false }).await;
    let record = client.approval(&id).await.unwrap();
    suspending.kill().await.unwrap();
    expired(&client, &id).await;
    let late = client.decide(&record.approve("ana")).await.unwrap();
    assert_eq!(late, DecideResult::Expired { at: record.at });
    let _resuming = wrong(&queue, WRONG[1]);
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "expired");
    client.close().await;
}

/// The next attempt's message carries its due time by the sender's clock.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_sent_under_a_fast_clock_is_not_postponed_under_a_correct_one() {
    let client = Client::connect(&config()).await.unwrap();
    let queue = queue_name();
    let mut fast = wrong(&queue, WRONG[0]);
    let (handle, id) =
        enqueue(&client, &queue, NeedsApproval { seconds: 30 * 60, fails_once: true }).await;
    let record = client.approval(&id).await.unwrap();
    assert_eq!(client.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);
    retried(&handle).await;
    fast.kill().await.unwrap();
    let successor =
        Running::start_with(&config(), |successor| worker(successor.queue(&queue))).await;
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "approved");
    successor.drain().await;
    client.close().await;
}

/// Waits until the next attempt is scheduled, which makes all earlier messages outdated.
async fn retried(handle: &Handle<String>) {
    let redis = redis::Client::open(servers().store_url).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let key = format!("cs:park:{{cs}}:{}", handle.id());
    let wait = async {
        while redis.hget::<_, _, u64>(&key, "number").await.unwrap() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, wait).await.expect("the task is retried");
}
