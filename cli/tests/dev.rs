//! `countersign dev` on a machine without a server, as a new user runs it.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test panics when it fails"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{TIMEOUT, scratch};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// An empty home directory, without any settings: no broker, no store.
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

    /// Runs a command to its end; returns its exit code and its records.
    async fn run(&self, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
        let mut command = self.command(arguments);
        let output = timeout(TIMEOUT, command.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), lines.unwrap_or_else(|_| panic!("{text}\n{stderr}")))
    }

    async fn dev(&self, arguments: &[&str]) -> Dev {
        let mut command = self.command(&[&["-o", "jsonl", "dev"], arguments].concat());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap();
        let ready = serde_json::from_str(&line.expect("dev reports that it is ready")).unwrap();
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

    /// Sends Ctrl-C; returns the report and the exit code.
    async fn interrupt(mut self) -> (Value, Option<i32>) {
        let pid = self.process.id().unwrap().to_string();
        Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
        let line = timeout(TIMEOUT, self.lines.next_line()).await.unwrap().unwrap().unwrap();
        let status = timeout(TIMEOUT, self.process.wait()).await.unwrap().unwrap();
        (serde_json::from_str(&line).unwrap(), status.code())
    }

    async fn kill9(mut self) {
        self.process.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_starts_a_refund_that_continues_after_its_approval() {
    let home = Home::new();
    let dev = home.dev(&[]).await;
    let folder = home.folder.join(".local/state/countersign");
    for (path, private) in [(folder.clone(), 0o700), (folder.join("dev.db"), 0o600)] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, private, "{}", path.display());
    }
    let (code, sum) = home.run(&["run", "demo.add", "2", "3", "--wait"]).await;
    assert_eq!((code, &sum[0]["result"]), (Some(0), &json!(5)));

    let (_, requests) = home.run(&["approvals", "list"]).await;
    assert_eq!(requests[0]["id"], dev.approval());
    let digest = requests[0]["digest"].as_str().unwrap();
    let approve = ["approvals", "approve", dev.approval(), "--yes", "--digest", digest];
    let (code, answer) = home.run(&approve).await;
    assert_eq!((code, &answer[0]["answer"]), (Some(0), &json!("applied")));
    let (code, _) = home.run(&["tasks", "follow", dev.task()]).await;
    assert_eq!(code, Some(0), "the refund ends");
    let (_, task) = home.run(&["tasks", "get", dev.task()]).await;
    assert_eq!(task[0]["state"], "SUCCESS");

    let (report, code) = dev.interrupt().await;
    assert_eq!((code, &report["drained"]["abandoned"]), (Some(0), &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_request_survives_a_crash() {
    let home = Home::new();
    let dev = home.dev(&[]).await;
    let (approval, task) = (dev.approval().to_owned(), dev.task().to_owned());
    dev.kill9().await;
    let (_, requests) = home.run(&["approvals", "list"]).await;
    let digest = requests[0]["digest"].as_str().unwrap();
    // Decided while no worker runs: the resume message waits in its queue.
    let approve = ["approvals", "approve", &approval, "--yes", "--digest", digest];
    assert_eq!(home.run(&approve).await.0, Some(0));
    let dev = home.dev(&[]).await;
    assert_eq!(home.run(&["tasks", "follow", &task]).await.0, Some(0));
    let (_, ended) = home.run(&["tasks", "get", &task]).await;
    assert_eq!(ended[0]["state"], "SUCCESS");
    dev.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory_dev_leaves_no_file() {
    let home = Home::new();
    let dev = home.dev(&["--db", ":memory:"]).await;
    assert_eq!(dev.ready["database"], "sqlite::memory:");
    assert_eq!(dev.interrupt().await.1, Some(0));
    assert_eq!(std::fs::read_dir(&home.folder).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_starts_and_drains_another_worker() {
    let home = Home::new();
    let file = home.folder.join("tasks.db");
    let file = file.to_str().unwrap();
    let demo = PathBuf::from(env!("CARGO_BIN_EXE_countersign")).with_file_name("demo");
    let report = home.folder.join("report");
    let worker = format!("{} -Q own > {}", demo.display(), report.display());
    let dev = home.dev(&["--db", file, "--worker", &worker]).await;
    let url = format!("sqlite:{file}");
    let run = ["--broker", &url, "run", "demo.echo", "hi", "-Q", "own", "--wait"];
    assert_eq!(home.run(&run).await.0, Some(0));
    assert_eq!(dev.interrupt().await.1, Some(0));
    assert!(std::fs::read_to_string(report).unwrap().contains("drained"));
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_refuses_flags_that_it_does_not_use() {
    let home = Home::new();
    let flags: [&[&str]; 4] = [
        &["-C", "x.toml"],
        &["--broker", "sqlite:x.db"],
        &["--store", "sqlite:x.db"],
        &["-c", "0"],
    ];
    for flag in flags {
        let command = home.command(&[&["dev"], flag].concat()).output();
        let output = timeout(TIMEOUT, command).await.unwrap().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code().is_some_and(|code| code != 0), "{flag:?}: {stderr}");
        assert!(stderr.contains("--db FILE") || stderr.contains("1..=65535"), "{flag:?}: {stderr}");
    }
    assert!(!home.folder.join(".local").exists(), "nothing was created");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_refuses_a_file_that_is_not_its_database() {
    let home = Home::new();
    let text = home.folder.join("notes.txt");
    std::fs::write(&text, "not a database at all, but long enough to look at").unwrap();
    let command = home.command(&["dev", "--db", text.to_str().unwrap()]).output();
    let output = timeout(TIMEOUT, command).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("notes.txt is not a database"), "{stderr}");
    assert!(std::fs::read_to_string(text).unwrap().starts_with("not a database"));

    let absent = home.folder.join("absent/tasks.db");
    let command = home.command(&["dev", "--db", absent.to_str().unwrap()]).output();
    let output = timeout(TIMEOUT, command).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{stderr}");
    assert!(stderr.contains("create it first"), "{stderr}");
}

/// Ctrl-C on a terminal signals every process of the group: a worker that `dev` started drains once.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_lets_a_worker_started_by_dev_finish_its_task() {
    let home = Home::new();
    let worker = format!("{} -Q own -n own", support::binary("demo").display());
    let mut command = home.command(&["-o", "jsonl", "dev", "--worker", &worker]);
    let mut process =
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap().expect("dev is ready");
    let is_ready = async {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains("\"ready\"") {
                return;
            }
        }
    };
    timeout(TIMEOUT, is_ready).await.expect("the worker is ready");
    let (_, sent) = home.run(&["run", "demo.sleep", "2", "-Q", "own"]).await;
    let id = sent[0]["id"].as_str().unwrap();
    let taken = async {
        loop {
            let (_, queues) = home.run(&["queues", "list", "own"]).await;
            if queues[0]["ready"] == json!(0) {
                return;
            }
        }
    };
    timeout(TIMEOUT, taken).await.expect("the worker takes the task");
    let group = format!("-{}", process.id().unwrap());
    Command::new("kill").args(["-INT", "--", &group]).status().await.unwrap();
    // Reads the log to its end, so that no write to it blocks.
    while timeout(TIMEOUT, log.next_line()).await.unwrap().unwrap().is_some() {}
    let status = timeout(TIMEOUT, process.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    let (_, task) = home.run(&["tasks", "get", id]).await;
    assert_eq!(task[0]["state"], "SUCCESS");
}

/// Reads lines of standard error until one contains all of these words; returns that line.
async fn until(
    lines: &mut Lines<BufReader<tokio::process::ChildStderr>>,
    words: &[&str],
) -> String {
    let found = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("dev runs");
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    };
    timeout(TIMEOUT, found).await.unwrap_or_else(|_| panic!("no line has {words:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn printed_commands_work_in_an_empty_environment_and_each_task_prints_one_line() {
    let home = Home::new();
    let folder = home.folder.join("a folder's state");
    std::fs::create_dir(&folder).unwrap();
    let mut command = home.command(&["-o", "table", "dev"]);
    command.env("XDG_STATE_HOME", &folder).env_remove("USER").stderr(Stdio::piped());
    let mut dev = command.spawn().unwrap();
    let mut lines = BufReader::new(dev.stderr.take().unwrap()).lines();
    let approve = until(&mut lines, &["approvals approve"]).await;
    let run = until(&mut lines, &["run demo.add"]).await;

    let elsewhere = scratch();
    let paste = |line: &str| {
        let mut shell = Command::new("script");
        shell.args(["-qec", line.trim(), "/dev/null"]).env_clear();
        shell.env("PATH", std::env::var("PATH").unwrap()).current_dir(&elsewhere);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        shell.spawn().unwrap()
    };
    let added = timeout(TIMEOUT, paste(&run).wait_with_output()).await.unwrap().unwrap();
    let screen = String::from_utf8(added.stdout).unwrap();
    assert!(added.status.success() && screen.contains("SUCCESS"), "{screen}");
    let id = screen.lines().find_map(|line| line.strip_prefix("id")).unwrap().trim().to_owned();
    let line = until(&mut lines, &["demo.add"]).await;
    let words: Vec<_> = line.split("  ").collect();
    assert_eq!((words[0], words[1], words[2]), ("demo.add", &id[..8], "succeeded"), "{line}");
    assert!(words[3].ends_with(" s"), "{line}");

    let mut approving = paste(&approve);
    tokio::io::AsyncWriteExt::write_all(approving.stdin.as_mut().unwrap(), b"y\n").await.unwrap();
    let approved = timeout(TIMEOUT, approving.wait_with_output()).await.unwrap().unwrap();
    let screen = String::from_utf8(approved.stdout).unwrap();
    assert!(approved.status.success() && screen.contains("applied"), "{screen}");
    until(&mut lines, &["demo.refund", "succeeded"]).await;
    let pid = dev.id().unwrap().to_string();
    Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
    until(&mut lines, &["drained in"]).await;
    assert!(timeout(TIMEOUT, dev.wait()).await.unwrap().unwrap().success());
}
