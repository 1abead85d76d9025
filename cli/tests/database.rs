//! The file of the embedded backend: its permissions, its completeness when no process has it open,
//! and what `countersign db` does with it.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use countersign::{Arguments, Client, Config};
use rusqlite::Connection;
use serde_json::Value;
use support::{DemoWorker, TIMEOUT, scratch};
use tokio::process::Command;
use tokio::time::timeout;

const QUEUE: &str = "database";

fn url(file: &Path) -> String {
    format!("sqlite:{}", file.display())
}

async fn client(file: &Path) -> Client {
    Client::connect(&Config::embedded(&url(file)).unwrap()).await.unwrap()
}

async fn enqueue(client: &Client, text: &str, count: usize) {
    for _ in 0..count {
        let echo = client.enqueue_named("demo.echo", Arguments::of(&(text,)).unwrap());
        echo.queue(QUEUE).await.unwrap();
    }
}

async fn ready(file: &Path) -> u64 {
    let client = client(file).await;
    let state = client.backends().broker.inspect(QUEUE).await.unwrap();
    client.close().await;
    state.map_or(0, |state| state.ready)
}

async fn countersign(broker: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.args(["--broker", broker, "--store", broker, "-o", "jsonl"]).args(arguments);
    timeout(TIMEOUT, command.output()).await.unwrap().unwrap()
}

