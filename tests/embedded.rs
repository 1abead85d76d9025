//! The embedded backend, one file without servers, and its failure modes.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use countersign::approval::DecideResult;
use countersign::{ApprovalId, Arguments, Client, Config, Handle, TaskId};
use rusqlite::Connection;
use serde_json::{Value, json};
use support::roles::produce::QUEUE;
use support::{DemoWorker, TIMEOUT, roles, scratch};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const KILLS: usize = 100;
/// A producer and a worker are killed when the producer knows that this number of tasks is accepted.
const ACCEPTED: usize = 5;

fn url(file: &Path) -> String {
    format!("sqlite:{}", file.display())
}

fn config(file: &Path) -> Config {
    Config::embedded(&url(file)).unwrap()
}

async fn client(file: &Path) -> Client {
    Client::connect(&config(file)).await.unwrap()
}

fn worker(file: &Path) -> DemoWorker {
    let url = url(file);
    let variables = [("COUNTERSIGN_BROKER_URL", &*url), ("COUNTERSIGN_STORE_URL", &*url)];
    DemoWorker::spawn(&["-Q", QUEUE, "-c", "4"], &variables)
}

/// Starts a process with this role, whose output is piped.
fn child(role: &str, file: &Path) -> Child {
    roles::command(role, &[file]).stdout(Stdio::piped()).spawn().unwrap()
}

