//! This version reads the state that an older version has written, and both versions run side by side
//! during a rolling deploy. `ops/test --upgrade COMMIT` builds the older binaries and names their folder in
//! `UPGRADE_FROM`.
//!
//! The oracle: each enqueued task ends once, as its kind and its decision require, and there are no dead
//! letters.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test panics when it fails")]

use std::collections::{HashMap, HashSet};
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign::approval::{ApprovalId, DecideResult};
use countersign::{Client, Config, TaskId};
use serde_json::{Value, json};
use support::{DemoWorker, TIMEOUT, binary, queue_name, scratch, servers};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
const REFUNDS: usize = 8;
/// A refund that requires an approval.
const CENTS: u64 = 50_000;

/// The binaries of one version.
struct Version {
    folder: PathBuf,
}

impl Version {
    fn old() -> Self {
        let folder = env::var("UPGRADE_FROM");
        Self { folder: folder.unwrap_or_else(|_| panic!("run it by ops/test --upgrade")).into() }
    }

    fn new() -> Self {
        let demo = binary("demo");
        Self { folder: demo.parent().unwrap().to_owned() }
    }

    fn binary(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// One queue on one backend, and both versions.
struct Fixture {
    broker_url: String,
    store_url: String,
    queue: String,
    client: Client,
    old: Version,
    new: Version,
}

impl Fixture {
    async fn on_servers() -> Self {
        let servers = servers();
        Self::on(&servers.broker_url, &servers.store_url).await
    }

    /// The older version creates the file.
    async fn on_a_file(file: &Path) -> Self {
        let url = format!("sqlite:{}", file.display());
        let old = Version::old();
        let mut make = Command::new(old.binary("countersign"));
        make.arg("queues").env("COUNTERSIGN_BROKER_URL", &url).env("COUNTERSIGN_STORE_URL", &url);
        let made = make.output().await.unwrap();
        assert!(made.status.success(), "{made:?}");
        Self::on(&url, &url).await
    }

    async fn on(broker_url: &str, store_url: &str) -> Self {
        let config = Config::new(broker_url, store_url).unwrap();
        Self {
            broker_url: broker_url.to_owned(),
            store_url: store_url.to_owned(),
            queue: queue_name(),
            client: Client::connect(&config).await.unwrap(),
            old: Version::old(),
            new: Version::new(),
        }
    }

    fn command(&self, version: &Version, name: &str) -> Command {
        let mut command = Command::new(version.binary(name));
        command.env("COUNTERSIGN_BROKER_URL", &self.broker_url);
        command.env("COUNTERSIGN_STORE_URL", &self.store_url);
        command.kill_on_drop(true);
        command
    }

    async fn worker(&self, version: &Version) -> DemoWorker {
        let mut command = self.command(version, "demo");
        command.args(["-Q", &self.queue, "-c", "8"]);
        let worker = DemoWorker::start(command);
        worker.ready().await;
        worker
    }

    /// Enqueues a task with the command line of a version.
    async fn run(&self, version: &Version, task: &str, more: &[&str]) -> TaskId {
        let mut command = self.command(version, "countersign");
        command.args(["-o", "jsonl", "run", task, "-Q", &self.queue]).args(more);
        let output = command.output().await.unwrap();
        let sent: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        TaskId::from(sent["id"].as_str().unwrap_or_else(|| panic!("no id: {sent}")))
    }

    async fn refund(&self, version: &Version, order: usize) -> TaskId {
        let cents = CENTS.to_string();
        self.run(version, "demo.refund", &[&format!("order-{order}"), &cents]).await
    }

    /// Decides with the command line of a version; the decision must count.
    async fn decide(&self, version: &Version, verb: &str, id: &ApprovalId) {
        let mut get = self.command(version, "countersign");
        let got =
            get.args(["-o", "jsonl", "approvals", "get", id.as_str()]).output().await.unwrap();
        let got: Value = serde_json::from_slice(&got.stdout)
            .unwrap_or_else(|error| panic!("get {id}: {error}: {got:?}"));
        let digest = got["digest"].as_str().unwrap_or_else(|| panic!("no digest: {got}"));
        let mut command = self.command(version, "countersign");
        command.args(["approvals", verb, id.as_str(), "--by", "ana"]);
        match verb {
            "approve" => command.args(["--yes", "--digest", digest]),
            _ => command.args(["--message", "no"]),
        };
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{verb} {id}: {output:?}");
    }

    /// Waits until these tasks have `count` open requests; returns the requests by task.
    async fn requests(&self, tasks: &[TaskId], count: usize) -> HashMap<TaskId, ApprovalId> {
        let waiting = async {
            loop {
                let open = self.open(tasks).await;
                if open.len() >= count {
                    return open;
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        timeout(TIMEOUT, waiting).await.unwrap_or_else(|_| panic!("fewer than {count} requests"))
    }

    async fn open(&self, tasks: &[TaskId]) -> HashMap<TaskId, ApprovalId> {
        let pending = self.client.pending_approvals(1000).await.unwrap();
        assert!(pending.unreadable.is_empty(), "{:?}", pending.unreadable);
        let of_tasks = pending.requests.into_iter().filter_map(|record| {
            let task = record.request.task.clone()?;
            tasks.contains(&task).then_some((task, record.request.id))
        });
        of_tasks.collect()
    }

    async fn result(&self, id: &TaskId) -> Result<Value, countersign::Error> {
        self.client.handle::<Value>(id.clone()).result_within(TIMEOUT).await
    }

    async fn ends_as_refunded(&self, id: &TaskId, order: usize) {
        let expected =
            format!("refunded {CENTS} cents for order-{order} (hold-order-{order}-{CENTS})");
        assert_eq!(self.result(id).await.unwrap(), json!(expected), "{id}");
    }

    async fn no_dead_letters(&self) {
        assert_eq!(self.client.dead_letters(&self.queue).count().await.unwrap(), 0);
    }
}

async fn drain(mut worker: DemoWorker) {
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0), "{}", worker.stderr());
}

/// The older version writes all state; then this version continues with it.
async fn reads_the_state(fixture: Fixture) {
    let Fixture { old, new, client, .. } = &fixture;
    let worker = fixture.worker(old).await;
    let mut refunds = Vec::new();
    for order in 0..REFUNDS {
        refunds.push(fixture.refund(old, order).await);
    }
    let sum = fixture.run(old, "demo.add", &["2", "3"]).await;
    assert_eq!(fixture.result(&sum).await.unwrap(), json!(5));
    let retried = fixture.run(old, "demo.retry", &["2", "3.0"]).await;
    let requests = fixture.requests(&refunds, REFUNDS).await;
    drain(worker).await;
    let delayed = fixture.run(old, "demo.echo", &["later", "--delay", "3s"]).await;
    let queued = fixture.run(old, "demo.add", &["20", "30"]).await;
    let request = |order: usize| &requests[&refunds[order]];
    fixture.decide(old, "approve", request(0)).await;
    fixture.decide(old, "reject", request(1)).await;
    let record = client.approval(request(2)).await.unwrap();
    assert_eq!(client.decide(&record.approve("ana")).await.unwrap(), DecideResult::Applied);

    let worker = fixture.worker(new).await;
    fixture.decide(old, "approve", request(3)).await;
    fixture.decide(new, "approve", request(4)).await;
    fixture.decide(new, "reject", request(5)).await;
    for order in [0, 2, 3, 4] {
        fixture.ends_as_refunded(&refunds[order], order).await;
    }
    for order in [1, 5] {
        let error = fixture.result(&refunds[order]).await.unwrap_err();
        assert!(error.to_string().contains("refused by ana"), "{error}");
    }
    assert_eq!(fixture.result(&sum).await.unwrap(), json!(5), "the stored result");
    assert_eq!(fixture.result(&retried).await.unwrap(), json!(2));
    fixture.result(&delayed).await.unwrap();
    assert_eq!(fixture.result(&queued).await.unwrap(), json!(50));
    // Suspended by the older version, and resumed after a restart of the newer one.
    drain(worker).await;
    let worker = fixture.worker(new).await;
    for order in [6, 7] {
        fixture.decide(new, "approve", request(order)).await;
        fixture.ends_as_refunded(&refunds[order], order).await;
    }
    drain(worker).await;
    fixture.no_dead_letters().await;
    client.close().await;
}

/// Both versions consume one queue, and both producers enqueue to it.
async fn roll(fixture: Fixture) {
    let Fixture { old, new, client, .. } = &fixture;
    let old_workers = [fixture.worker(old).await, fixture.worker(old).await];
    let mut new_workers = vec![fixture.worker(new).await];
    let (mut refunds, mut others) = (Vec::new(), Vec::new());
    for order in 0..REFUNDS {
        for version in [old, new] {
            refunds.push((fixture.refund(version, order).await, order));
            others.push((fixture.run(version, "demo.add", &["2", "3"]).await, json!(5)));
            others.push((fixture.run(version, "demo.retry", &["1", "0.5"]).await, json!(1)));
        }
    }
    let tasks: Vec<_> = refunds.iter().map(|(id, _)| id.clone()).collect();
    let half = fixture.requests(&tasks, tasks.len()).await;
    for id in half.values().take(REFUNDS) {
        fixture.decide(new, "approve", id).await;
    }
    for worker in old_workers {
        drain(worker).await;
        new_workers.push(fixture.worker(new).await);
    }
    // A task of the newer version requests its approval again when the older version has resumed it.
    let mut open: HashSet<_> = tasks.iter().cloned().collect();
    let deciding = async {
        while !open.is_empty() {
            for id in fixture.open(&tasks).await.into_values() {
                let record = client.approval(&id).await.unwrap();
                client.decide(&record.approve("ana")).await.unwrap();
            }
            let mut ended = Vec::new();
            for id in &open {
                let status = client.status(id).await.unwrap();
                if status.is_some_and(|document| document.state.is_terminal()) {
                    ended.push(id.clone());
                }
            }
            open.retain(|id| !ended.contains(id));
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(TIMEOUT, deciding).await.unwrap_or_else(|_| panic!("tasks do not end"));
    for (id, order) in &refunds {
        fixture.ends_as_refunded(id, *order).await;
    }
    for (id, expected) in others {
        assert_eq!(fixture.result(&id).await.unwrap(), expected);
    }
    for worker in new_workers {
        drain(worker).await;
    }
    fixture.no_dead_letters().await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "upgrade: needs the binaries of an older version"]
async fn upgrade_reads_the_state_of_an_older_version_on_servers() {
    reads_the_state(Fixture::on_servers().await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "upgrade: needs the binaries of an older version"]
async fn upgrade_reads_the_state_of_an_older_version_in_a_file() {
    reads_the_state(Fixture::on_a_file(&scratch().join("queue.db")).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "upgrade: needs the binaries of an older version"]
async fn upgrade_rolls_on_servers() {
    roll(Fixture::on_servers().await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "upgrade: needs the binaries of an older version"]
async fn upgrade_rolls_on_a_file() {
    roll(Fixture::on_a_file(&scratch().join("queue.db")).await).await;
}
