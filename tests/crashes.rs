//! Whoever parks, resumes or decides a task dies at each place of the way, and the task ends once.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use countersign::{
    ApprovalId, Client, Config, Context, Policy, Retry, Task, TaskError, TaskId, TaskResult, Worker,
};
use futures_util::StreamExt;
use lapin::options::BasicGetOptions;
use lapin::{Channel, Connection, ConnectionProperties};
use redis::AsyncCommands;
use redis::aio::{MultiplexedConnection, PubSub};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{Effects, Running, Server, approve, queue_name, servers, shown};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(120);
/// Tells a child of this test where it is to die.
const PLACE: &str = "COUNTERSIGN_TEST_FAULT";
const QUEUE: &str = "COUNTERSIGN_TEST_QUEUE";
const STORE: &str = "COUNTERSIGN_TEST_STORE";
const APPROVAL: &str = "COUNTERSIGN_TEST_APPROVAL";
const HOLD: &str = "COUNTERSIGN_TEST_HOLD";
/// The second message of a channel with a prefetch of 1 comes when the first one's ack has.
const ACKED: &str = "park acked";
/// Here the first run after the decision fails, and its next attempt is on its way.
const RETRIED: &str = "copy sent";
const AT_ONCE: usize = 6;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Dies {
    /// The worker that parks the task, or lets its message go because it runs long.
    Parking,
    /// The worker that parks it, while it still holds it, at a decision.
    Holding,
    /// The worker that resumes it.
    Resuming,
    /// The worker that resumes it because nobody has decided.
    Expiring,
    /// Who decides.
    Deciding,
    /// Who decides, and then the worker that does the rest for him.
    Sweeping,
}

const TABLE: &[(Dies, &str)] = &[
    (Dies::Parking, "park begun"),
    (Dies::Parking, "wake confirmed"),
    (Dies::Parking, "park stored"),
    (Dies::Parking, "park told"),
    (Dies::Parking, ACKED),
    (Dies::Parking, "long run begun"),
    (Dies::Parking, "long wake confirmed"),
    (Dies::Parking, "long run stored"),
    (Dies::Parking, "long run claimed"),
    (Dies::Holding, "claimed back"),
    (Dies::Resuming, "message taken"),
    (Dies::Resuming, "claimed"),
    (Dies::Resuming, "handler ran"),
    (Dies::Resuming, "result stored"),
    (Dies::Resuming, "park ended"),
    (Dies::Resuming, RETRIED),
    (Dies::Expiring, "message taken"),
    (Dies::Expiring, "claimed"),
    (Dies::Deciding, "decided"),
    (Dies::Deciding, "resume sent"),
    (Dies::Sweeping, "outbox taken"),
    (Dies::Sweeping, "outbox sent"),
];

#[derive(Serialize, Deserialize)]
struct Pay {
    /// Where its effects are counted.
    list: String,
    seconds: u64,
    fails_once: bool,
}

impl Task for Pay {
    const NAME: &'static str = "test.pay";
    type Output = String;
}

async fn pay(ctx: Context, Pay { list, seconds, fails_once }: Pay) -> TaskResult<String> {
    ctx.step("reserve", || effect(&list, "reserved")).await?;
    if is_long_run() {
        std::future::pending::<()>().await;
    }
    let asked = ctx.approval("pay").ask("Pay?").expires_in(Duration::from_secs(seconds));
    let is_approved = asked.await?.is_approved();
    effect(&list, "resumed").await?;
    if fails_once && ctx.attempt() == 1 {
        return Err(TaskError::retry_after(Duration::ZERO, "not yet"));
    }
    ctx.step("capture", || effect(&list, "captured")).await?;
    Ok(if is_approved { "approved" } else { "expired" }.into())
}

/// Where the task is to go on without its message, it does not end before that.
fn is_long_run() -> bool {
    std::env::var(PLACE).is_ok_and(|place| place.starts_with("long"))
}

async fn effect(list: &str, what: &str) -> TaskResult<()> {
    Ok(redis(&servers().store_url).await.rpush(list, what).await?)
}

/// Does nothing; where a test says so, nobody survives it.
#[derive(Serialize, Deserialize)]
struct Pass {}

impl Task for Pass {
    const NAME: &'static str = "test.pass";
    type Output = ();
}

async fn pass(_: Context, _: Pass) -> TaskResult<()> {
    if std::env::var(PLACE).is_ok_and(|place| place == ACKED) {
        std::process::abort();
    }
    Ok(())
}

/// One task after another, and the next message of a queue when the one before is settled.
fn worker(worker: Worker) -> Worker {
    let retry = Retry::exponential(Duration::from_millis(10)).attempts(3);
    let worker = worker.handle(pay, Policy { retry, ..Policy::default() });
    worker.handle(pass, Policy::default()).prefetch(1)
}

