//! How a worker process ends: its signals, its deadlines, and logs that cannot be written.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use countersign::{Arguments, Client, Config, Handle};
use serde_json::Value;
use support::{DemoWorker, Effects, Proxy, TIMEOUT, binary, queue_name, servers};
use tokio::process::Command;

/// A margin for a loaded machine beyond a guaranteed deadline.
const SLACK: Duration = Duration::from_secs(3);
/// The time that a worker may take to close after its drain deadline.
const CLOSE: Duration = Duration::from_secs(2);

async fn client() -> Client {
    let servers = servers();
    Client::connect(&Config::new(&servers.broker_url, &servers.store_url).unwrap()).await.unwrap()
}

async fn sleep(client: &Client, queue: &str, seconds: f64) -> Handle<Value> {
    let arguments = Arguments::of(&(seconds,)).unwrap();
    client.enqueue_named("demo.sleep", arguments).queue(queue).await.unwrap()
}

async fn add(client: &Client, queue: &str) -> Handle<Value> {
    let arguments = Arguments::of(&(1, 2)).unwrap();
    client.enqueue_named("demo.add", arguments).queue(queue).await.unwrap()
}

/// Waits until the worker has received a message of its queue: it is the only consumer.
async fn wait_until_empty(client: &Client, queue: &str) {
    let broker = &client.backends().broker;
    while broker.inspect(queue).await.unwrap().is_none_or(|state| state.ready > 0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_signals_within_a_second_are_one() {
    let (client, queue) = (client().await, queue_name());
    let mut worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue], &[]);
    worker.ready().await;
    let task = sleep(&client, &queue, 2.0).await;
    wait_until_empty(&client, &queue).await;
    // A supervisor signals both the process group and the process.
    worker.sigterm();
    worker.signal("INT");
    assert_eq!(worker.wait().await, Some(0), "{}", worker.stderr());
    assert_eq!(task.result_within(TIMEOUT).await.unwrap(), 2.0);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_later_forces_the_shutdown() {
    let (client, queue) = (client().await, queue_name());
    let arguments = ["-Q", &queue, "-n", &queue, "--drain-deadline", "600s"];
    let mut worker = DemoWorker::spawn(&arguments, &[]);
    worker.ready().await;
    let task = sleep(&client, &queue, 600.0).await;
    wait_until_empty(&client, &queue).await;
    worker.sigterm();
    worker.wait_for_log("draining for at most").await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1100) {
        tokio::task::yield_now().await;
    }
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(75), "{}", worker.stderr());
    drop(task);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_drains_unless_it_is_ignored_at_start() {
    let (client, queue) = (client().await, queue_name());
    let mut worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue], &[]);
    worker.ready().await;
    let task = sleep(&client, &queue, 1.0).await;
    wait_until_empty(&client, &queue).await;
    worker.signal("HUP");
    assert_eq!(worker.wait().await, Some(0), "{}", worker.stderr());
    assert_eq!(task.result_within(TIMEOUT).await.unwrap(), 1.0);

    let mut command = Command::new("sh");
    let demo = binary("demo").display().to_string();
    command.args(["-c", &format!("trap '' HUP; exec {demo} -Q {queue} -n {queue}")]);
    let mut worker = DemoWorker::start(command);
    worker.ready().await;
    worker.signal("HUP");
    let task = add(&client, &queue).await;
    assert_eq!(task.result_within(TIMEOUT).await.unwrap(), 3);
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    assert_eq!(worker.stderr().matches("draining for at most").count(), 1);
    client.close().await;
}

