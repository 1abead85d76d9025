//! A task that was running during crashes of workers runs in its own process, and blocks no other task.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use countersign::backend::{PublishRequest, Queue};
use countersign::protocol::Envelope;
use countersign::{Arguments, Client, Config};
use serde_json::Value;
use support::{DemoWorker, Effects, TIMEOUT, queue_name, servers};

async fn client() -> Client {
    let servers = servers();
    Client::connect(&Config::new(&servers.broker_url, &servers.store_url).unwrap()).await.unwrap()
}

/// Sends a task that, according to the store, was running during two crashes.
async fn send_suspect(client: &Client, queue: &str, seconds: f64) -> countersign::Handle<Value> {
    let mut message = Envelope::new("demo.sleep", Arguments::of(&(seconds,)).unwrap()).encode();
    message.mark_returned();
    let id = message.id.clone();
    for _ in 0..2 {
        client.backends().store.record_run(&id, false).await.unwrap();
    }
    let request =
        PublishRequest { message, queue: Queue::new(queue), delay: None, timeout: TIMEOUT };
    client.backends().broker.publish(request).await.map(drop).unwrap();
    client.handle(id.as_str())
}

/// Returns the ids of the processes that the worker has started for quarantined tasks.
fn children(worker: &DemoWorker) -> Vec<String> {
    let lines = worker.stderr();
    let lines = lines.lines().filter(|line| line.contains("started a process for quarantined"));
    let pid = |line: &str| serde_json::from_str::<Value>(line).unwrap()["pid"].to_string();
    lines.map(pid).collect()
}

async fn kill(pid: &str) {
    let killed = tokio::process::Command::new("kill").args(["-9", pid]).status().await.unwrap();
    assert!(killed.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_task_blocks_no_other_task() {
    let (client, queue) = (client().await, queue_name());
    let mut effects = Effects::at(&servers().store_url).await;
    let mut worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue, "-c", "2"], &[]);
    worker.ready().await;
    let suspect = send_suspect(&client, &queue, 25.0).await;
    worker.wait_for_log("started a process for quarantined").await;
    worker.wait_for_log(&format!("{queue}-quarantine\",\"queues")).await;
    for n in 0..20 {
        let arguments = Arguments::of(&(&effects.list, n.to_string())).unwrap();
        let mark = client.enqueue_named("demo.mark", arguments).queue(&queue).await.unwrap();
        mark.result_within(TIMEOUT).await.unwrap();
    }
    assert_eq!(effects.runs().await.len(), 20);
    assert!(client.status(suspect.id()).await.unwrap().is_none(), "the suspect still runs");
    let id = suspect.id().clone();
    assert_eq!(suspect.result_within(TIMEOUT).await.unwrap(), 25.0);
    let store = &client.backends().store;
    let forgotten = async { while store.crashes(&id).await.unwrap().runs > 0 {} };
    let crashes = tokio::time::timeout(TIMEOUT, forgotten).await;
    assert!(crashes.is_ok(), "its crashes are cleared after it has ended");
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0), "{}", worker.stderr());
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_task_ends_its_own_process_and_then_fails() {
    let (client, queue) = (client().await, queue_name());
    let mut worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue, "-c", "2"], &[]);
    worker.ready().await;
    let suspect = send_suspect(&client, &queue, 600.0).await;
    for crashes in 1..=2 {
        worker.wait_for_logs("started a process for quarantined", crashes, TIMEOUT).await;
        let store = &client.backends().store;
        let noted = async {
            while usize::try_from(store.crashes(suspect.id()).await.unwrap().alone).unwrap()
                < crashes
            {}
        };
        tokio::time::timeout(TIMEOUT, noted).await.expect("the task runs in isolation");
        kill(children(&worker).last().unwrap()).await;
    }
    let failed = suspect.result_within(TIMEOUT).await.unwrap_err();
    let failure = failed.failure().expect("the task has failed");
    assert_eq!(failure.exc_type, "WorkerLostError", "{failed}");
    let letters = client.backends().broker.inspect(&format!("{queue}.dead")).await.unwrap();
    assert_eq!(letters.unwrap().ready, 1);
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0), "{}", worker.stderr());
    client.close().await;
}

/// The child ends with its parent, and the child of the next worker runs the unfinished task.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_task_is_not_lost_with_its_worker() {
    let (client, queue) = (client().await, queue_name());
    let arguments = ["-Q", &queue, "-n", &queue, "-c", "2", "--drain-deadline", "1s"];
    let mut worker = DemoWorker::spawn(&arguments, &[]);
    worker.ready().await;
    let suspect = send_suspect(&client, &queue, 5.0).await;
    worker.wait_for_log(&format!("{queue}-quarantine\",\"queues")).await;
    worker.kill9().await;
    let _next = DemoWorker::spawn(&arguments, &[]);
    assert_eq!(suspect.result_within(TIMEOUT * 2).await.unwrap(), 5.0);
    client.close().await;
}