fn config(store_url: &str) -> Config {
    let mut config = Config::new(&servers().broker_url, store_url).unwrap();
    config.lease = Duration::from_secs(5);
    config.hold = if std::env::var(HOLD).is_ok() { PATIENCE } else { Duration::ZERO };
    if is_long_run() {
        // A message is held for two seconds at most, and let go after one.
        config.consumer_timeout = Duration::from_secs(3);
    }
    config
}

async fn redis(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// No test: a worker that dies.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a worker that dies"]
async fn dying_worker() {
    let (Ok(queue), Ok(store)) = (std::env::var(QUEUE), std::env::var(STORE)) else { return };
    let client = Client::connect(&config(&store)).await.unwrap();
    let dying = worker(Worker::new(&client).queue(queue));
    dying.run(std::future::pending()).await.unwrap();
}

/// No test: somebody who approves, and dies.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a decider that dies"]
async fn dying_decider() {
    let (Ok(id), Ok(store)) = (std::env::var(APPROVAL), std::env::var(STORE)) else { return };
    let client = Client::connect(&config(&store)).await.unwrap();
    approve(&client, &ApprovalId::parse(&id).unwrap()).await;
}

async fn died(mut process: Child) {
    let status = timeout(PATIENCE, process.wait()).await.expect("it reaches its place").unwrap();
    assert!(status.signal().is_some(), "it ended otherwise: {status}");
}

/// One task, and a store that no other test's worker sweeps.
struct Field {
    store: Server,
    queue: String,
    client: Client,
    ask: ApprovalId,
}

impl Field {
    /// A process of this test that is to die at `place`.
    fn dying(&self, role: &str, place: &str, variables: &[(&str, &str)]) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", role, "--ignored"])
            .envs([(PLACE, place), (STORE, self.store.url()), (QUEUE, &self.queue)])
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn dying_worker(&self, place: &str) -> Child {
        self.dying("dying_worker", place, &[])
    }

    async fn decider_dies(&self, place: &str) {
        shown(&self.client, &self.ask).await;
        died(self.dying("dying_decider", place, &[(APPROVAL, self.ask.as_str())])).await;
    }

    async fn heir(&self) -> Running {
        let build = |heir: Worker| worker(heir.queue(&self.queue)).concurrency(1);
        Running::start_with(&config(self.store.url()), build).await
    }

    /// Lets somebody die, and returns a worker that has what he has left.
    async fn fault(&self, dies: Dies, place: &str) -> Running {
        match dies {
            Dies::Parking => {
                died(self.dying_worker(place)).await;
                let heir = self.heir().await;
                approve(&self.client, &self.ask).await;
                return heir;
            }
            Dies::Holding => {
                let holding = self.dying("dying_worker", place, &[(HOLD, "")]);
                // No resume message comes: the hold is where the decision is heard first.
                self.decider_dies("decided").await;
                died(holding).await;
            }
            Dies::Resuming => {
                let resuming = self.dying_worker(place);
                approve(&self.client, &self.ask).await;
                died(resuming).await;
            }
            Dies::Expiring => died(self.dying_worker(place)).await,
            Dies::Deciding => {
                let heir = self.heir().await;
                self.decider_dies(place).await;
                return heir;
            }
            Dies::Sweeping => {
                let sweeping = self.dying_worker(place);
                self.decider_dies("decided").await;
                died(sweeping).await;
            }
        }
        self.heir().await
    }

    /// Runs a task without arguments behind whatever was sent for the one that is looked at.
    async fn settled(&self) {
        for queue in [self.queue.clone(), format!("{}.countersign-resume", self.queue)] {
            let last = self.client.enqueue(Pass {}).queue(queue).await.unwrap();
            last.result_within(PATIENCE).await.unwrap();
        }
    }

    async fn decisions(&self) -> usize {
        let about = ("approval".to_owned(), self.ask.to_string());
        let entries = self.client.audit_entries(100).await.unwrap();
        entries.iter().filter(|entry| entry.fields.contains(&about)).count()
    }

    /// Waits until the end of the task is noted and no resume message is left to be sent.
    async fn over(&self, id: &TaskId) {
        let mut redis = redis(self.store.url()).await;
        let key = format!("cs:park:{{cs}}:{id}");
        let noted = async {
            while redis.hget::<_, _, Option<String>>(&key, "ended").await.unwrap().is_none()
                || redis.exists("cs:outbox:{cs}").await.unwrap()
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, noted).await.expect("it is over");
        let open: Option<f64> = redis.zscore("cs:pending:{cs}", self.ask.as_str()).await.unwrap();
        assert_eq!(open, None, "it is still asked");
    }
}

/// How often the end of the handler may be run: once, if it was not running when somebody died. The
/// worker that sweeps may have begun to run what it has just sent.
fn most_runs(place: &str) -> usize {
    match place {
        "handler ran" | "outbox sent" => 2,
        RETRIED => 3,
        _ => 1,
    }
}

/// How often the last step may be done: once, unless the process died at no chosen place of the run. Then
/// it may have died between the step's effect and its record, and a step may run again until its result
/// is recorded.
fn most_captures(place: &str) -> usize {
    if place == "outbox sent" { 2 } else { 1 }
}

async fn ends_once(dies: Dies, place: &'static str) {
    let store = Server::redis().await;
    let client = Client::connect(&config(store.url())).await.unwrap();
    let mut effects = Effects::at(&servers().store_url).await;
    let id = TaskId::random();
    let mut ends = Ends::of(store.url(), &id).await;
    let field = Field { store, queue: queue_name(), client, ask: ApprovalId::of(&id, "pay", 0) };
    let seconds = if dies == Dies::Expiring { 2 } else { 24 * 60 * 60 };
    let task = Pay { list: effects.list.clone(), seconds, fails_once: place == RETRIED };
    let enqueued = field.client.enqueue(task).queue(&field.queue).id(id.as_str());
    let handle = enqueued.await.unwrap();
    if place == ACKED {
        field.client.enqueue(Pass {}).queue(&field.queue).await.unwrap();
    }

    let heir = field.fault(dies, place).await;
    let expected = if dies == Dies::Expiring { "expired" } else { "approved" };
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), expected);
    field.over(&id).await;
    field.settled().await;
    assert_eq!(ends.count().await, 1);
    let runs = effects.runs().await;
    assert_eq!(runs["reserved"], 1, "{runs:?}");
    assert!((1..=most_captures(place)).contains(&runs["captured"]), "{runs:?}");
    assert!(runs["resumed"] <= most_runs(place), "{runs:?}");
    assert_eq!(field.decisions().await, usize::from(dies != Dies::Expiring));
    heir.drain().await;
    field.client.close().await;
}

