//! The process that suspends, resumes or decides a task is killed at each failpoint; the task ends once.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::os::unix::process::ExitStatusExt;

use countersign::approval::{AuditEntry, AuditKind};
use countersign::{ApprovalId, Client, TaskId, Worker};
use futures_util::StreamExt;
use lapin::options::BasicGetOptions;
use lapin::{Channel, Connection, ConnectionProperties};
use redis::AsyncCommands;
use redis::aio::{MultiplexedConnection, PubSub};
use serde_json::Value;
use support::roles::pay::{ACKED, FAILPOINT, HOLD, Pass, Pay, config, worker};
use support::{
    Effects, Running, Server, TIMEOUT, approve, queue_name, roles, servers, wait_for_request,
};
use tokio::process::Child;
use tokio::time::timeout;

/// The first run after the decision fails, and the message of its next attempt is sent.
const RETRIED: &str = "copy sent";
const AT_ONCE: usize = 6;

/// The process that dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum CrashDuring {
    /// The worker that suspends the task, or that acks the message of a long run early.
    Suspending,
    /// The worker that suspends the task, at a decision during its inline wait.
    Holding,
    /// The worker that resumes the task.
    Resuming,
    /// The worker that resumes the task after its deadline.
    Expiring,
    /// The decider.
    Deciding,
    /// The decider, and then the worker that sends the resume message in its place.
    Sweeping,
}

const TABLE: &[(CrashDuring, &str)] = &[
    (CrashDuring::Suspending, "suspension begun"),
    (CrashDuring::Suspending, "wake confirmed"),
    (CrashDuring::Suspending, "suspension stored"),
    (CrashDuring::Suspending, "suspended status stored"),
    (CrashDuring::Suspending, ACKED),
    (CrashDuring::Suspending, "long run begun"),
    (CrashDuring::Suspending, "long wake confirmed"),
    (CrashDuring::Suspending, "long run stored"),
    (CrashDuring::Suspending, "long run claimed"),
    (CrashDuring::Holding, "slot reacquired"),
    (CrashDuring::Resuming, "message received"),
    (CrashDuring::Resuming, "claimed"),
    (CrashDuring::Resuming, "handler ran"),
    (CrashDuring::Resuming, "result stored"),
    (CrashDuring::Resuming, "suspension ended"),
    (CrashDuring::Resuming, RETRIED),
    (CrashDuring::Expiring, "message received"),
    (CrashDuring::Expiring, "claimed"),
    (CrashDuring::Deciding, "decided"),
    (CrashDuring::Deciding, "resume sent"),
    (CrashDuring::Sweeping, "outbox read"),
    (CrashDuring::Sweeping, "outbox sent"),
];

