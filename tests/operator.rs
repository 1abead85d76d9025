//! What an operator sees of a pool that does not work as it should, on the embedded backend.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use support::{DemoWorker, scratch};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

/// A database that no other test uses.
struct Pool {
    url: String,
    folder: PathBuf,
}

struct Said {
    code: Option<i32>,
    records: Vec<Value>,
    stderr: String,
}

impl Pool {
    fn new() -> Self {
        let folder = scratch();
        Self { url: format!("sqlite:{}", folder.join("tasks.db").display()), folder }
    }

    fn variables(&self) -> [(&str, &str); 2] {
        [("COUNTERSIGN_BROKER_URL", &self.url), ("COUNTERSIGN_STORE_URL", &self.url)]
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).envs(self.variables()).current_dir(&self.folder);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn say(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(env!("CARGO_BIN_EXE_countersign"), arguments);
        let output = timeout(DEADLINE, command.output()).await.unwrap().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let records = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Said { code: output.status.code(), records: records.unwrap(), stderr }
    }

    /// Runs the command on a terminal, where `answer` is typed; its exit code and its screen.
    async fn say_on_terminal(&self, arguments: &str, answer: &str) -> (Option<i32>, String) {
        let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_countersign"));
        let mut command = self.command("script", &["-qec", &line, "/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        process.stdin.as_mut().unwrap().write_all(answer.as_bytes()).await.unwrap();
        let output = timeout(DEADLINE, process.wait_with_output()).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    async fn worker(&self, queue: &str) -> DemoWorker {
        let worker = DemoWorker::spawn(&["-Q", queue, "-n", queue], &self.variables());
        worker.ready().await;
        // It announces itself in its own time.
        let announced = async {
            while !self.say(&["workers"]).await.records.iter().any(|it| it["name"] == queue) {}
        };
        timeout(DEADLINE, announced).await.unwrap();
        worker
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_failure_is_logged_as_a_warning_with_its_task_attempt_and_error() {
    let pool = Pool::new();
    let worker = pool.worker("billing").await;
    let said = pool.say(&["run", "demo.fail", "no such order", "-Q", "billing", "--wait"]).await;
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    worker.says("no such order").await;
    let log = worker.stderr();
    let line = log.lines().find(|line| line.contains("no such order")).unwrap();
    let event: Value = serde_json::from_str(line).unwrap();
    assert_eq!(event["level"], "WARN", "{event}");
    assert_eq!(event["task.id"], said.records[0]["id"], "{event}");
    assert_eq!((&event["task.name"], &event["attempt"]), (&json!("demo.fail"), &json!(1)));
    assert_eq!(event["error"], "ValueError: no such order", "{event}");

    let said = pool.say(&["run", "no.such.task", "-Q", "billing"]).await;
    let id = said.records[0]["id"].as_str().unwrap();
    worker.says("no handler for no.such.task").await;
    let log = worker.stderr();
    let line = log.lines().find(|line| line.contains("task failed and is dead-lettered")).unwrap();
    let event: Value = serde_json::from_str(line).unwrap();
    assert_eq!(event["task.id"], id);
    assert_eq!((&event["task.name"], &event["attempt"]), (&json!("no.such.task"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_failures_are_purged_only_after_confirmation() {
    let pool = Pool::new();
    let worker = pool.worker("billing").await;
    pool.say(&["run", "no.such.task", "-Q", "billing", "--wait"]).await;
    worker.says("no handler for no.such.task").await;
    let purge = ["failures", "purge", "--all", "-Q", "billing"];
    let left = async || pool.say(&["failures", "list", "-Q", "billing"]).await.records.len();
    let listed = async { while left().await == 0 {} };
    timeout(DEADLINE, listed).await.unwrap();

    let said = pool.say(&purge).await;
    assert_eq!((said.code, left().await), (Some(2), 1), "{}", said.stderr);
    assert!(said.stderr.contains("1 dead letters") && said.stderr.contains("--yes"));
    let (code, screen) = pool.say_on_terminal(&purge.join(" "), "n\n").await;
    assert_eq!((code, left().await), (Some(1), 1), "{screen}");
    assert!(screen.contains("1 dead letters of billing"), "{screen}");
    let (code, screen) = pool.say_on_terminal(&purge.join(" "), "y\n").await;
    assert_eq!((code, left().await), (Some(0), 0), "{screen}");
    let said = pool.say(&[&purge[..], &["--yes"]].concat()).await;
    assert_eq!((said.code, &said.records[0]["purged"]), (Some(0), &json!(0)), "{}", said.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_queue_goes_where_a_live_worker_runs_its_type() {
    let pool = Pool::new();
    let said = pool.say(&["run", "demo.add", "2", "3"]).await;
    assert_eq!(said.code, Some(1), "nothing is consumed: {}", said.stderr);
    assert!(said.stderr.contains("no queue is consumed"), "{}", said.stderr);
    let _worker = pool.worker("billing").await;
    let said = pool.say(&["run", "demo.add", "2", "3", "--wait"]).await;
    assert_eq!((said.code, &said.records[0]["result"]), (Some(0), &json!(5)), "{}", said.stderr);
    let said = pool.say(&["run", "demo.add", "2", "3", "--count", "2", "--wait"]).await;
    assert_eq!((said.code, said.records.len()), (Some(0), 2), "{}", said.stderr);
    let said = pool.say(&["run", "no.such.task"]).await;
    assert_eq!((said.code, said.records.len()), (Some(1), 0));
    assert!(said.stderr.contains("no.such.task") && said.stderr.contains("billing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_nothing_consumes_are_named_everywhere() {
    let pool = Pool::new();
    let mut worker = pool.worker("orphaned").await;
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    pool.say(&["run", "demo.add", "1", "2", "-Q", "orphaned"]).await;
    let queues = pool.say(&["queues"]).await;
    assert!(queues.records.iter().any(|it| it["queue"] == "orphaned" && it["ready"] == 1));
    let is_internal = |it: &Value| it["queue"].as_str().unwrap().contains("countersign-resume");
    assert!(!queues.records.iter().any(is_internal), "{:?}", queues.records);
    for verb in ["queues", "failures"] {
        let said = pool.say(&[verb, "list"]).await;
        let expected = "1 tasks wait in orphaned, and no worker consumes it";
        assert!(said.stderr.contains(expected), "{verb}: {}", said.stderr);
    }
    let health = pool.say(&["health"]).await;
    assert_eq!(health.code, Some(69));
    assert!(health.records.iter().any(|it| it["check"] == "queue orphaned"));
    let doctor = pool.say(&["doctor"]).await;
    let waits = "1 tasks wait in orphaned, and nobody consumes it";
    assert!(doctor.records.iter().any(|it| it["what"] == waits), "{:?}", doctor.records);
}