/// The terminal results of a task, as its waiters are told of them.
struct Ends {
    store_url: String,
    channel: String,
    told: PubSub,
}

impl Ends {
    async fn of(store_url: &str, id: &TaskId) -> Self {
        let channel = format!("celery-task-meta-{id}");
        let client = redis::Client::open(store_url).unwrap();
        let mut told = client.get_async_pubsub().await.unwrap();
        told.subscribe(&channel).await.unwrap();
        Self { store_url: store_url.to_owned(), channel, told }
    }

    /// How many there have been so far.
    async fn count(&mut self) -> usize {
        const LAST: &str = "null";
        let mut redis = redis(&self.store_url).await;
        let _: () = redis.publish(&self.channel, LAST).await.unwrap();
        let (mut count, mut told) = (0, self.told.on_message());
        loop {
            let text: String = told.next().await.unwrap().get_payload().unwrap();
            if text == LAST {
                return count;
            }
            let document: Value = serde_json::from_str(&text).unwrap();
            let state = document["status"].as_str().unwrap();
            count += usize::from(["SUCCESS", "FAILURE", "REVOKED"].contains(&state));
        }
    }
}

/// Takes the message of a queue that comes next, and keeps it as long as the channel is there.
async fn taken(queue: &str) -> (Connection, Channel) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&servers().broker_url, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let take = async {
        while channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, take).await.expect("it is given back");
    (connection, channel)
}

/// The worker dies before its first park is stored, and its message is late: the wake message comes
/// first, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_wake_that_comes_before_the_first_park_carries_the_task_on() {
    let store = Server::redis().await;
    let client = Client::connect(&config(store.url())).await.unwrap();
    let mut effects = Effects::at(&servers().store_url).await;
    let id = TaskId::random();
    let mut ends = Ends::of(store.url(), &id).await;
    let field = Field { store, queue: queue_name(), client, ask: ApprovalId::of(&id, "pay", 0) };
    let task = Pay { list: effects.list.clone(), seconds: 2, fails_once: false };
    let enqueued = field.client.enqueue(task).queue(&field.queue).id(id.as_str());
    let handle = enqueued.await.unwrap();
    died(field.dying_worker("wake confirmed")).await;
    let (late, _held) = taken(&field.queue).await;
    let heir = field.heir().await;
    assert_eq!(handle.result_within(PATIENCE).await.unwrap(), "expired");
    late.close(200, "".into()).await.unwrap();
    field.over(&id).await;
    field.settled().await;
    assert_eq!(ends.count().await, 1);
    let runs = effects.runs().await;
    assert_eq!((runs["reserved"], runs["captured"]), (1, 1), "{runs:?}");
    heir.drain().await;
    field.client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_somebody_dies_a_task_ends_once_by_one_decision() {
    let rows = futures_util::stream::iter(TABLE).map(|(dies, place)| async move {
        let survived = tokio::spawn(ends_once(*dies, place)).await;
        survived.err().map(|error| format!("{dies:?}, {place}: {error}"))
    });
    let failed: Vec<_> = rows.buffer_unordered(AT_ONCE).filter_map(async |row| row).collect().await;
    assert!(failed.is_empty(), "{failed:#?}");
}
