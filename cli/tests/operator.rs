//! The operator's view of a pool, on both backends.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{DemoWorker, TIMEOUT, queue_name, scratch, servers};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// A database that no other test uses, or the servers that all tests share.
struct Pool {
    broker: String,
    store: String,
    folder: PathBuf,
    /// A queue that no other test uses.
    queue: String,
}

struct CommandOutput {
    code: Option<i32>,
    records: Vec<Value>,
    stderr: String,
}

impl Pool {
    fn new() -> Self {
        let folder = scratch();
        let url = format!("sqlite:{}", folder.join("tasks.db").display());
        Self { broker: url.clone(), store: url, folder, queue: queue_name() }
    }

    fn on_servers() -> Self {
        let (broker, store) = (servers().broker_url.clone(), servers().store_url.clone());
        Self { broker, store, ..Self::new() }
    }

    fn variables(&self) -> [(&str, &str); 2] {
        [("COUNTERSIGN_BROKER_URL", &self.broker), ("COUNTERSIGN_STORE_URL", &self.store)]
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).envs(self.variables()).current_dir(&self.folder);
        command.env("USER", "ana");
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> CommandOutput {
        let mut command = self.command(env!("CARGO_BIN_EXE_countersign"), arguments);
        let output = timeout(TIMEOUT, command.output()).await.unwrap().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let records = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let stderr = String::from_utf8(output.stderr).unwrap();
        CommandOutput { code: output.status.code(), records: records.unwrap(), stderr }
    }

