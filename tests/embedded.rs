//! One file instead of servers, and what can happen to it.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test panics when it fails")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use countersign::approval::Answer;
use countersign::{ApprovalId, Arguments, Client, Config, Handle, TaskId};
use rusqlite::Connection;
use serde_json::{Value, json};
use support::{DemoWorker, scratch};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(120);
const QUEUE: &str = "embedded";
/// Tells a child of this test which file to use.
const FILE: &str = "COUNTERSIGN_TEST_DATABASE";
const KILLS: usize = 100;
/// A producer is killed after so many tasks that it knows to be accepted, and a worker with it.
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

/// A child of this test: one of the tests below that are none.
fn child(role: &str, file: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", role, "--ignored", "--nocapture"])
        .env(FILE, file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// No test: somebody who enqueues, says what was accepted, and is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a producer that is killed"]
async fn producing() {
    let Ok(file) = std::env::var(FILE) else { return };
    let client = client(Path::new(&file)).await;
    loop {
        let echo = client.enqueue_named("demo.echo", Arguments::of(&("hi",)).unwrap());
        let handle = echo.queue(QUEUE).await.unwrap();
        println!("accepted {}", handle.id());
    }
}

/// No test: somebody who has the lock, says so, and is killed.
#[test]
#[ignore = "a process that is killed while it writes"]
fn locking() {
    let Ok(file) = std::env::var(FILE) else { return };
    let connection = Connection::open(file).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE; DELETE FROM messages").unwrap();
    println!("locked");
    std::thread::park();
}

/// Reads what a child says; each line that begins with `word` without that word.
async fn says(child: &mut Child, word: &str, lines: usize) -> Vec<String> {
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    while said.len() < lines {
        let line = timeout(PATIENCE, output.next_line()).await.expect("it says it").unwrap();
        let line = line.expect("it lives");
        // The harness writes on the same lines.
        if let Some((_, rest)) = line.split_once(word) {
            said.push(rest.trim().to_owned());
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_under_load_every_accepted_task_ends() {
    let file = scratch().join("tasks.db");
    let mut accepted = BTreeSet::new();
    let first = client(&file).await;
    for _ in 0..KILLS {
        let (mut producer, mut worker) = (child("producing", &file), worker(&file));
        accepted.extend(says(&mut producer, "accepted ", ACCEPTED).await);
        worker.kill9().await;
        producer.kill().await.unwrap();
    }
    assert!(accepted.len() >= KILLS * ACCEPTED);
    let heir = worker(&file);
    for id in accepted {
        let handle: Handle<Value> = first.handle(&*id);
        let echo = handle.result_within(PATIENCE).await;
        assert_eq!(echo.unwrap()["args"], json!(["hi"]), "{id}");
    }
    drop(heir);
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
    let mut rings = client.backends().store.questions();
    let mut worker = worker(&file);
    let refund = Arguments::of(&("o-1", 20_000)).unwrap();
    let id = TaskId::random();
    let handle = client.enqueue_named("demo.refund", refund).queue(QUEUE).id(id.as_str());
    let handle = handle.await.unwrap();
    let question = ApprovalId::of(&id, "over-limit", 0);
    timeout(PATIENCE, async { while rings.recv().await.unwrap() != Some(question.clone()) {} })
        .await
        .expect("the question of another process rings here");
    let digest = client.approval(&question).await.unwrap().question.digest();
    let approve = Command::new(env!("CARGO_BIN_EXE_countersign"))
        .args(["--broker", &url(&file), "approvals", "approve", question.as_str()])
        .args(["--by", "ana", "--yes", "--digest", digest.as_str()])
        .env_remove("COUNTERSIGN_STORE_URL")
        .output();
    let output = timeout(PATIENCE, approve).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let receipt: Value = handle.result_within(PATIENCE).await.unwrap();
    assert!(receipt.as_str().unwrap().contains("refunded 20000 cents"), "{receipt}");
    let late = client.approval(&question).await.unwrap();
    let answer = client.decide(&late.reject("ben", "too late")).await.unwrap();
    assert!(matches!(answer, Answer::AlreadyDecided { ref by, .. } if by == "ana"), "{answer:?}");
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_with_the_lock_in_his_hands_locks_nobody_out() {
    let file = scratch().join("tasks.db");
    let client = client(&file).await;
    let echo = || client.enqueue_named("demo.echo", Arguments::default()).queue(QUEUE);
    echo().await.unwrap();
    let mut locking = child("locking", &file);
    says(&mut locking, "locked", 1).await;
    let mut enqueuing = tokio::spawn(echo().into_future());
    assert!(futures_util::poll!(&mut enqueuing).is_pending());
    locking.kill().await.unwrap();
    timeout(PATIENCE, enqueuing).await.expect("the lock is free").unwrap().unwrap();
    let state = client.backends().broker.inspect(QUEUE).await.unwrap().unwrap();
    assert_eq!(state.ready, 2, "what the dead process was about to delete is there");
}

async fn refused(file: &Path) -> countersign::Error {
    Client::connect(&config(file)).await.expect_err("it is refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_ours_is_refused_and_left_as_it_is() {
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
    assert!(error.is_storage() && error.to_string().contains("make it first"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_process_has_migrated_is_written_no_more() {
    let file = scratch().join("tasks.db");
    let client = client(&file).await;
    let echo = || client.enqueue_named("demo.echo", Arguments::default()).queue(QUEUE);
    echo().await.unwrap();
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = echo().await.expect_err("it is not understood any more");
    assert!(error.is_storage() && error.to_string().contains("restart this one"), "{error}");
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 1).unwrap();
    echo().await.unwrap();
}

/// As a user who may write nothing there: to root every file is writable.
#[test]
fn a_file_that_is_read_only_is_said_to_be_so() {
    let folder = PathBuf::from(format!("/tmp/countersign-{}", TaskId::random()));
    let (file, program) = (folder.join("tasks.db"), folder.join("countersign"));
    std::fs::create_dir(&folder).unwrap();
    Connection::open(&file).unwrap().execute_batch("PRAGMA user_version = 0; VACUUM").unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_countersign"), &program).unwrap();
    let readable = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    readable(&file, 0o444);
    readable(&folder, 0o555);
    let mut command = std::process::Command::new(&program);
    command.args(["dev", "--db"]).arg(&file).env("HOME", &folder);
    // Nobody, if we may choose.
    let is_root = std::fs::metadata("/proc/self").unwrap();
    if std::os::unix::fs::MetadataExt::uid(&is_root) == 0 {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    readable(&folder, 0o755);
    std::fs::remove_dir_all(&folder).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(74), "{said}");
    assert!(said.contains("read-only"), "{said}");
}

/// A file system of one MiB, unmounted when it is dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where nobody may mount one.
    fn mount() -> Option<Self> {
        let folder = scratch();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&folder);
        mount.status().is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_to_be_full_and_loses_nothing() {
    let Some(small) = Small::mount() else {
        return eprintln!("skipped: no small file system can be mounted here");
    };
    let file = small.0.join("tasks.db");
    let mut config = config(&file);
    config.publish_timeout = Duration::from_millis(300);
    let client = Client::connect(&config).await.unwrap();
    let ballast = small.0.join("ballast");
    std::fs::write(&ballast, vec![0; 256 * 1024]).unwrap();
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
    let told = error.to_string();
    assert!(error.is_connection() && told.contains("tasks.db: the disk is full"), "{told}");
    let ready = async || client.backends().broker.inspect(QUEUE).await.unwrap().unwrap().ready;
    assert_eq!(ready().await, accepted);
    std::fs::remove_file(ballast).unwrap();
    echo().await.unwrap();
    assert_eq!(ready().await, accepted + 1);
    client.close().await;
}