async fn redis(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn wait_for_crash(mut process: Child) {
    let status =
        timeout(TIMEOUT, process.wait()).await.expect("the process reaches its failpoint").unwrap();
    assert!(status.signal().is_some(), "it did not crash: {status}");
}

/// One task, in a store that no other test's worker sweeps.
struct Fixture {
    store: Server,
    queue: String,
    client: Client,
    approval: ApprovalId,
}

impl Fixture {
    /// Starts a worker that aborts at this failpoint.
    fn dying_worker(&self, failpoint: &str) -> Child {
        self.dying_worker_with(failpoint, &[])
    }

    fn dying_worker_with(&self, failpoint: &str, variables: &[(&str, &str)]) -> Child {
        let mut command = roles::command("pay", &[&self.queue, self.store.url()]);
        command.env(FAILPOINT, failpoint).envs(variables.iter().copied());
        command.spawn().unwrap()
    }

    async fn crash_decider(&self, failpoint: &str) {
        wait_for_request(&self.client, &self.approval).await;
        let mut command = roles::command("approve", &[self.approval.as_str(), self.store.url()]);
        wait_for_crash(command.env(FAILPOINT, failpoint).spawn().unwrap()).await;
    }

    async fn successor(&self) -> Running {
        let build = |successor: Worker| worker(successor.queue(&self.queue)).concurrency(1);
        Running::start_with(&config(self.store.url()), build).await
    }

    /// Kills a process at the failpoint; returns a worker that takes over.
    async fn fault(&self, during: CrashDuring, failpoint: &str) -> Running {
        match during {
            CrashDuring::Suspending => {
                wait_for_crash(self.dying_worker(failpoint)).await;
                let successor = self.successor().await;
                approve(&self.client, &self.approval).await;
                return successor;
            }
            CrashDuring::Holding => {
                let holding = self.dying_worker_with(failpoint, &[(HOLD, "")]);
                // No resume message arrives: the inline wait is the first to receive the decision.
                self.crash_decider("decided").await;
                wait_for_crash(holding).await;
            }
            CrashDuring::Resuming => {
                let resuming = self.dying_worker(failpoint);
                approve(&self.client, &self.approval).await;
                wait_for_crash(resuming).await;
            }
            CrashDuring::Expiring => wait_for_crash(self.dying_worker(failpoint)).await,
            CrashDuring::Deciding => {
                let successor = self.successor().await;
                self.crash_decider(failpoint).await;
                return successor;
            }
            CrashDuring::Sweeping => {
                let sweeping = self.dying_worker(failpoint);
                self.crash_decider("decided").await;
                wait_for_crash(sweeping).await;
            }
        }
        self.successor().await
    }

    /// Runs a task without arguments in each queue, behind all messages of the tested task.
    async fn settled(&self) {
        for queue in [self.queue.clone(), format!("{}.countersign-resume", self.queue)] {
            let last = self.client.enqueue(Pass {}).queue(queue).await.unwrap();
            last.result_within(TIMEOUT).await.unwrap();
        }
    }

    async fn decisions(&self) -> usize {
        let about = ("approval".to_owned(), self.approval.to_string());
        let entries = self.client.audit_entries(100).await.unwrap();
        let is_decision = |entry: &&AuditEntry| entry.kind == AuditKind::Decision;
        entries.iter().filter(is_decision).filter(|entry| entry.fields.contains(&about)).count()
    }

    /// Waits until the end of the task is noted and no resume message is left to be sent.
    async fn wait_until_ended(&self, id: &TaskId) {
        let mut redis = redis(self.store.url()).await;
        let key = format!("cs:park:{{cs}}:{id}");
        let noted = async {
            while redis.hget::<_, _, Option<String>>(&key, "ended").await.unwrap().is_none()
                || redis.exists("cs:outbox:{cs}").await.unwrap()
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(TIMEOUT, noted).await.expect("the suspension has ended");
        let open: Option<f64> =
            redis.zscore("cs:pending:{cs}", self.approval.as_str()).await.unwrap();
        assert_eq!(open, None, "the request is still listed");
    }
}

/// The maximum number of times that the end of the handler may run: once, if it was not running at the
/// crash. The worker that sweeps may have begun to run the message that it has just sent.
fn most_runs(failpoint: &str) -> usize {
    match failpoint {
        "handler ran" | "outbox sent" => 2,
        RETRIED => 3,
        _ => 1,
    }
}

/// The maximum number of times that the last step may run: once, unless the process dies at an arbitrary
/// point of the run. It may then die between the step's effect and its record, and a step may run again
/// until its result is recorded.
fn most_captures(failpoint: &str) -> usize {
    if failpoint == "outbox sent" { 2 } else { 1 }
}

async fn ends_once(during: CrashDuring, failpoint: &'static str) {
    let store = Server::redis().await;
    let client = Client::connect(&config(store.url())).await.unwrap();
    let mut effects = Effects::at(&servers().store_url).await;
    let id = TaskId::random();
    let mut results = ResultCounter::of(store.url(), &id).await;
    let fixture =
        Fixture { store, queue: queue_name(), client, approval: ApprovalId::of(&id, "pay", 0) };
    let seconds = if during == CrashDuring::Expiring { 2 } else { 24 * 60 * 60 };
    let task = Pay { list: effects.list.clone(), seconds, fails_once: failpoint == RETRIED };
    let enqueued = fixture.client.enqueue(task).queue(&fixture.queue).id(id.as_str());
    let handle = enqueued.await.unwrap();
    if failpoint == ACKED {
        fixture.client.enqueue(Pass {}).queue(&fixture.queue).await.unwrap();
    }

    let successor = fixture.fault(during, failpoint).await;
    let expected = if during == CrashDuring::Expiring { "expired" } else { "approved" };
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), expected);
    fixture.wait_until_ended(&id).await;
    fixture.settled().await;
    assert_eq!(results.count().await, 1);
    let runs = effects.runs().await;
    assert_eq!(runs["reserved"], 1, "{runs:?}");
    assert!((1..=most_captures(failpoint)).contains(&runs["captured"]), "{runs:?}");
    assert!(runs["resumed"] <= most_runs(failpoint), "{runs:?}");
    assert_eq!(fixture.decisions().await, usize::from(during != CrashDuring::Expiring));
    successor.drain().await;
    fixture.client.close().await;
}

