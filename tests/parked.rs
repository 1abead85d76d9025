//! Parked tasks outlive every process, and end even when the store forgets them.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::approval::{Answer, ApprovalId};
use countersign::{Arguments, Client, Config, Context, Handle, Policy, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{DemoWorker, Server, queue_name, servers};
use tokio::sync::oneshot;

/// The first park of a fresh broker makes the whole delay ladder.
const PATIENCE: Duration = Duration::from_secs(120);

async fn parked<O: serde::de::DeserializeOwned>(client: &Client, handle: &Handle<O>) {
    let wait = async {
        loop {
            let status = client.status(handle.id()).await.unwrap();
            let is_over = status.as_ref().is_some_and(|status| status.state.is_terminal());
            assert!(!is_over, "not parked: {status:?}");
            if status.is_some_and(|status| status.state.as_str() == "PARKED") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

async fn approve<O>(client: &Client, handle: &Handle<O>, name: &str)
where
    O: serde::de::DeserializeOwned,
{
    let asked = client.approval(&ApprovalId::of(handle.id(), name, 0)).await.unwrap();
    assert_eq!(client.decide(&asked.approve("ana")).await.unwrap(), Answer::Applied);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_parked_by_a_worker_that_was_killed_are_resumed_by_another() {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let arguments = ["-Q", &queue, "-c", "2"];
    let mut worker = DemoWorker::spawn(&arguments, &[("COUNTERSIGN_APPROVALS_HOLD", "0s")]);
    worker.ready().await;
    let mut handles = Vec::new();
    for order in 0..20 {
        let arguments = Arguments::of(&(format!("o-{order}"), 50_000)).unwrap();
        handles.push(client.enqueue_named("demo.refund", arguments).queue(&queue).await.unwrap());
    }
    for handle in &handles {
        parked(&client, handle).await;
    }
    worker.kill9().await;
    // Half are decided while no worker is there.
    for handle in &handles[..10] {
        approve(&client, handle, "over-limit").await;
    }
    let mut worker = DemoWorker::spawn(&arguments, &[]);
    worker.ready().await;
    for handle in &handles[10..] {
        approve(&client, handle, "over-limit").await;
    }
    for handle in handles {
        let receipt: Value = handle.result_within(PATIENCE).await.unwrap();
        assert!(receipt.as_str().unwrap().starts_with("refunded 50000 cents"), "{receipt}");
    }
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    client.close().await;
}

#[derive(Serialize, Deserialize)]
struct Ask {}

impl Task for Ask {
    const NAME: &'static str = "test.ask";
    type Output = ();
}

async fn ask(ctx: Context, _: Ask) -> TaskResult<()> {
    ctx.approval("short").ask("Now?").expires_in(Duration::from_secs(2)).await?.approved()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_forgets_everything_ends_its_parked_tasks_by_their_deadline() {
    let redis = Server::redis().await;
    let config = Config::new(&servers().broker_url, redis.url()).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let workers = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let worker = Worker::new(&workers).queue(&queue).handle(ask, Policy::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
    let handle = client.enqueue(Ask {}).queue(&queue).await.unwrap();
    parked(&client, &handle).await;
    let connection = redis::Client::open(redis.url()).unwrap();
    let mut connection = connection.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    let error = handle.result_within(PATIENCE).await.unwrap_err();
    assert_eq!(error.failure().unwrap().exc_type, "StateLost", "{error}");
    let entries = client.audit_entries(10).await.unwrap();
    let what = ("what".to_owned(), "state lost".to_owned());
    assert!(entries.iter().any(|entry| entry.fields.contains(&what)), "{entries:?}");
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
    client.close().await;
}

/// A decision while Redis restarts from its append-only file, and nobody to send the resume.
#[tokio::test(flavor = "multi_thread")]
async fn parks_and_decisions_survive_a_restart_of_the_store() {
    let mut redis = Server::redis().await;
    let config = Config::new(&servers().broker_url, redis.url()).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let workers = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let slow =
        |ctx: Context, _: Ask| async move { ctx.approval("short").ask("Now?").await?.approved() };
    let worker = Worker::new(&workers).queue(&queue).handle(slow, Policy::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
    let handle = client.enqueue(Ask {}).queue(&queue).await.unwrap();
    parked(&client, &handle).await;
    redis.stop().await;
    redis.start().await;
    client.connected().await;
    approve(&client, &handle, "short").await;
    handle.result_within(PATIENCE).await.unwrap();
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
    client.close().await;
}
