//! `countersign dev`, on a machine that has no server at all: as a new user meets it.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test panics when it fails"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use support::scratch;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// An empty home, with nothing set: no broker, no store.
struct Home {
    folder: PathBuf,
}

impl Home {
    fn new() -> Self {
        Self { folder: scratch() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command.args(arguments).current_dir(&self.folder).kill_on_drop(true);
        command.env_clear().env("PATH", std::env::var("PATH").unwrap());
        command.env("HOME", &self.folder).env("USER", "ana").stdin(Stdio::null());
        command
    }

    /// Runs a command to its end; its exit code and what it printed.
    async fn say(&self, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
        let mut command = self.command(arguments);
        let output = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), lines.unwrap_or_else(|_| panic!("{text}\n{said}")))
    }

    async fn dev(&self, arguments: &[&str]) -> Dev {
        let mut command = self.command(&[&["-o", "jsonl", "dev"], arguments].concat());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        let ready = serde_json::from_str(&line.expect("it says that it is ready")).unwrap();
        Dev { process, lines, ready }
    }
}

/// A running `countersign dev`.
struct Dev {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    ready: Value,
}

impl Dev {
    fn approval(&self) -> &str {
        self.ready["approval"].as_str().unwrap()
    }

    fn task(&self) -> &str {
        self.ready["task"].as_str().unwrap()
    }

    /// Ctrl-C; the report, and the exit code.
    async fn interrupt(mut self) -> (Value, Option<i32>) {
        let pid = self.process.id().unwrap().to_string();
        Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
        let line = timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap().unwrap();
        let status = timeout(PATIENCE, self.process.wait()).await.unwrap().unwrap();
        (serde_json::from_str(&line).unwrap(), status.code())
    }

    async fn kill9(mut self) {
        self.process.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nothing_installed_something_waits_for_a_decision_and_goes_on_by_it() {
    let home = Home::new();
    let dev = home.dev(&[]).await;
    let folder = home.folder.join(".local/state/countersign");
    for (path, private) in [(folder.clone(), 0o700), (folder.join("dev.db"), 0o600)] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, private, "{}", path.display());
    }
    let (code, sum) = home.say(&["run", "demo.add", "2", "3", "--wait"]).await;
    assert_eq!((code, &sum[0]["result"]), (Some(0), &json!(5)));

    let (_, asked) = home.say(&["approvals", "list"]).await;
    assert_eq!(asked[0]["id"], dev.approval());
    let digest = asked[0]["digest"].as_str().unwrap();
    let approve = ["approvals", "approve", dev.approval(), "--yes", "--digest", digest];
    let (code, answer) = home.say(&approve).await;
    assert_eq!((code, &answer[0]["answer"]), (Some(0), &json!("applied")));
    let (code, _) = home.say(&["tasks", "follow", dev.task()]).await;
    assert_eq!(code, Some(0), "the refund ends");
    let (_, task) = home.say(&["tasks", "get", dev.task()]).await;
    assert_eq!(task[0]["state"], "SUCCESS");

    let (report, code) = dev.interrupt().await;
    assert_eq!((code, &report["drained"]["abandoned"]), (Some(0), &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_decision_is_there_again_after_a_crash() {
    let home = Home::new();
    let dev = home.dev(&[]).await;
    let (approval, task) = (dev.approval().to_owned(), dev.task().to_owned());
    dev.kill9().await;
    let (_, asked) = home.say(&["approvals", "list"]).await;
    let digest = asked[0]["digest"].as_str().unwrap();
    // Decided while nobody works: the resume message waits.
    let approve = ["approvals", "approve", &approval, "--yes", "--digest", digest];
    assert_eq!(home.say(&approve).await.0, Some(0));
    let dev = home.dev(&[]).await;
    assert_eq!(home.say(&["tasks", "follow", &task]).await.0, Some(0));
    let (_, ended) = home.say(&["tasks", "get", &task]).await;
    assert_eq!(ended[0]["state"], "SUCCESS");
    dev.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory_it_leaves_no_file() {
    let home = Home::new();
    let dev = home.dev(&["--db", ":memory:"]).await;
    assert_eq!(dev.ready["database"], "sqlite::memory:");
    assert_eq!(dev.interrupt().await.1, Some(0));
    assert_eq!(std::fs::read_dir(&home.folder).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_own_worker_is_started_beside_it_and_drained_with_it() {
    let home = Home::new();
    let file = home.folder.join("tasks.db");
    let file = file.to_str().unwrap();
    let demo = PathBuf::from(env!("CARGO_BIN_EXE_countersign")).with_file_name("demo");
    let report = home.folder.join("report");
    let worker = format!("{} -Q own > {}", demo.display(), report.display());
    let dev = home.dev(&["--db", file, "--worker", &worker]).await;
    let url = format!("sqlite:{file}");
    let run = ["--broker", &url, "run", "demo.echo", "hi", "-Q", "own", "--wait"];
    assert_eq!(home.say(&run).await.0, Some(0));
    assert_eq!(dev.interrupt().await.1, Some(0));
    assert!(std::fs::read_to_string(report).unwrap().contains("drained"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_of_ours_is_left_alone() {
    let home = Home::new();
    let text = home.folder.join("notes.txt");
    std::fs::write(&text, "not a database at all, but long enough to look at").unwrap();
    let command = home.command(&["dev", "--db", text.to_str().unwrap()]).output();
    let output = timeout(PATIENCE, command).await.unwrap().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("notes.txt is no database"), "{said}");
    assert!(std::fs::read_to_string(text).unwrap().starts_with("not a database"));

    let absent = home.folder.join("absent/tasks.db");
    let command = home.command(&["dev", "--db", absent.to_str().unwrap()]).output();
    let output = timeout(PATIENCE, command).await.unwrap().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{said}");
    assert!(said.contains("make it first"), "{said}");
}

/// Ctrl-C on a terminal reaches every process of the group: a worker that `dev` started drains once.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_lets_a_worker_that_dev_started_finish_its_task() {
    let home = Home::new();
    let worker = format!("{} -Q own -n own", support::binary("demo").display());
    let mut command = home.command(&["-o", "jsonl", "dev", "--worker", &worker]);
    let mut process =
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect("it is ready");
    let is_ready = async {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains("\"ready\"") {
                return;
            }
        }
    };
    timeout(PATIENCE, is_ready).await.expect("the worker is ready");
    let (_, sent) = home.say(&["run", "demo.sleep", "2", "-Q", "own"]).await;
    let id = sent[0]["id"].as_str().unwrap();
    let taken = async {
        loop {
            let (_, queues) = home.say(&["queues", "list", "own"]).await;
            if queues[0]["ready"] == json!(0) {
                return;
            }
        }
    };
    timeout(PATIENCE, taken).await.expect("the worker takes the task");
    let group = format!("-{}", process.id().unwrap());
    Command::new("kill").args(["-INT", "--", &group]).status().await.unwrap();
    // Its log is read to the end, so that nothing blocks on it.
    while timeout(PATIENCE, log.next_line()).await.unwrap().unwrap().is_some() {}
    let status = timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    let (_, task) = home.say(&["tasks", "get", id]).await;
    assert_eq!(task[0]["state"], "SUCCESS");
}