/// Reads a child's output until `lines` lines contain `word`; returns the text after `word` of each.
async fn read_lines(child: &mut Child, word: &str, lines: usize) -> Vec<String> {
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut found = Vec::new();
    while found.len() < lines {
        let line =
            timeout(TIMEOUT, output.next_line()).await.expect("the child prints a line").unwrap();
        let line = line.expect("the process runs");
        if let Some(rest) = line.strip_prefix(word) {
            found.push(rest.trim().to_owned());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_task_ends_though_processes_are_killed() {
    let file = scratch().join("tasks.db");
    let mut accepted = BTreeSet::new();
    let first = client(&file).await;
    for _ in 0..KILLS {
        let (mut producer, mut worker) = (child("produce", &file), worker(&file));
        accepted.extend(read_lines(&mut producer, "accepted ", ACCEPTED).await);
        worker.kill9().await;
        producer.kill().await.unwrap();
    }
    assert!(accepted.len() >= KILLS * ACCEPTED);
    let successor = worker(&file);
    for id in accepted {
        let handle: Handle<Value> = first.handle(&*id);
        let echo = handle.result_within(TIMEOUT).await;
        assert_eq!(echo.unwrap()["args"], json!(["hi"]), "{id}");
    }
    drop(successor);
    first.close().await;
    let sound: String = Connection::open(&file)
        .unwrap()
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sound, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_a_worker_and_an_approver_are_three_processes() {
    let file = scratch().join("tasks.db");
    let client = client(&file).await;
    let mut notifications = client.backends().store.new_requests();
    let mut worker = worker(&file);
    let refund = Arguments::of(&("o-1", 20_000)).unwrap();
    let id = TaskId::random();
    let handle = client.enqueue_named("demo.refund", refund).queue(QUEUE).id(id.as_str());
    let handle = handle.await.unwrap();
    let request = ApprovalId::of(&id, "over-limit", 0);
    timeout(TIMEOUT, async {
        while notifications.recv().await.unwrap() != Some(request.clone()) {}
    })
    .await
    .expect("the request of another process is announced here");
    let digest = client.approval(&request).await.unwrap().request.digest();
    let approve = Command::new(support::binary("countersign"))
        .args(["--broker", &url(&file), "approvals", "approve", request.as_str()])
        .args(["--by", "ana", "--yes", "--digest", digest.as_str()])
        .env_remove("COUNTERSIGN_STORE_URL")
        .output();
    let output = timeout(TIMEOUT, approve).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let receipt: Value = handle.result_within(TIMEOUT).await.unwrap();
    assert!(receipt.as_str().unwrap().contains("refunded 20000 cents"), "{receipt}");
    let late = client.approval(&request).await.unwrap();
    let result = client.decide(&late.reject("ben", "too late")).await.unwrap();
    assert!(
        matches!(result, DecideResult::AlreadyDecided { ref by, .. } if by == "ana"),
        "{result:?}"
    );
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_while_it_holds_the_lock_releases_it() {
    let file = scratch().join("tasks.db");
    let client = client(&file).await;
    let echo = || client.enqueue_named("demo.echo", Arguments::default()).queue(QUEUE);
    echo().await.unwrap();
    let mut locking = child("lock", &file);
    read_lines(&mut locking, "locked", 1).await;
    let mut enqueuing = tokio::spawn(echo().into_future());
    assert!(futures_util::poll!(&mut enqueuing).is_pending());
    locking.kill().await.unwrap();
    timeout(TIMEOUT, enqueuing).await.expect("the lock is free").unwrap().unwrap();
    let state = client.backends().broker.inspect(QUEUE).await.unwrap().unwrap();
    assert_eq!(state.ready, 2, "the delete of the dead process was rolled back");
}

async fn refused(file: &Path) -> countersign::Error {
    Client::connect(&config(file)).await.expect_err("the file is refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_file_is_refused_and_not_changed() {
    let folder = scratch();
    let foreign = folder.join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    let error = refused(&foreign).await;
    assert!(error.is_config() && error.to_string().contains("another program"), "{error}");
    assert_eq!(std::fs::read(&foreign).unwrap(), before);

    let newer = folder.join("newer.db");
    client(&newer).await.close().await;
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = refused(&newer).await;
    assert!(error.is_config() && error.to_string().contains("newer Countersign"), "{error}");

    let damaged = folder.join("damaged.db");
    let mut bytes = b"SQLite format 3\0".to_vec();
    bytes.extend([0xa5; 8192]);
    std::fs::write(&damaged, &bytes).unwrap();
    let error = refused(&damaged).await;
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!(std::fs::read(&damaged).unwrap(), bytes);

    let absent = folder.join("absent/tasks.db");
    let error = refused(&absent).await;
    assert!(error.is_storage() && error.to_string().contains("create it first"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_migrated_by_a_newer_process_is_not_written() {
    let file = scratch().join("tasks.db");
    let client = client(&file).await;
    let echo = || client.enqueue_named("demo.echo", Arguments::default()).queue(QUEUE);
    echo().await.unwrap();
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = echo().await.expect_err("the file is of a newer version");
    assert!(error.is_storage() && error.to_string().contains("upgrade this process"), "{error}");
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 1).unwrap();
    echo().await.unwrap();
}

/// Runs as a user without write permission, because root can write to every file.
#[test]
fn a_read_only_file_is_reported() {
    let folder = PathBuf::from(format!("/tmp/countersign-{}", TaskId::random()));
    let (file, program) = (folder.join("tasks.db"), folder.join("countersign"));
    std::fs::create_dir(&folder).unwrap();
    Connection::open(&file).unwrap().execute_batch("PRAGMA user_version = 0; VACUUM").unwrap();
    std::fs::copy(support::binary("countersign"), &program).unwrap();
    let readable = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    readable(&file, 0o444);
    readable(&folder, 0o555);
    let mut command = std::process::Command::new(&program);
    command.args(["dev", "--db"]).arg(&file).env("HOME", &folder);
    // The user `nobody`, if this process may switch users.
    let is_root = std::fs::metadata("/proc/self").unwrap();
    if std::os::unix::fs::MetadataExt::uid(&is_root) == 0 {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    readable(&folder, 0o755);
    std::fs::remove_dir_all(&folder).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(74), "{stderr}");
    assert!(stderr.contains("read-only"), "{stderr}");
}

/// A file system of one MiB, unmounted when it is dropped.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    /// Returns `None` if this process may not mount a file system.
    fn mount() -> Option<Self> {
        let folder = scratch();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&folder);
        mount.status().is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_reported_and_loses_nothing() {
    let Some(disk) = SmallFileSystem::mount() else {
        return support::skip("no small file system can be mounted");
    };
    let file = disk.0.join("tasks.db");
    let mut config = config(&file);
    config.publish_timeout = Duration::from_secs(1);
    let client = Client::connect(&config).await.unwrap();
    let filler = disk.0.join("filler");
    std::fs::write(&filler, vec![0; 256 * 1024]).unwrap();
    let text = "x".repeat(32 * 1024);
    let echo = || {
        let arguments = Arguments::of(&(&text,)).unwrap();
        client.enqueue_named("demo.echo", arguments).queue(QUEUE)
    };
    let mut accepted = 0_u64;
    let error = loop {
        match echo().await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    let message = error.to_string();
    assert!(error.is_connection() && message.contains("tasks.db: the disk is full"), "{message}");
    let ready = async || client.backends().broker.inspect(QUEUE).await.unwrap().unwrap().ready;
    assert_eq!(ready().await, accepted);
    std::fs::remove_file(filler).unwrap();
    echo().await.unwrap();
    assert_eq!(ready().await, accepted + 1);
    client.close().await;
}
