//! What a worker does while its database takes no writes: it ends when it is asked to, it does not
//! fill the log, and no accepted task is lost.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use countersign::{Arguments, Client, Config, Handle, TaskId};
use rusqlite::Connection;
use serde_json::Value;
use support::{DemoWorker, scratch};
use tokio::process::Command;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(120);
const QUEUE: &str = "faults";
const DEADLINE: Duration = Duration::from_secs(3);
/// What a drain may take beyond its deadline: 2 s for what is left to be written, twice, 2 s to close
/// the database, and time for a machine that does other things.
const SLACK: Duration = Duration::from_secs(12);

fn url(file: &Path) -> String {
    format!("sqlite:{}", file.display())
}

async fn client(file: &Path) -> Client {
    let mut config = Config::embedded(&url(file)).unwrap();
    config.publish_timeout = Duration::from_millis(500);
    Client::connect(&config).await.unwrap()
}

fn worker(file: &Path, name: &str, deadline: Duration) -> DemoWorker {
    let url = url(file);
    let variables = [("COUNTERSIGN_BROKER_URL", &*url), ("COUNTERSIGN_STORE_URL", &*url)];
    let deadline = format!("{}s", deadline.as_secs());
    DemoWorker::spawn(
        &["-Q", QUEUE, "-c", "4", "-n", name, "--drain-deadline", &deadline],
        &variables,
    )
}

async fn enqueue(client: &Client, count: usize) -> Vec<Handle<Value>> {
    let mut accepted = Vec::new();
    for _ in 0..count {
        let task = client.enqueue_named("demo.sleep", Arguments::of(&(1.0,)).unwrap());
        accepted.push(task.queue(QUEUE).await.unwrap());
    }
    accepted
}

/// Asks a worker to drain; it ends by its deadline.
async fn drains_in_time(worker: &mut DemoWorker) {
    let asked = Instant::now();
    worker.sigterm();
    worker.wait().await;
    assert!(asked.elapsed() < DEADLINE + SLACK, "{:?}\n{}", asked.elapsed(), worker.stderr());
}

/// A file system of four MiB, unmounted when it is dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where nobody may mount one.
    fn mount() -> Option<Self> {
        let folder = scratch();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&folder);
        mount.status().is_ok_and(|status| status.success()).then_some(Self(folder))
    }

    /// Writes until it takes no more.
    fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        ballast
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_a_full_disk_ends_by_its_drain_deadline_and_loses_nothing() {
    let Some(small) = Small::mount() else {
        return eprintln!("skipped: no small file system can be mounted here");
    };
    let file = small.0.join("tasks.db");
    let client = client(&file).await;
    let mut first = worker(&file, "full-disk", DEADLINE);
    first.ready().await;
    let accepted = enqueue(&client, 8).await;
    let ballast = small.fill();
    first.says("the disk is full").await;
    drains_in_time(&mut first).await;
    let warned = first.stderr().matches("the disk is full").count();
    assert!(warned < 100, "{warned} warnings:\n{}", first.stderr());
    std::fs::remove_file(ballast).unwrap();
    let heir = worker(&file, "full-disk", DEADLINE);
    for handle in accepted {
        handle.result_within(PATIENCE).await.unwrap();
    }
    drop(heir);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_worker_on_a_full_disk_long_before_its_deadline() {
    let Some(small) = Small::mount() else {
        return eprintln!("skipped: no small file system can be mounted here");
    };
    let file = small.0.join("tasks.db");
    let client = client(&file).await;
    let mut worker = worker(&file, "forced", PATIENCE);
    worker.ready().await;
    enqueue(&client, 8).await;
    let _ballast = small.fill();
    worker.says("the disk is full").await;
    worker.sigterm();
    worker.says("draining").await;
    // Two signals at the same moment may count as one.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let forced = Instant::now();
    worker.sigterm();
    worker.wait().await;
    assert!(forced.elapsed() < SLACK, "{:?}\n{}", forced.elapsed(), worker.stderr());
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_file_is_locked_ends_by_its_drain_deadline() {
    let file = scratch().join("tasks.db");
    let client = client(&file).await;
    let mut first = worker(&file, "locked", DEADLINE);
    first.ready().await;
    let accepted = enqueue(&client, 8).await;
    let other = Connection::open(&file).unwrap();
    other.busy_timeout(PATIENCE).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    first.says("another process keeps it locked").await;
    drains_in_time(&mut first).await;
    other.execute_batch("COMMIT").unwrap();
    let heir = worker(&file, "locked", DEADLINE);
    for handle in accepted {
        handle.result_within(PATIENCE).await.unwrap();
    }
    drop(heir);
    client.close().await;
}

/// A worker whose user may not write the file: to root every file is writable.
#[test]
fn a_file_that_is_read_only_is_refused_at_the_start() {
    let folder = PathBuf::from(format!("/tmp/countersign-{}", TaskId::random()));
    let (file, program) = (folder.join("tasks.db"), folder.join("demo"));
    std::fs::create_dir(&folder).unwrap();
    let demo = Path::new(env!("CARGO_BIN_EXE_countersign")).with_file_name("demo");
    std::fs::copy(demo, &program).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { client(&file).await.close().await });
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&file, 0o444);
    mode(&folder, 0o777);
    let mut command = std::process::Command::new(&program);
    let url = url(&file);
    command.env("COUNTERSIGN_BROKER_URL", &url).env("COUNTERSIGN_STORE_URL", &url);
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("it is read-only"), "{said}");
}

/// What a readiness probe answers.
async fn is_ready(name: &str, file: &Path) -> bool {
    let demo = Path::new(env!("CARGO_BIN_EXE_countersign")).with_file_name("demo");
    let mut probe = Command::new(demo);
    probe.args(["-n", name, "health"]).env("COUNTERSIGN_BROKER_URL", url(file));
    probe.env("COUNTERSIGN_STORE_URL", url(file));
    probe.output().await.unwrap().status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_file_is_deleted_or_replaced_says_so_and_takes_no_more_tasks() {
    for replaced in [false, true] {
        let file = scratch().join("tasks.db");
        let name = format!("gone-{}", TaskId::random());
        let client = client(&file).await;
        let mut worker = worker(&file, &name, DEADLINE);
        worker.ready().await;
        enqueue(&client, 1).await.remove(0).result_within(PATIENCE).await.unwrap();
        assert!(is_ready(&name, &file).await);
        if replaced {
            let copy = file.with_extension("copy");
            std::fs::copy(&file, &copy).unwrap();
            std::fs::rename(&copy, &file).unwrap();
        } else {
            std::fs::remove_file(&file).unwrap();
        }
        worker.says(if replaced { "was replaced" } else { "was deleted" }).await;
        let unready = async {
            while is_ready(&name, &file).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, unready).await.expect("it is not ready");
        let task = client.enqueue_named("demo.sleep", Arguments::of(&(0.0,)).unwrap());
        let error = task.queue(QUEUE).await.expect_err("nobody would see it");
        assert!(error.is_storage() && error.to_string().contains("restart"), "{error}");
        drains_in_time(&mut worker).await;
        client.close().await;
    }
}