    /// Runs the command on a terminal, where `answer` is typed; returns its exit code and its screen.
    async fn run_on_terminal(&self, arguments: &str, answer: &str) -> (Option<i32>, String) {
        let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_countersign"));
        let mut command = self.command("script", &["-qec", &line, "/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        process.stdin.as_mut().unwrap().write_all(answer.as_bytes()).await.unwrap();
        let output = timeout(TIMEOUT, process.wait_with_output()).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// Returns the output of the command on a terminal of 80 columns.
    async fn screen(&self, arguments: &str) -> String {
        let line = format!("stty cols 80; exec {} {arguments}", env!("CARGO_BIN_EXE_countersign"));
        let mut command = self.command("script", &["-qec", &line, "/dev/null"]);
        let output = timeout(TIMEOUT, command.output()).await.unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n")
    }

    /// Runs the command until one of its records satisfies `is_it`; returns that record.
    async fn until(&self, arguments: &[&str], is_it: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                let output = self.run(arguments).await;
                if let Some(found) = output.records.into_iter().find(&is_it) {
                    return found;
                }
            }
        };
        timeout(TIMEOUT, found).await.unwrap()
    }

    /// Sends a task; returns its id.
    async fn send(&self, task: &[&str]) -> String {
        let output = self.run(&[&["run"], task, &["-Q", &self.queue]].concat()).await;
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        output.records[0]["id"].as_str().unwrap().to_owned()
    }

    async fn worker(&self, queue: &str) -> DemoWorker {
        let worker = DemoWorker::spawn(&["-Q", queue, "-n", queue], &self.variables());
        worker.ready().await;
        // The worker announces itself periodically, so the test polls.
        let announced = async {
            while !self.run(&["workers"]).await.records.iter().any(|it| it["name"] == queue) {}
        };
        timeout(TIMEOUT, announced).await.unwrap();
        worker
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_failure_is_logged_as_a_warning_with_its_task_attempt_and_error() {
    let pool = Pool::new();
    let worker = pool.worker("billing").await;
    let output = pool.run(&["run", "demo.fail", "no such order", "-Q", "billing", "--wait"]).await;
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    worker.wait_for_log("no such order").await;
    let log = worker.stderr();
    let line = log.lines().find(|line| line.contains("no such order")).unwrap();
    let event: Value = serde_json::from_str(line).unwrap();
    assert_eq!(event["level"], "WARN", "{event}");
    assert_eq!(event["task.id"], output.records[0]["id"], "{event}");
    assert_eq!((&event["task.name"], &event["attempt"]), (&json!("demo.fail"), &json!(1)));
    assert_eq!(event["error"], "ValueError: no such order", "{event}");

    let output = pool.run(&["run", "no.such.task", "-Q", "billing"]).await;
    let id = output.records[0]["id"].as_str().unwrap();
    worker.wait_for_log("no handler for no.such.task").await;
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
    pool.run(&["run", "no.such.task", "-Q", "billing", "--wait"]).await;
    worker.wait_for_log("no handler for no.such.task").await;
    let purge = ["failures", "purge", "--all", "-Q", "billing"];
    let left = async || pool.run(&["failures", "list", "-Q", "billing"]).await.records.len();
    let listed = async { while left().await == 0 {} };
    timeout(TIMEOUT, listed).await.unwrap();

    let output = pool.run(&purge).await;
    assert_eq!((output.code, left().await), (Some(2), 1), "{}", output.stderr);
    assert!(output.stderr.contains("1 dead letters") && output.stderr.contains("--yes"));
    let (code, screen) = pool.run_on_terminal(&purge.join(" "), "n\n").await;
    assert_eq!((code, left().await), (Some(1), 1), "{screen}");
    assert!(screen.contains("1 dead letters of billing"), "{screen}");
    let (code, screen) = pool.run_on_terminal(&purge.join(" "), "y\n").await;
    assert_eq!((code, left().await), (Some(0), 0), "{screen}");
    let output = pool.run(&[&purge[..], &["--yes"]].concat()).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(output.records[0]["purged"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_queue_goes_where_a_live_worker_runs_its_type() {
    let pool = Pool::new();
    let output = pool.run(&["run", "demo.add", "2", "3"]).await;
    assert_eq!(output.code, Some(1), "nothing is consumed: {}", output.stderr);
    assert!(output.stderr.contains("no live worker consumes a queue"), "{}", output.stderr);
    let _worker = pool.worker("billing").await;
    let output = pool.run(&["run", "demo.add", "2", "3", "--wait"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(output.records[0]["result"], 5);
    let output = pool.run(&["run", "demo.add", "2", "3", "--count", "2", "--wait"]).await;
    assert_eq!((output.code, output.records.len()), (Some(0), 2), "{}", output.stderr);
    let output = pool.run(&["run", "no.such.task"]).await;
    assert_eq!((output.code, output.records.len()), (Some(1), 0));
    assert!(output.stderr.contains("no.such.task") && output.stderr.contains("billing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_without_a_consumer_are_reported_by_every_command() {
    let pool = Pool::new();
    let mut worker = pool.worker("orphaned").await;
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    pool.run(&["run", "demo.add", "1", "2", "-Q", "orphaned"]).await;
    let queues = pool.run(&["queues"]).await;
    assert!(queues.records.iter().any(|it| it["queue"] == "orphaned" && it["ready"] == 1));
    let is_internal = |it: &Value| it["queue"].as_str().unwrap().contains("countersign-resume");
    assert!(!queues.records.iter().any(is_internal), "{:?}", queues.records);
    for verb in ["queues", "failures"] {
        let output = pool.run(&[verb, "list"]).await;
        let expected = "1 tasks wait in orphaned, and no worker consumes it";
        assert!(output.stderr.contains(expected), "{verb}: {}", output.stderr);
    }
    let health = pool.run(&["health"]).await;
    assert_eq!(health.code, Some(69));
    assert!(health.records.iter().any(|it| it["check"] == "queue orphaned"));
    let doctor = pool.run(&["doctor"]).await;
    let waits = "1 tasks wait in orphaned, and no worker consumes it";
    assert!(doctor.records.iter().any(|it| it["what"] == waits), "{:?}", doctor.records);
}

async fn a_long_task_is_started(pool: Pool) {
    let _worker = pool.worker(&pool.queue).await;
    let id = pool.send(&["demo.sleep", "600"]).await;
    let task = pool.until(&["tasks", "get", &id], |task| task["state"] == "STARTED").await;
    assert_eq!((&task["name"], &task["queue"]), (&json!("demo.sleep"), &json!(pool.queue)));
    assert_eq!((&task["worker"], &task["attempt"]), (&json!(pool.queue), &json!(1)));
    assert!(task["started"].is_string(), "{task}");
    let is_it = |task: &Value| task["id"] == *id;
    let listed = pool.until(&["tasks", "list", "--running"], is_it).await;
    assert_eq!((&listed["state"], &listed["name"]), (&json!("STARTED"), &json!("demo.sleep")));
    // A prefix of the id is enough.
    let revoked = pool.run(&["tasks", "revoke", &id[..13], "--terminate"]).await;
    assert_eq!(revoked.records[0]["id"], *id, "{}", revoked.stderr);
    let ended = pool.run(&["tasks", "result", &id[..13]]).await;
    assert_eq!(ended.records[0]["state"], "REVOKED", "{}", ended.stderr);
    let listed = pool.run(&["tasks", "list"]).await;
    assert!(!listed.records.iter().any(is_it), "it has ended: {:?}", listed.records);
    // A task that ends within a second never has this state.
    let short = pool.send(&["demo.add", "1", "2"]).await;
    pool.run(&["tasks", "result", &short]).await;
    assert_eq!(pool.run(&["tasks", "get", &short]).await.records[0]["result"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_of_a_database_is_started() {
    a_long_task_is_started(Pool::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_on_servers_is_started() {
    a_long_task_is_started(Pool::on_servers()).await;
}

async fn a_suspended_task_shows_its_request(pool: Pool) {
    let _worker = pool.worker(&pool.queue).await;
    let id = pool.send(&["demo.refund", "order-9", "25000"]).await;
    let is_it = |task: &Value| task["id"] == *id;
    let listed = pool.until(&["tasks", "list", "--suspended"], is_it).await;
    let title = "Refund 25000 cents for order-9?";
    assert!(listed["detail"].as_str().unwrap().contains(title), "{listed}");
    let task = pool.run(&["tasks", "get", &id]).await.records.remove(0);
    assert_eq!((&task["state"], &task["name"]), (&json!("PARKED"), &json!("demo.refund")));
    assert_eq!(task["waits_for"][0]["title"], title);
    let approval = task["waits_for"][0]["approval"].as_str().unwrap();
    for verb in [&["result"][..], &["follow"]] {
        // Both verbs print once how to decide the request that the task waits for.
        let mut command =
            pool.command(env!("CARGO_BIN_EXE_countersign"), &[&["tasks"], verb, &[&id]].concat());
        let mut waiting = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
        let line = timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert!(line.contains("waits for a decision (deadline in "), "{line}");
        let line = timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert_eq!(line.trim(), title);
        let how = timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert_eq!(how.trim(), format!("countersign approvals approve {approval} --by ana"));
        waiting.kill().await.unwrap();
    }
    let request = pool.run(&["approvals", "get", &approval[..13]]).await.records.remove(0);
    assert_eq!(request["id"], approval);
    let digest = request["digest"].as_str().unwrap();
    let approve =
        ["approvals", "approve", &approval[..13], "--by", "ana", "--yes", "--digest", digest];
    assert_eq!(pool.run(&approve).await.code, Some(0));
    let ended = pool.run(&["tasks", "result", &id]).await;
    assert_eq!(ended.records[0]["state"], "SUCCESS", "{}", ended.stderr);
    assert_eq!(ended.stderr, "", "the task no longer waits");
    let listed = pool.run(&["tasks", "list"]).await;
    assert!(!listed.records.iter().any(is_it), "{:?}", listed.records);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_task_of_a_database_shows_its_request() {
    a_suspended_task_shows_its_request(Pool::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_task_on_servers_shows_its_request() {
    a_suspended_task_shows_its_request(Pool::on_servers()).await;
}

async fn a_failed_task_is_listed(pool: Pool) {
    let worker = pool.worker(&pool.queue).await;
    let ids =
        [pool.send(&["demo.fail", "no such order"]).await, pool.send(&["no.such.task"]).await];
    for (id, name, error) in [
        (&ids[0], "demo.fail", "ValueError: no such order"),
        (&ids[1], "no.such.task", "NotRegistered"),
    ] {
        pool.run(&["tasks", "result", id]).await;
        let is_it = |task: &Value| task["id"] == **id;
        let failed = pool.until(&["tasks", "list", "--failed"], is_it).await;
        assert_eq!((&failed["name"], &failed["queue"]), (&json!(name), &json!(pool.queue)));
        assert!(failed["error"].as_str().unwrap().contains(error), "{failed}");
        let task = pool.run(&["tasks", "get", id]).await.records.remove(0);
        assert_eq!((&task["state"], &task["name"]), (&json!("FAILURE"), &json!(name)));
        assert_eq!(task["worker"], pool.queue);
        assert!(task["ended"].is_string() && task["error"].as_str().unwrap().contains(error));
    }
    // A replayed task has no failure until it fails again.
    drop(worker);
    let letter = pool.until(&["failures", "list", "-Q", &pool.queue], |_| true).await;
    assert_eq!(letter["id"], *ids[1]);
    let replay = ["failures", "replay", &ids[1][..13], "-Q", &pool.queue];
    assert_eq!(pool.run(&replay).await.records[0]["id"], *ids[1]);
    let listed = pool.run(&["tasks", "list", "--failed"]).await;
    assert!(!listed.records.iter().any(|task| task["id"] == *ids[1]), "{:?}", listed.records);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_task_of_a_database_is_listed() {
    a_failed_task_is_listed(Pool::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_task_on_servers_is_listed() {
    a_failed_task_is_listed(Pool::on_servers()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn screens_fit_a_terminal_of_80_columns_and_no_text_moves_its_cursor() {
    let pool = Pool::new();
    let _worker = pool.worker("billing").await;
    let order = format!("\u{202e}\u{9b}2J{}", "日本 ".repeat(60));
    let output = pool.run(&["run", "demo.refund", &order, "25000", "-Q", "billing"]).await;
    let id = output.records[0]["id"].as_str().unwrap();
    pool.until(&["tasks", "list", "--suspended"], |task| task["id"] == *id).await;
    let dead = pool.run(&["run", &format!("no.such.{order}"), "-Q", "billing"]).await;
    let dead = dead.records[0]["id"].as_str().unwrap();
    pool.until(&["tasks", "list", "--failed"], |task| task["id"] == *dead).await;
    let is_hostile =
        |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    for verb in [
        "approvals list",
        "approvals audit",
        "queues",
        "workers",
        "failures list",
        "tasks list",
        "doctor",
        "health",
        "config show",
        &format!("tasks get {id}"),
        &format!("tasks get {dead}"),
        &format!("failures show {dead} -Q billing"),
        "-o json tasks list",
        "-o jsonl approvals list",
        &format!("failures show 'a{order}' -Q 'x{order}'"),
    ] {
        let screen = pool.screen(verb).await;
        // No decision has been made yet, so the audit is empty.
        assert!(!screen.is_empty() || verb == "approvals audit", "{verb}");
        let hostile = screen.lines().find(|line| line.chars().any(is_hostile));
        assert_eq!(hostile, None, "{verb}: {screen:?}");
        let width = |line: &str| line.chars().map(|c| if c >= '\u{2e80}' { 2 } else { 1 }).sum();
        let is_wide = |line: &&str| -> bool {
            let width: usize = width(line);
            width > 80
        };
        let is_laid_out = !verb.starts_with("-o") && !verb.contains("'x");
        let wide = screen.lines().filter(|line| !line.starts_with("countersign:")).find(is_wide);
        assert!(!is_laid_out || wide.is_none(), "{verb}: {wide:?} in\n{screen}");
    }
    let listed = pool.screen("approvals list").await;
    // The deadline is two days after the request, less the time since.
    let has_deadline = listed.contains("in 2d") || listed.contains("in 47h");
    assert!(listed.contains('…') && has_deadline, "{listed}");
    assert!(
        !listed.contains(pool.run(&["approvals", "list"]).await.records[0]["id"].as_str().unwrap())
    );
}

/// The worker's failure is logged in colour, and clap colours its help and errors.
#[tokio::test(flavor = "multi_thread")]
async fn colours_are_only_on_terminals_without_no_color() {
    let pool = Pool::new();
    let arguments =
        ["--help", "no-such-verb", "-o table queues", "run a -Q 'b\u{202e}' --delay 0s"];
    let demo = support::binary("demo");
    for (is_terminal, no_color) in [(true, false), (true, true), (false, false)] {
        let mut has_colours = false;
        for words in arguments
            .iter()
            .map(|words| format!("{} {words}", env!("CARGO_BIN_EXE_countersign")))
            .chain([format!("timeout -s TERM 2 {} -Q x", demo.display())])
        {
            let mut command = match is_terminal {
                true => pool.command("script", &["-qec", &words, "/dev/null"]),
                false => pool.command("sh", &["-c", &words]),
            };
            command.env_remove("NO_COLOR");
            if no_color {
                command.env("NO_COLOR", "1");
            }
            let output = timeout(TIMEOUT, command.output()).await.unwrap().unwrap();
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(!text.contains('\u{202e}') || !is_terminal, "{text}");
            has_colours |= text.contains('\u{1b}');
        }
        assert_eq!(has_colours, is_terminal && !no_color);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_list_is_one_document_as_json_and_a_record_a_line_as_jsonl() {
    let pool = Pool::new();
    let _worker = pool.worker("billing").await;
    for verb in [
        "approvals list",
        "approvals audit",
        "queues",
        "workers",
        "failures list",
        "tasks list",
        "health",
        "config show",
        "doctor",
        "tasks revoke a",
        "tasks forget a b",
    ] {
        let words: Vec<_> = verb.split(' ').collect();
        let mut command = pool.command(env!("CARGO_BIN_EXE_countersign"), &words);
        let output =
            timeout(TIMEOUT, command.args(["-o", "json"]).output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let listed = document.as_array().unwrap_or_else(|| panic!("{verb}: {text}")).len();
        assert_eq!(
            pool.run(&[&words[..], &["-o", "jsonl"]].concat()).await.records.len(),
            listed,
            "{verb}"
        );
    }
    let sent = pool.run(&["run", "demo.refund", "o", "1", "-Q", "billing", "--wait"]).await;
    let id = sent.records[0]["id"].as_str().unwrap();
    let mut command =
        pool.command(env!("CARGO_BIN_EXE_countersign"), &["-o", "json", "tasks", "follow", id]);
    let output = timeout(TIMEOUT, command.output()).await.unwrap().unwrap();
    let followed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(followed.as_array().unwrap().len() >= 2, "{followed}");
}

async fn a_queue_without_a_worker_is_listed(pool: Pool) {
    let output = pool.run(&["run", "demo.add", "1", "2", "-Q", &pool.queue]).await;
    let expected = format!("no worker consumes {}", pool.queue);
    assert!(output.stderr.contains(&expected), "{}", output.stderr);
    let is_it = |record: &Value| record["queue"] == pool.queue && record["ready"] == 1;
    pool.until(&["queues"], is_it).await;
    let health = pool.run(&["health"]).await;
    let named = format!("queue {}", pool.queue);
    assert!(health.records.iter().any(|it| it["check"] == *named), "{:?}", health.records);
    let health = pool.run(&["health", "-Q", &format!("other-{}", pool.queue)]).await;
    assert_eq!((health.code, health.records.len()), (Some(69), 3), "{:?}", health.records);
    let _worker = pool.worker(&pool.queue).await;
    let output = pool.run(&["run", "demo.add", "1", "2", "-Q", &pool.queue]).await;
    assert_eq!(output.stderr, "", "the queue is consumed");
    let other = format!("other-{}", pool.queue);
    pool.run(&["run", "demo.add", "1", "2", "-Q", &other]).await;
    let health = pool.run(&["health", "-Q", &pool.queue]).await;
    assert_eq!(health.code, Some(0), "{:?}", health.records);
    assert!(health.stderr.contains(&format!("1 tasks wait in {other}")), "{}", health.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_a_database_without_a_worker_is_listed() {
    a_queue_without_a_worker_is_listed(Pool::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_on_servers_without_a_worker_is_listed() {
    a_queue_without_a_worker_is_listed(Pool::on_servers()).await;
}

/// As JSON, records that arrive one by one are one array, too.
#[tokio::test(flavor = "multi_thread")]
async fn watched_requests_are_one_document_as_json() {
    let pool = Pool::new();
    let _worker = pool.worker(&pool.queue).await;
    let mut command =
        pool.command(env!("CARGO_BIN_EXE_countersign"), &["-o", "json", "approvals", "watch"]);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    pool.send(&["demo.refund", "a", "25000"]).await;
    pool.send(&["demo.refund", "b", "25000"]).await;
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut text = String::new();
    while !text.contains("25000 cents for a") || !text.contains("25000 cents for b") {
        let line = timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
        text.push_str(&line);
    }
    let pid = watching.id().unwrap().to_string();
    Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
    while let Some(line) = timeout(TIMEOUT, lines.next_line()).await.unwrap().unwrap() {
        text.push_str(&line);
    }
    assert_eq!(timeout(TIMEOUT, watching.wait()).await.unwrap().unwrap().code(), Some(0));
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(!document.as_array().unwrap().is_empty(), "{text}");
}
