//! A worker whose database accepts no writes still drains on SIGTERM, does not flood the log, and loses no
//! accepted task.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use countersign::{Arguments, Client, Config, Handle, TaskId};
use rusqlite::Connection;
use serde_json::Value;
use support::{DemoWorker, TIMEOUT, scratch};
use tokio::process::Command;
use tokio::time::timeout;

const QUEUE: &str = "faults";
const DEADLINE: Duration = Duration::from_secs(3);
/// The time that a drain may take beyond its deadline: twice 2 s for the remaining writes, 2 s to close
/// the database, and a margin for a busy machine.
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

/// Sends SIGTERM to a worker, and checks that it ends by its drain deadline.
async fn drains_in_time(worker: &mut DemoWorker) {
    let signalled = Instant::now();
    worker.sigterm();
    worker.wait().await;
    assert!(
        signalled.elapsed() < DEADLINE + SLACK,
        "{:?}\n{}",
        signalled.elapsed(),
        worker.stderr()
    );
}

/// A file system of four MiB, unmounted when it is dropped.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    /// Returns `None` if this process may not mount a file system.
    fn mount() -> Option<Self> {
        let folder = scratch();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&folder);
        mount.status().is_ok_and(|status| status.success()).then_some(Self(folder))
    }

    /// Writes a file until the file system is full.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        filler
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_on_a_full_disk_ends_by_its_drain_deadline_and_loses_nothing() {
    let Some(disk) = SmallFileSystem::mount() else {
        return support::skip("no small file system can be mounted");
    };
    let file = disk.0.join("tasks.db");
    let client = client(&file).await;
    let mut first = worker(&file, "full-disk", DEADLINE);
    first.ready().await;
    let accepted = enqueue(&client, 8).await;
    let filler = disk.fill();
    first.wait_for_log("the disk is full").await;
    drains_in_time(&mut first).await;
    let warned = first.stderr().matches("the disk is full").count();
    assert!(warned < 100, "{warned} warnings:\n{}", first.stderr());
    std::fs::remove_file(filler).unwrap();
    let successor = worker(&file, "full-disk", DEADLINE);
    for handle in accepted {
        handle.result_within(TIMEOUT).await.unwrap();
    }
    drop(successor);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_worker_on_a_full_disk_long_before_its_deadline() {
    let Some(disk) = SmallFileSystem::mount() else {
        return support::skip("no small file system can be mounted");
    };
    let file = disk.0.join("tasks.db");
    let client = client(&file).await;
    let mut worker = worker(&file, "forced", TIMEOUT);
    worker.ready().await;
    enqueue(&client, 8).await;
    let _filler = disk.fill();
    worker.wait_for_log("the disk is full").await;
    worker.sigterm();
    worker.wait_for_log("draining").await;
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
    other.busy_timeout(TIMEOUT).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    first.wait_for_log("another process has locked it").await;
    drains_in_time(&mut first).await;
    other.execute_batch("COMMIT").unwrap();
    let successor = worker(&file, "locked", DEADLINE);
    for handle in accepted {
        handle.result_within(TIMEOUT).await.unwrap();
    }
    drop(successor);
    client.close().await;
}

/// Runs the worker as a user without write permission, because root can write to every file.
#[test]
fn a_read_only_file_is_refused_at_start() {
    let folder = PathBuf::from(format!("/tmp/countersign-{}", TaskId::random()));
    let (file, program) = (folder.join("tasks.db"), folder.join("demo"));
    std::fs::create_dir(&folder).unwrap();
    let demo = support::binary("demo");
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
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(stderr.contains("it is read-only"), "{stderr}");
}

/// Returns whether the readiness probe of the worker succeeds.
async fn is_ready(name: &str, file: &Path) -> bool {
    let demo = support::binary("demo");
    let mut probe = Command::new(demo);
    probe.args(["-n", name, "health"]).env("COUNTERSIGN_BROKER_URL", url(file));
    probe.env("COUNTERSIGN_STORE_URL", url(file));
    probe.output().await.unwrap().status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_file_is_deleted_or_replaced_logs_it_and_takes_no_more_tasks() {
    for replaced in [false, true] {
        let file = scratch().join("tasks.db");
        let name = format!("gone-{}", TaskId::random());
        let client = client(&file).await;
        let mut worker = worker(&file, &name, DEADLINE);
        worker.ready().await;
        enqueue(&client, 1).await.remove(0).result_within(TIMEOUT).await.unwrap();
        assert!(is_ready(&name, &file).await);
        if replaced {
            let copy = file.with_extension("copy");
            std::fs::copy(&file, &copy).unwrap();
            std::fs::rename(&copy, &file).unwrap();
        } else {
            std::fs::remove_file(&file).unwrap();
        }
        worker.wait_for_log(if replaced { "was replaced" } else { "was deleted" }).await;
        let unready = async {
            while is_ready(&name, &file).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(TIMEOUT, unready).await.expect("the worker is not ready");
        let task = client.enqueue_named("demo.sleep", Arguments::of(&(0.0,)).unwrap());
        let error = task.queue(QUEUE).await.expect_err("the task would be lost");
        assert!(error.is_storage() && error.to_string().contains("restart"), "{error}");
        drains_in_time(&mut worker).await;
        client.close().await;
    }
}