/// Runs a command on this file; returns its exit code, its records and its standard error.
async fn db(file: &Path, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let output = countersign(&url(file), &[&["db"], arguments].concat()).await;
    let lines = String::from_utf8(output.stdout).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.code(), records, String::from_utf8(output.stderr).unwrap())
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_database_is_one_file() {
    let folder = scratch();
    let (file, copy) = (folder.join("tasks.db"), folder.join("copy.db"));
    let (first, second) = (client(&file).await, client(&file).await);
    enqueue(&first, "hi", 3).await;
    first.close().await;
    enqueue(&second, "hi", 2).await;
    second.close().await;
    std::fs::copy(&file, &copy).unwrap();
    assert_eq!(ready(&copy).await, 5);
    assert!(!folder.join("tasks.db-wal").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_database_is_readable_only_by_its_owner() {
    let folder = scratch();
    let file = folder.join("tasks.db");
    let client = client(&file).await;
    enqueue(&client, "hi", 1).await;
    for name in ["tasks.db", "tasks.db-wal", "tasks.db-shm"] {
        assert_eq!(mode(&folder.join(name)), 0o600, "{name}");
    }
    client.close().await;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    ready(&file).await;
    assert_eq!(mode(&file), 0o640, "the mode of an existing file does not change");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_use_is_backed_up_completely() {
    let folder = scratch();
    let (file, backup) = (folder.join("tasks.db"), folder.join("backup.db"));
    let client = client(&file).await;
    enqueue(&client, "hi", 7).await;
    let name = backup.to_str().unwrap();
    let (code, records, stderr) = db(&file, &["backup", name]).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(records[0]["bytes"], std::fs::metadata(&backup).unwrap().len());
    assert_eq!((ready(&backup).await, mode(&backup)), (7, 0o600));
    assert_eq!(db(&backup, &["check"]).await.0, Some(0));

    let before = std::fs::read(&backup).unwrap();
    let (code, _, stderr) = db(&file, &["backup", name]).await;
    assert_eq!(code, Some(74), "{stderr}");
    assert!(stderr.contains("backup.db: it exists: name a new file"), "{stderr}");
    assert_eq!(std::fs::read(&backup).unwrap(), before);
    let absent = folder.join("absent/backup.db");
    assert_eq!(db(&file, &["backup", absent.to_str().unwrap()]).await.0, Some(74));
    let parts = std::fs::read_dir(&folder).unwrap().map(|it| it.unwrap().file_name());
    assert_eq!(parts.filter(|name| name.to_string_lossy().contains(".part")).count(), 0);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_each_failed_invariant() {
    let file = scratch().join("tasks.db");
    let client = client(&file).await;
    enqueue(&client, "hi", 2).await;
    client.close().await;
    let (code, checked, stderr) = db(&file, &["check"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(checked.len() > 3 && checked.iter().all(|it| it["ok"] == true), "{checked:?}");
    let direct = Connection::open(&file).unwrap();
    direct.execute_batch("UPDATE messages SET holder = 7, queue = 99").unwrap();
    direct.close().unwrap();
    let (code, checked, _) = db(&file, &["check"]).await;
    assert_eq!(code, Some(1));
    let failed: Vec<_> = checked.iter().filter(|it| it["ok"] == false).collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert!(failed.iter().all(|it| it["faults"][0] == "2 rows"), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_an_earlier_version_is_compacted_while_it_is_used() {
    let file = scratch().join("tasks.db");
    let first = client(&file).await;
    enqueue(&first, &"x".repeat(64 * 1024), 64).await;
    first.close().await;
    let direct = Connection::open(&file).unwrap();
    direct
        .execute_batch(
            "PRAGMA journal_mode = DELETE; PRAGMA auto_vacuum = NONE; VACUUM; \
             PRAGMA journal_mode = WAL; DELETE FROM messages WHERE seq > 2",
        )
        .unwrap();
    direct.close().unwrap();
    let client = client(&file).await;
    let (code, records, stderr) = db(&file, &["compact"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    let (before, after) =
        (records[0]["before"].as_u64().unwrap(), records[0]["bytes"].as_u64().unwrap());
    assert!(before > 4_000_000 && after < 1_000_000, "{records:?}");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), after);
    enqueue(&client, "hi", 1).await;
    client.close().await;
    assert_eq!(ready(&file).await, 3);
    let direct = Connection::open(&file).unwrap();
    let vacuum: i64 = direct.pragma_query_value(None, "auto_vacuum", |row| row.get(0)).unwrap();
    assert_eq!(vacuum, 2, "the file shrinks automatically");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_programs_database_is_refused() {
    let folder = scratch();
    let absent = folder.join("absent.db");
    let foreign = folder.join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let empty = folder.join("empty.db");
    std::fs::write(&empty, "").unwrap();
    let backup = folder.join("backup.db");
    for verb in [&["backup", backup.to_str().unwrap()][..], &["check"], &["compact"]] {
        let (code, _, stderr) = db(&absent, verb).await;
        assert_eq!(code, Some(74), "{stderr}");
        assert!(
            stderr.contains("absent.db: the file does not exist") && !absent.exists(),
            "{stderr}"
        );
        let (code, _, stderr) = db(&foreign, verb).await;
        assert_eq!(code, Some(78), "{stderr}");
        assert!(stderr.contains("foreign.db is a database of another program"), "{stderr}");
        let (code, _, stderr) = db(&empty, verb).await;
        assert_eq!(code, Some(78), "{stderr}");
        assert!(stderr.contains("empty.db is empty"), "{stderr}");
    }
    assert!(!backup.exists());
    for (broker, expected) in [
        ("amqp://localhost", "`db` is for the embedded backend"),
        ("sqlite::memory:", "there is no file"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command.args(["--broker", broker, "db", "check"]);
        let store = if broker.starts_with("amqp") { "redis://localhost" } else { broker };
        let output = command.args(["--store", store]).output().await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

/// Writes 140 MiB that no checkpoint can move into the file, because a reader still uses an older snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_wal_that_grows_under_an_open_reader_is_logged() {
    let file = scratch().join("tasks.db");
    let url = url(&file);
    let client = client(&file).await;
    enqueue(&client, "hi", 1).await;
    let variables = [("COUNTERSIGN_BROKER_URL", &*url), ("COUNTERSIGN_STORE_URL", &*url)];
    let worker = DemoWorker::spawn(&["-Q", "another", "-n", "log-grows"], &variables);
    worker.ready().await;
    let reader = Connection::open(&file).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM messages").unwrap();
    enqueue(&client, &"x".repeat(4 * 1024 * 1024), 35).await;
    worker.wait_for_log("tasks.db-wal has grown to 1").await;
    worker.wait_for_log(&format!("process {}", std::process::id())).await;
    drop(reader);
    client.close().await;
}
