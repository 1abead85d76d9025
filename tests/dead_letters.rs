//! Dead letters: listed, replayed, deleted.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::client::Replay;
use countersign::protocol::{Attempt, State};
use countersign::{
    ApprovalId, Arguments, Client, Config, Context, Policy, Retry, Task, TaskError, TaskId,
    TaskResult,
};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use support::{Running, TIMEOUT, approve, queue_name, servers, wait_for_request};

#[derive(Serialize, Deserialize)]
struct Late {
    n: u32,
}

impl Task for Late {
    const NAME: &'static str = "test.late";
    type Output = u32;
}

async fn late(_: Context, late: Late) -> TaskResult<u32> {
    Ok(late.n)
}

/// Fails twice, and then requests an approval.
async fn slow(ctx: Context, late: Late) -> TaskResult<u32> {
    let attempt = ctx.attempt();
    if attempt < 3 {
        return Err(TaskError::with_exception(
            "shop.errors",
            "Closed",
            format!("closed at {attempt}"),
        ));
    }
    ctx.approval("late").title("Still?").await?;
    Ok(late.n)
}

async fn client() -> Client {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    Client::connect(&config).await.unwrap()
}

/// Returns the ids of tasks without a registered handler, in the order in which they were dead-lettered.
async fn make_dead_letters(client: &Client, queue: &str, count: u32) -> Vec<TaskId> {
    let unregistered = Running::start(|worker| worker.queue(queue)).await;
    let mut ids = Vec::new();
    for n in 0..count {
        let handle = client.enqueue(Late { n }).queue(queue).await.unwrap();
        ids.push(handle.id().clone());
        let error = handle.result_within(TIMEOUT).await.unwrap_err();
        assert_eq!(error.failure().unwrap().exc_type, "NotRegistered");
    }
    unregistered.drain().await;
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn browsing_changes_nothing() {
    let (client, queue) = (client().await, queue_name());
    let ids = make_dead_letters(&client, &queue, 5).await;
    let letters = client.dead_letters(&queue);
    for _ in 0..3 {
        let seen = letters.browse(100).await.unwrap();
        assert_eq!(seen.iter().map(|letter| letter.id.clone()).collect::<Vec<_>>(), ids);
        assert_eq!(seen[0].reason.as_deref(), Some("no handler for test.late"));
        assert_eq!(seen[0].queue.as_deref(), Some(queue.as_str()));
        assert_eq!(seen[0].task.as_deref(), Some("test.late"));
        assert_eq!(letters.browse(2).await.unwrap().len(), 2);
    }
    assert_eq!(letters.find(&ids[3]).await.unwrap().unwrap().id, ids[3]);
    assert!(letters.find(&"no-such-task".into()).await.unwrap().is_none());
    assert!(client.dead_letters("no-such-queue").browse(1).await.unwrap().is_empty());
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_task_runs_under_its_id_and_its_failure_is_gone() {
    let (client, queue) = (client().await, queue_name());
    let ids = make_dead_letters(&client, &queue, 3).await;
    let letters = client.dead_letters(&queue);
    // A worker that began the task and then crashed leaves this key.
    let () = store().await.set(format!("cs:run:{}:1", ids[1]), "1").await.unwrap();
    assert_eq!(letters.replay(&ids[1]).await.unwrap(), Some(Replay::Sent));
    assert!(client.status(&ids[1]).await.unwrap().is_none(), "its failure is removed");
    assert!(client.status(&ids[0]).await.unwrap().is_some());
    assert_eq!(letters.replay(&ids[1]).await.unwrap(), None, "it was removed");

    // This also holds if each attempt may run only once.
    let once = Policy { once: true, ..Policy::default() };
    let successor =
        Running::start(|worker| worker.queue(&queue).handle_with_policy(late, once)).await;
    let result = client.handle::<u32>(ids[1].as_str()).result_within(TIMEOUT).await.unwrap();
    assert_eq!(result, 1);
    let mut replayed = Vec::new();
    letters.replay_all(|id, replay| replayed.push((id.clone(), replay.clone()))).await.unwrap();
    assert_eq!(replayed, [(ids[0].clone(), Replay::Sent), (ids[2].clone(), Replay::Sent)]);
    for (id, n) in [(&ids[0], 0), (&ids[2], 2)] {
        let handle = client.handle::<u32>(id.as_str());
        assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), n);
    }
    successor.drain().await;
    assert_eq!(audited(&queue).await, ["replay", "replay", "replay"]);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_lists_its_failed_attempts() {
    let (client, queue) = (client().await, queue_name());
    let retry = Retry::fixed(Duration::from_millis(1)).attempts(3);
    let policy = Policy { retry, ..Policy::default() };
    let registered =
        Running::start(|worker| worker.queue(&queue).handle_with_policy(slow, policy)).await;
    let name = registered.queue.clone();
    let handle = client.enqueue(Late { n: 1 }).queue(&queue).await.unwrap();
    let id = handle.id().clone();
    let approval = ApprovalId::of(&id, "late", 0);
    wait_for_request(&client, &approval).await;
    registered.drain().await;
    approve(&client, &approval).await;

    // The third attempt is resumed by a worker without its handler.
    let unregistered = Running::start(|worker| worker.queue(&queue)).await;
    let error = handle.result_within(TIMEOUT).await.unwrap_err();
    assert_eq!(error.failure().unwrap().exc_type, "NotRegistered");
    let letters = client.dead_letters(&queue);
    let letter = letters.find(&id).await.unwrap().unwrap();
    assert_eq!((letter.attempt, letter.attempts_left_out), (Some(3), 0));
    let fields = |attempt: &Attempt| {
        assert!(!attempt.at.is_empty());
        let Attempt { number, error, message, worker, .. } = attempt.clone();
        (number, error, message, worker.unwrap())
    };
    let error = "shop.errors.Closed".to_owned();
    assert_eq!(
        letter.attempts.iter().map(fields).collect::<Vec<_>>(),
        [
            (1, error.clone(), "closed at 1".to_owned(), name.clone()),
            (2, error, "closed at 2".to_owned(), name)
        ]
    );

    // A replayed task starts again from its first attempt.
    assert_eq!(letters.replay(&id).await.unwrap(), Some(Replay::Sent));
    client.handle::<u32>(id.as_str()).result_within(TIMEOUT).await.unwrap_err();
    unregistered.drain().await;
    let letter = letters.find(&id).await.unwrap().unwrap();
    assert_eq!((letter.attempt, letter.attempts), (Some(1), Vec::new()));
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_is_never_reopened() {
    let (client, queue) = (client().await, queue_name());
    let ids = make_dead_letters(&client, &queue, 1).await;
    let mut store = store().await;
    let key = format!("celery-task-meta-{}", ids[0]);
    let success =
        format!("{{\"status\": \"SUCCESS\", \"result\": 7, \"task_id\": \"{}\"}}", ids[0]);
    let () = store.set(&key, &success).await.unwrap();
    let letters = client.dead_letters(&queue);
    let refused = letters.replay(&ids[0]).await.unwrap();
    assert_eq!(refused, Some(Replay::Refused(State::Success)));
    assert_eq!(store.get::<_, String>(&key).await.unwrap(), success);
    assert_eq!(letters.count().await.unwrap(), 1);
    assert!(audited(&queue).await.is_empty());
    assert!(letters.purge(&ids[0]).await.unwrap());
    assert!(!letters.purge(&ids[0]).await.unwrap());
    assert_eq!(letters.count().await.unwrap(), 0);
    assert_eq!(audited(&queue).await, ["purge"]);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_not_a_task_can_be_replayed() {
    let (client, queue) = (client().await, queue_name());
    let unregistered = Running::start(|worker| worker.queue(&queue)).await;
    let wrong = client.enqueue_named("test.late", Arguments::default()).queue(&queue);
    let headers = serde_json::from_str(r#"{"retries": "many"}"#).unwrap();
    let handle = wrong.headers(headers).await.unwrap();
    let id = handle.id().clone();
    handle.result_within(TIMEOUT).await.unwrap_err();
    unregistered.drain().await;
    let letters = client.dead_letters(&queue);
    assert_eq!(letters.replay(&id).await.unwrap(), Some(Replay::Sent));
    assert_eq!(letters.purge_all().await.unwrap(), 0);
    client.close().await;
}

async fn store() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(servers().store_url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Returns the entries about a queue among the audit notes.
async fn audited(queue: &str) -> Vec<String> {
    let range = redis::cmd("XRANGE").arg("cs:notes:{cs}").arg("-").arg("+").to_owned();
    let entries: Vec<(String, Vec<String>)> = range.query_async(&mut store().await).await.unwrap();
    let dead = format!("{queue}.dead");
    let ours = entries.into_iter().filter(|(_, fields)| fields.contains(&dead));
    ours.map(|(_, fields)| fields[1].clone()).collect()
}
