//! A task that was running during crashes of workers runs in a process of its own, and holds up no other task.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::backend::{Parcel, Queue};
use countersign::protocol::Envelope;
use countersign::{Arguments, Client, Config};
use serde_json::Value;
use support::{DemoWorker, Effects, queue_name, servers};

const PATIENCE: Duration = Duration::from_secs(60);

async fn client() -> Client {
    let servers = servers();
    Client::connect(&Config::new(&servers.broker_url, &servers.store_url).unwrap()).await.unwrap()
}

/// Sends a task that was running during two crashes, as far as the store knows.
async fn send_suspect(client: &Client, queue: &str, seconds: f64) -> countersign::Handle<Value> {
    let mut message = Envelope::new("demo.sleep", Arguments::of(&(seconds,)).unwrap()).encode();
    message.mark_returned();
    let id = message.id.clone();
    for _ in 0..2 {
        client.backends().store.note_run(&id, false).await.unwrap();
    }
    let parcel = Parcel { message, queue: Queue::new(queue), delay: None, timeout: PATIENCE };
    client.backends().broker.publish(parcel).await.map(drop).unwrap();
    client.handle(id.as_str())
}

/// The processes that the worker has started for quarantined tasks so far.
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
async fn a_quarantined_task_holds_up_no_other_task() {
    let (client, queue) = (client().await, queue_name());
    let mut effects = Effects::at(&servers().store_url).await;
    let mut worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue, "-c", "2"], &[]);
    worker.ready().await;
    let suspect = send_suspect(&client, &queue, 8.0).await;
    worker.says("started a process for quarantined").await;
    worker.says(&format!("{queue}-quarantine\",\"queues")).await;
    for n in 0..100 {
        let arguments = Arguments::of(&(&effects.list, n.to_string())).unwrap();
        let mark = client.enqueue_named("demo.mark", arguments).queue(&queue).await.unwrap();
        mark.result_within(PATIENCE).await.unwrap();
    }
    assert_eq!(effects.runs().await.len(), 100);
    assert!(client.status(suspect.id()).await.unwrap().is_none(), "it still runs");
    let id = suspect.id().clone();
    assert_eq!(suspect.result_within(PATIENCE).await.unwrap(), 8.0);
    let store = &client.backends().store;
    let forgotten = async { while store.crashes(&id).await.unwrap().runs > 0 {} };
    let crashes = tokio::time::timeout(PATIENCE, forgotten).await;
    assert!(crashes.is_ok(), "it has ended, and its crashes are forgotten");
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
        worker.says_again("started a process for quarantined", crashes, PATIENCE).await;
        let store = &client.backends().store;
        let noted = async {
            while usize::try_from(store.crashes(suspect.id()).await.unwrap().alone).unwrap()
                < crashes
            {}
        };
        tokio::time::timeout(PATIENCE, noted).await.expect("it runs in isolation");
        kill(children(&worker).last().unwrap()).await;
    }
    let failed = suspect.result_within(PATIENCE).await.unwrap_err();
    let failure = failed.failure().expect("it has failed");
    assert_eq!(failure.exc_type, "WorkerLostError", "{failed}");
    let letters = client.backends().broker.inspect(&format!("{queue}.dead")).await.unwrap();
    assert_eq!(letters.unwrap().ready, 1);
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0), "{}", worker.stderr());
    client.close().await;
}

/// The child ends with its parent, and the child of the next worker runs what it left.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_task_is_not_lost_with_its_worker() {
    let (client, queue) = (client().await, queue_name());
    let arguments = ["-Q", &queue, "-n", &queue, "-c", "2", "--drain-deadline", "1s"];
    let mut worker = DemoWorker::spawn(&arguments, &[]);
    worker.ready().await;
    let suspect = send_suspect(&client, &queue, 5.0).await;
    worker.says(&format!("{queue}-quarantine\",\"queues")).await;
    worker.kill9().await;
    let _next = DemoWorker::spawn(&arguments, &[]);
    assert_eq!(suspect.result_within(PATIENCE * 2).await.unwrap(), 5.0);
    client.close().await;
}