/// Sixty tasks sleep, their channel is lost once, and all sixty are delivered again: the stale and the
/// new deliveries together exceed one prefetch.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_after_a_lost_connection_ends_within_its_deadline() {
    let (client, queue) = (client().await, queue_name());
    let (proxy, broker) = Proxy::before(&servers().broker_url).await;
    let arguments =
        ["-Q", &queue, "-n", &queue, "-c", "4", "--prefetch", "60", "--drain-deadline", "2s"];
    let mut worker = DemoWorker::spawn(&arguments, &[("COUNTERSIGN_BROKER_URL", &broker)]);
    worker.ready().await;
    for _ in 0..60 {
        sleep(&client, &queue, 600.0).await;
    }
    wait_until_empty(&client, &queue).await;
    proxy.cut();
    worker.wait_for_logs(&format!("consuming {queue}\""), 2, TIMEOUT).await;
    wait_until_empty(&client, &queue).await;
    let begun = Instant::now();
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(75), "{}", worker.stderr());
    assert!(begun.elapsed() < Duration::from_secs(2) + CLOSE + SLACK, "{:?}", begun.elapsed());
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_within_its_deadline_though_the_broker_is_frozen() {
    let queue = queue_name();
    let (proxy, broker) = Proxy::before(&servers().broker_url).await;
    let arguments = ["-Q", &queue, "-n", &queue, "--drain-deadline", "2s"];
    let mut worker = DemoWorker::spawn(&arguments, &[("COUNTERSIGN_BROKER_URL", &broker)]);
    worker.ready().await;
    proxy.blackhole();
    let begun = Instant::now();
    worker.sigterm();
    worker.wait().await;
    assert!(begun.elapsed() < Duration::from_secs(2) + CLOSE + SLACK, "{:?}", begun.elapsed());
    assert!(worker.stderr().contains("draining for at most 4 s"), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_within_its_deadline_though_a_result_cannot_be_stored() {
    let (client, queue) = (client().await, queue_name());
    let servers = servers();
    let (by_rabbit, broker) = Proxy::before(&servers.broker_url).await;
    let (by_redis, store) = Proxy::before(&servers.store_url).await;
    let arguments = ["-Q", &queue, "-n", &queue, "--drain-deadline", "2s"];
    let variables = [
        ("COUNTERSIGN_BROKER_URL", &*broker),
        ("COUNTERSIGN_STORE_URL", &*store),
        ("DEMO_MARKS_URL", &*servers.store_url),
    ];
    let mut worker = DemoWorker::spawn(&arguments, &variables);
    worker.ready().await;
    // The test waits until the task runs: a message that the broker has sent may still be in transit.
    let mut effects = Effects::at(&servers.store_url).await;
    let arguments = Arguments::of(&(&effects.list, "begun", 1.0)).unwrap();
    let _ = client.enqueue_named("demo.mark", arguments).queue(&queue).await.unwrap();
    while effects.runs().await.is_empty() {}
    by_redis.blackhole();
    by_rabbit.blackhole();
    let begun = Instant::now();
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(75), "{}", worker.stderr());
    assert!(begun.elapsed() < Duration::from_secs(2) + CLOSE + SLACK, "{:?}", begun.elapsed());
    client.close().await;
}

/// Starts a worker whose standard error is `stderr`, lets it run tasks that log, and drains it.
async fn works_with(stderr: Stdio, level: &str) {
    let (client, queue) = (client().await, queue_name());
    let mut worker = Command::new(binary("demo"))
        .args(["-Q", &queue, "-n", &queue, "--drain-deadline", "2s"])
        .env("RUST_LOG", level)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    for _ in 0..200 {
        let task = add(&client, &queue).await;
        assert_eq!(task.result_within(TIMEOUT).await.unwrap(), 3);
    }
    let pid = worker.id().unwrap().to_string();
    let begun = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let ended = tokio::time::timeout(TIMEOUT, worker.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(2) + CLOSE + SLACK, "{:?}", begun.elapsed());
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_log_pipe_stops_no_task() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    works_with(writer.into(), "debug").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_pipe_stops_no_task() {
    let (_reader, writer) = std::io::pipe().unwrap();
    works_with(writer.into(), "trace").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_a_full_disk_stops_no_task() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    works_with(full.into(), "debug").await;
}

async fn shell(script: &str) -> (Option<i32>, String) {
    let output = Command::new("bash").args(["-c", script]).stdin(Stdio::null()).output();
    let output = output.await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_output_pipe_is_closed_exits_quietly() {
    let countersign = binary("countersign").display().to_string();
    for reader in ["head -1", "true"] {
        let script = format!(
            "for n in $(seq 20); do {countersign} config list -o jsonl; done | {reader} >/dev/null; \
             echo ${{PIPESTATUS[0]}} >&2; {countersign} config list | {reader} >/dev/null; \
             exit ${{PIPESTATUS[0]}}"
        );
        let (code, stderr) = shell(&script).await;
        assert_eq!(code, Some(0), "{reader}: {stderr}");
        assert!(!stderr.contains("panicked"), "{reader}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_to_a_full_disk_is_a_reported_error() {
    let countersign = binary("countersign").display().to_string();
    for verb in ["config list", "--help", "--version"] {
        let (code, stderr) = shell(&format!("{countersign} {verb} > /dev/full")).await;
        assert_eq!(code, Some(74), "{verb}: {stderr}");
        assert!(stderr.contains("cannot write to standard output"), "{verb}: {stderr}");
        assert!(!stderr.contains("panicked"), "{verb}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unwritable_health_file_is_logged_once_and_its_folder_can_be_set() {
    let queue = queue_name();
    let variables = [("TMPDIR", "/proc/nowhere")];
    let mut worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue], &variables);
    worker.wait_for_log("cannot write the health file /proc/nowhere").await;
    worker.sigterm();
    worker.wait().await;

    let folder = support::scratch().display().to_string();
    let variables = [("TMPDIR", "/proc/nowhere"), ("COUNTERSIGN_WORKER_HEALTH_DIR", &*folder)];
    let mut worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue], &variables);
    worker.ready().await;
    let is_ready = async {
        loop {
            let output = Command::new(binary("demo"))
                .args(["-n", &queue, "health"])
                .envs(variables)
                .output();
            if output.await.unwrap().status.success() {
                return;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, is_ready).await.unwrap();
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    assert!(!worker.stderr().contains("cannot write the health file"));
}