/// The terminal results of a task, as published to its waiters.
struct ResultCounter {
    store_url: String,
    channel: String,
    messages: PubSub,
}

impl ResultCounter {
    async fn of(store_url: &str, id: &TaskId) -> Self {
        let channel = format!("celery-task-meta-{id}");
        let client = redis::Client::open(store_url).unwrap();
        let mut messages = client.get_async_pubsub().await.unwrap();
        messages.subscribe(&channel).await.unwrap();
        Self { store_url: store_url.to_owned(), channel, messages }
    }

    /// Returns the number of terminal results until now.
    async fn count(&mut self) -> usize {
        const LAST: &str = "null";
        let mut redis = redis(&self.store_url).await;
        let _: () = redis.publish(&self.channel, LAST).await.unwrap();
        let (mut count, mut messages) = (0, self.messages.on_message());
        loop {
            let text: String = messages.next().await.unwrap().get_payload().unwrap();
            if text == LAST {
                return count;
            }
            let document: Value = serde_json::from_str(&text).unwrap();
            let state = document["status"].as_str().unwrap();
            count += usize::from(["SUCCESS", "FAILURE", "REVOKED"].contains(&state));
        }
    }
}

/// Takes the next message of a queue, and holds it as long as the channel is open.
async fn take_message(queue: &str) -> (Connection, Channel) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&servers().broker_url, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let take = async {
        while channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, take).await.expect("the message is requeued");
    (connection, channel)
}

/// The worker dies before its first suspension is stored, and its message is delayed: the wake message
/// arrives first, and continues the task.
#[tokio::test(flavor = "multi_thread")]
async fn a_wake_message_before_the_first_suspension_resumes_the_task() {
    let store = Server::redis().await;
    let client = Client::connect(&config(store.url())).await.unwrap();
    let mut effects = Effects::at(&servers().store_url).await;
    let id = TaskId::random();
    let mut results = ResultCounter::of(store.url(), &id).await;
    let fixture =
        Fixture { store, queue: queue_name(), client, approval: ApprovalId::of(&id, "pay", 0) };
    let task = Pay { list: effects.list.clone(), seconds: 2, fails_once: false };
    let enqueued = fixture.client.enqueue(task).queue(&fixture.queue).id(id.as_str());
    let handle = enqueued.await.unwrap();
    wait_for_crash(fixture.dying_worker("wake confirmed")).await;
    let (late, _held) = take_message(&fixture.queue).await;
    let successor = fixture.successor().await;
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), "expired");
    late.close(200, "".into()).await.unwrap();
    fixture.wait_until_ended(&id).await;
    fixture.settled().await;
    assert_eq!(results.count().await, 1);
    let runs = effects.runs().await;
    assert_eq!((runs["reserved"], runs["captured"]), (1, 1), "{runs:?}");
    successor.drain().await;
    fixture.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_ends_once_by_one_decision_wherever_a_process_crashes() {
    let rows = futures_util::stream::iter(TABLE).map(|(during, failpoint)| async move {
        let survived = tokio::spawn(ends_once(*during, failpoint)).await;
        survived.err().map(|error| format!("{during:?}, {failpoint}: {error}"))
    });
    let failed: Vec<_> = rows.buffer_unordered(AT_ONCE).filter_map(async |row| row).collect().await;
    assert!(failed.is_empty(), "{failed:#?}");
}
