//! The `countersign` command, run as people and programs run it.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::process::{Command, Output};

use countersign::{Arguments, Client, Config, Context, Task, TaskError, TaskResult};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use support::{Running, TIMEOUT, queue_name, servers};

#[derive(Serialize, Deserialize)]
struct Add {
    x: i64,
    y: i64,
}

impl Task for Add {
    const NAME: &'static str = "test.add";
    type Output = i64;
}

async fn add(_: Context, Add { x, y }: Add) -> TaskResult<i64> {
    if y == 0 { Err(TaskError::fatal("adds nothing")) } else { Ok(x + y) }
}

/// The output of one run of the command.
struct CommandOutput {
    code: Option<i32>,
    records: Vec<Value>,
    stderr: String,
}

fn countersign(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.args(arguments).envs(variables.iter().copied()).output().unwrap()
}

/// Runs the command on a blocking thread, and parses its standard output as JSON lines.
async fn run(arguments: &[&str]) -> CommandOutput {
    let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
    let output = tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        countersign(&arguments, &[])
    });
    let output = output.await.unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let records = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>();
    CommandOutput { code: output.status.code(), records: records.unwrap(), stderr }
}

async fn client() -> Client {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    Client::connect(&config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn run_waits_for_a_result_and_its_exit_code_reports_the_outcome() {
    let running = Running::start(|worker| worker.handle(add)).await;
    let output = run(&["run", "test.add", "2", "-k", "y=3", "-Q", &running.queue, "--wait"]).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(output.records[0]["result"], 5);
    let output = run(&["run", "test.add", "2", "0", "-Q", &running.queue, "--wait"]).await;
    assert_eq!((output.code, &output.records[0]["state"]), (Some(1), &json!("FAILURE")));
    let id = output.records[0]["id"].as_str().unwrap().to_owned();
    let output = run(&["tasks", "get", &id]).await;
    assert_eq!((output.code, &output.records[0]["state"]), (Some(0), &json!("FAILURE")));
    let late = ["run", "test.add", "1", "1", "-Q", "no-such-worker", "--wait", "--timeout", "50ms"];
    assert_eq!(run(&late).await.code, Some(75));
    running.drain().await;
}

#[derive(Serialize, Deserialize)]
struct Count {
    to: u64,
}

impl Task for Count {
    const NAME: &'static str = "test.count";
    type Output = u64;
}

async fn count(ctx: Context, Count { to }: Count) -> TaskResult<u64> {
    for n in 1..=to {
        ctx.progress(&n).await?;
    }
    Ok(to)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_followed_to_its_end() {
    let running = Running::start(|worker| worker.handle(count)).await;
    let handle = running.client.enqueue(Count { to: 3 }).queue(&running.queue).await.unwrap();
    let id = handle.id().to_string();
    let output = run(&["tasks", "follow", &id]).await;
    assert_eq!((output.code, output.records.len()), (Some(0), 3), "{}", output.stderr);
    let second = json!({"number": 2, "said": "progress", "step": null, "run": 1, "value": 2});
    assert_eq!(output.records[1], second);
    let output = run(&["tasks", "follow", &id, "--from", "3"]).await;
    assert_eq!((output.records.len(), &output.records[0]["value"]), (1, &json!(3)));
    assert_eq!(run(&["tasks", "follow", &id, "--live"]).await.records, Vec::<Value>::new());
    assert_eq!(run(&["tasks", "follow", &id, "--live", "--from", "1"]).await.code, Some(2));
    handle.result_within(TIMEOUT).await.unwrap();
    let output = run(&["tasks", "forget", &id, "never-sent"]).await;
    assert_eq!((output.code, output.records.len()), (Some(0), 2), "{}", output.stderr);
    assert_eq!(output.records[0], json!({"id": id, "forgotten": true}));
    let output = run(&["tasks", "get", &id]).await;
    assert_eq!(output.records[0]["state"], "PENDING");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_sends_many_at_once() {
    let running = Running::start(|worker| worker.handle(add)).await;
    let batch = ["run", "test.add", "2", "3", "-Q", &running.queue, "--count", "2500", "--wait"];
    let output = run(&batch).await;
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(output.records.len(), 2500);
    assert!(output.records.iter().all(|record| record["result"] == 5));
    assert_eq!(output.stderr, "", "no progress bar away from a terminal");

    let file = std::env::temp_dir().join(format!("{}.jsonl", running.queue));
    std::fs::write(&file, "[1, 2]\n\n{\"x\": 5, \"y\": 0}\n").unwrap();
    let from = file.to_str().unwrap();
    let output = run(&["run", "test.add", "--from", from, "-Q", &running.queue, "--wait"]).await;
    assert_eq!(output.code, Some(1));
    assert_eq!(output.records[0]["result"], 3);
    assert_eq!(output.records[1]["result"], "Exception: adds nothing");
    std::fs::write(&file, "[1, 2]\n7\n").unwrap();
    let output = run(&["run", "test.add", "--from", from, "-Q", &running.queue]).await;
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains(".jsonl:2: neither a JSON array"), "{}", output.stderr);
    std::fs::remove_file(&file).unwrap();
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_sends_one_task() {
    let (queue, key) = (queue_name(), queue_name());
    let first = run(&["run", "test.add", "1", "2", "-Q", &queue, "--key", &key]).await;
    let again = run(&["run", "test.add", "1", "2", "-Q", &queue, "--key", &key]).await;
    assert_eq!(first.records[0]["id"], again.records[0]["id"]);
    let output = run(&["run", "test.add", "1", "2", "-Q", &queue, "--priority", "3"]).await;
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("max_priority"), "{}", output.stderr);
    let output = run(&["queues", "list", &queue]).await;
    assert_eq!(
        (&output.records[0]["ready"], &output.records[0]["consumers"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(run(&["queues", "purge", &queue]).await.code, Some(2));
    assert_eq!(run(&["queues", "purge", &queue, "--yes"]).await.records[0]["purged"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_listed_shown_replayed_and_purged() {
    let (client, queue) = (client().await, queue_name());
    let unregistered = Running::start(|worker| worker.queue(&queue)).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        let handle = client.enqueue(Add { x: n, y: 1 }).queue(&queue).await.unwrap();
        ids.push(handle.id().to_string());
        handle.result_within(TIMEOUT).await.unwrap_err();
    }
    unregistered.drain().await;

    let output = run(&["failures", "list", "-Q", &queue]).await;
    let listed: Vec<_> =
        output.records.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids);
    assert_eq!(output.records[0]["reason"], "no handler for test.add");
    let output = run(&["failures", "show", &ids[1], "-Q", &queue]).await;
    assert!(
        output.records[0]["body"].as_str().unwrap().contains("\"x\":1"),
        "{:?}",
        output.records
    );
    assert_eq!(output.records[0]["attempts"], json!([]), "its first attempt failed");
    assert_eq!(run(&["failures", "purge", &ids[0], "-Q", &queue]).await.code, Some(0));
    assert_eq!(run(&["failures", "show", &ids[0], "-Q", &queue]).await.code, Some(1));
    assert_eq!(run(&["failures", "replay", "-Q", &queue]).await.code, Some(2));

    let successor = Running::start(|worker| worker.queue(&queue).handle(add)).await;
    let output = run(&["failures", "replay", "--all", "-Q", &queue]).await;
    assert_eq!((output.code, output.records.len()), (Some(0), 2));
    for (id, sum) in [(&ids[1], 2), (&ids[2], 3)] {
        let output = run(&["tasks", "result", id]).await;
        assert_eq!(output.records[0]["result"], sum);
    }
    successor.drain().await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_listed_while_they_run() {
    let running = Running::start(|worker| worker.concurrency(7).handle(add));
    let running = running.await;
    running.call(Add { x: 1, y: 1 }).await.unwrap();
    let ours = async |queue: &str| {
        let output = run(&["workers"]).await;
        output.records.into_iter().find(|record| record["name"] == queue)
    };
    // The worker reports to the store periodically: the test polls until it has.
    let seen = tokio::time::timeout(TIMEOUT, async {
        loop {
            if let Some(seen) = ours(&running.queue).await {
                return seen;
            }
        }
    });
    let seen = seen.await.unwrap();
    assert_eq!((&seen["concurrency"], &seen["queues"]), (&json!(7), &json!([running.queue])));
    assert_eq!(seen["pid"], std::process::id());
    let output = run(&["health", "-Q", &running.queue]).await;
    assert_eq!(output.code, Some(0), "{:?}", output.records);
    let queue = running.queue.clone();
    running.drain().await;
    assert!(ours(&queue).await.is_none(), "the worker retracts its announcement");
    let output = run(&["health", "-Q", &queue]).await;
    assert_eq!(output.code, Some(69));
    assert_eq!(output.records[2]["fault"], "no worker consumes it");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_reports_problems_and_their_fixes() {
    let (client, queue) = (client().await, queue_name());
    client.enqueue_named("test.add", Arguments::default()).queue(&queue).await.unwrap();
    let file = std::env::temp_dir().join(format!("{queue}.toml"));
    let text = format!("[drain]\ndeadline = \"1h\"\n[queues.\"{queue}\"]\nmax_priority = 5\n");
    std::fs::write(&file, text).unwrap();
    let output = run(&["doctor", "--config", file.to_str().unwrap()]).await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    let has = |level: &str, what: &str, fix: &str| {
        output.records.iter().any(|finding| {
            let contains = |field: &str, text| finding[field].as_str().unwrap().contains(text);
            finding["level"] == level && contains("what", what) && contains("mend", fix)
        })
    };
    let waiting = format!("1 tasks wait in {queue}, and no worker consumes it");
    assert!(has("error", "drain.deadline is 3600 s", "COUNTERSIGN_DRAIN_DEADLINE"));
    assert!(has("error", &waiting, &format!("-Q {queue}")), "{:?}", output.records);
    assert!(
        has("error", "x-max-priority", &format!("delete_queue {queue}")),
        "{:?}",
        output.records
    );
    assert!(has("ok", "RabbitMQ is ", ""), "{:?}", output.records);
    assert!(has("ok", "Redis evicts nothing", ""), "{:?}", output.records);
    client.close().await;
}

#[test]
fn an_unreachable_server_is_reported() {
    let variables = [
        ("COUNTERSIGN_CONNECT_TIMEOUT", "300ms"),
        ("COUNTERSIGN_BROKER_URL", "amqp://ana:s3cret@127.0.0.1:1"),
    ];
    for verb in ["workers", "health"] {
        let output = countersign(&[verb], &variables);
        assert_eq!(output.status.code(), Some(69), "{verb}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("s3cret"));
    }
    let output = countersign(&["doctor"], &variables);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("no connection to RabbitMQ at amqp://ana:***@127.0.0.1:1"), "{stdout}");
}

#[test]
fn a_wrong_password_is_reported() {
    let with_wrong_password = |url: &str| {
        let (scheme, rest) = url.split_once("://").unwrap();
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        format!("{scheme}://guest:s3cret@{host}")
    };
    let servers = servers();
    let variables = [
        ("COUNTERSIGN_CONNECT_TIMEOUT", "3s"),
        ("COUNTERSIGN_BROKER_URL", &with_wrong_password(&servers.broker_url)),
        ("COUNTERSIGN_STORE_URL", &with_wrong_password(&servers.store_url)),
    ];
    for verb in ["health", "doctor"] {
        let output = countersign(&[verb], &variables);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.matches("password is wrong").count(), 2, "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn an_unsupported_part_of_a_url_is_refused_with_a_fix() {
    for (broker, store, remedy) in [
        ("amqp://u:s3;cret@h", "redis://h", "`;` is %3B"),
        ("amqp://h?heartbeat=3", "redis://h", "set broker.heartbeat"),
        ("amqp://h", "redis://:s3/cret@h", "`/` is %2F"),
        ("amqp://h", "redis://h?socket_timeout=3", "set store.command_timeout"),
        ("amqp://h", "rediss://h?ssl_ca_certs=/missing.pem", "cannot read /missing.pem"),
        ("amqp://h", "unix://h", "unix:///path"),
        ("sqlite:x.db?mode=ro", "", "%3F"),
        ("sqlite://x.db", "", "sqlite:///x"),
    ] {
        let variables = [("COUNTERSIGN_BROKER_URL", broker), ("COUNTERSIGN_STORE_URL", store)];
        let checked = countersign(&["config", "check"], &variables);
        let shown = countersign(&["config", "show"], &variables);
        assert_eq!(checked.status.code(), Some(78), "{broker} {store}");
        let text = String::from_utf8(checked.stderr).unwrap();
        assert!(text.contains(remedy), "{broker} {store}: {text}");
        let shown = String::from_utf8([shown.stdout, shown.stderr].concat()).unwrap();
        assert!(!(text + &shown).contains("cret"), "{shown}");
    }
    for store in ["redis+socket:///run/redis.sock?virtual_host=2", "redis://h?db=3", "redis://h;"] {
        let variables = [("COUNTERSIGN_BROKER_URL", "amqp://h;"), ("COUNTERSIGN_STORE_URL", store)];
        assert!(countersign(&["config", "check"], &variables).status.success(), "{store}");
    }
}

#[test]
fn the_brokers_version_is_read_over_tls_too() {
    let servers = servers();
    let variables = [
        ("COUNTERSIGN_BROKER_URL", servers.broker_tls_url.as_str()),
        ("COUNTERSIGN_TLS_CA_FILE", servers.ca_file.to_str().unwrap()),
    ];
    let output = countersign(&["doctor"], &variables);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("RabbitMQ is 3.") || stdout.contains("RabbitMQ is 4."), "{stdout}");
}

#[test]
fn every_invalid_setting_is_reported_at_once() {
    let file = std::env::temp_dir().join(format!("{}.toml", queue_name()));
    std::fs::write(&file, "[worker]\nconcurrency = 0\nnmae = \"x\"\n").unwrap();
    let path = file.to_str().unwrap();
    let variables = [("COUNTERSIGN_CONFIG", path), ("COUNTERSIGN_WORKER_QUEUE", "a")];
    let output = countersign(&["config", "check"], &variables);
    assert_eq!(output.status.code(), Some(78));
    let stderr = String::from_utf8(output.stderr).unwrap();
    for part in [
        format!("worker.concurrency (from {path}:2): \"0\" is not a whole number"),
        format!("{path}:3: no setting is called worker.nmae; did you mean worker.name?"),
        "COUNTERSIGN_WORKER_QUEUE: no setting has this environment variable; did you mean \
         COUNTERSIGN_WORKER_QUEUES?"
            .to_owned(),
    ] {
        assert!(stderr.contains(&part), "{part} is not in:\n{stderr}");
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn config_show_prints_the_source_of_each_value_and_hides_passwords() {
    let file = std::env::temp_dir().join(format!("{}.toml", queue_name()));
    std::fs::write(&file, "[store]\nkey_prefix = \"shop\"\n[queues.a]\nmax_priority = 3\n")
        .unwrap();
    let path = file.to_str().unwrap();
    let variables = [("COUNTERSIGN_HEARTBEAT", ""), ("COUNTERSIGN_BROKER_HEARTBEAT", "7s")];
    let broker = ["--broker", "amqp://ana:s3cret@host", "--config", path];
    let output = countersign(&[&["config", "show"], &broker[..]].concat(), &variables);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(!stdout.contains("s3cret"), "{stdout}");
    let records: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown = |name: &str| {
        let found = records.iter().find(|record| record["name"] == name).unwrap();
        (found["value"].as_str().unwrap().to_owned(), found["origin"].as_str().unwrap().to_owned())
    };
    let of = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(shown("broker.url"), of("amqp://ana:***@host", "the command line"));
    assert_eq!(shown("broker.heartbeat"), of("7s", "COUNTERSIGN_BROKER_HEARTBEAT"));
    assert_eq!(shown("store.key_prefix"), of("shop", &format!("{path}:2")));
    assert_eq!(shown("limits.result"), of("8MiB", "default"));
    assert_eq!(shown("queues.a.max_priority"), of("3", &format!("{path}:4")));
}

#[test]
fn help_has_examples_and_exit_codes() {
    for verb in
        [&["--help"][..], &["run", "--help"], &["failures", "--help"], &["queues", "--help"]]
    {
        let output = countersign(verb, &[]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("Examples:"), "{verb:?}");
    }
    let output = countersign(&["version", "-o", "json"], &[]);
    let version: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version["countersign"], env!("CARGO_PKG_VERSION"));
    assert!(!countersign(&["completion", "bash"], &[]).stdout.is_empty());
}
