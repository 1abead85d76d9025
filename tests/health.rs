//! The health of a worker, as reported inside its own process.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::time::Duration;

use countersign::{Client, Config, Context, HealthHandle, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use support::{Server, TIMEOUT, queue_name, servers};
use tokio::sync::{Barrier, Notify, oneshot};
use tokio::time::timeout;

#[derive(Serialize, Deserialize)]
struct Hold {}

impl Task for Hold {
    const NAME: &'static str = "test.hold";
    type Output = ();
}

async fn faults(health: &HealthHandle) -> Vec<(String, Option<String>)> {
    health.run_checks().await.into_iter().map(|checked| (checked.name, checked.fault)).collect()
}

async fn becomes_unready(health: &HealthHandle) {
    let unready = async {
        while health.is_ready() {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, unready).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_ready_while_it_consumes_and_not_while_it_drains() {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let (client, producer) =
        (Client::connect(&config).await.unwrap(), Client::connect(&config).await.unwrap());
    let (queue, begun, go) = (queue_name(), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (started, release) = (Arc::clone(&begun), Arc::clone(&go));
    let hold = move |_: Context, _: Hold| {
        let (started, release) = (Arc::clone(&started), Arc::clone(&release));
        async move {
            started.notify_one();
            release.notified().await;
            TaskResult::Ok(())
        }
    };
    let worker = Worker::new(&client).queue(&queue).name(&queue).handle(hold);
    let health = worker.health();
    assert!(!health.is_ready() && health.is_live());
    let error = health.ready(Duration::from_millis(20)).await.unwrap_err();
    assert!(error.is_timeout() && error.to_string().contains("not started"), "{error}");

    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(worker.run(async { drop(stopped.await) }));
    health.ready(TIMEOUT).await.unwrap();
    assert!(health.is_ready() && health.is_live());
    producer.enqueue(Hold {}).queue(&queue).await.unwrap();
    begun.notified().await;
    drop(stop);
    becomes_unready(&health).await;
    assert_eq!(health.fault(), Some("it is draining"));
    assert!(health.is_live(), "it drains, and must not be killed");
    go.notify_one();
    run.await.unwrap().unwrap();
    assert!(!health.is_live());
    assert_eq!(health.fault(), Some("it has ended"));
    producer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_its_broker_is_live_and_not_ready() {
    let mut rabbit = Server::rabbit().await;
    let config = Config::new(rabbit.url(), &servers().store_url).unwrap();
    let client = Client::start(&config).unwrap();
    let queue = queue_name();
    let worker = Worker::new(&client).queue(&queue).name(&queue);
    let health = worker.health();
    let (stop, stopped) = oneshot::channel::<()>();
    let run = tokio::spawn(worker.run(async { drop(stopped.await) }));
    health.ready(TIMEOUT).await.unwrap();
    rabbit.stop().await;
    becomes_unready(&health).await;
    assert_eq!(health.fault(), Some("it is not connected to the broker"));
    assert!(health.is_live());
    rabbit.start().await;
    health.ready(TIMEOUT).await.unwrap();
    drop(stop);
    run.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_run_concurrently_and_each_is_reported() {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    // Each check waits for the other: run one after the other, both would time out.
    let together = Arc::new(Barrier::new(2));
    let (one, other) = (Arc::clone(&together), Arc::clone(&together));
    let meet = |barrier: Arc<Barrier>| async move {
        barrier.wait().await;
        Ok::<(), String>(())
    };
    let worker = Worker::new(&client)
        .check("one", move || meet(Arc::clone(&one)))
        .check("other", move || meet(Arc::clone(&other)))
        .check("database", || async { Err("too many connections") })
        .check("broken", || async { if true { panic!("boom") } else { Ok::<(), String>(()) } });
    let found = faults(&worker.health()).await;
    let expected = [
        ("worker", Some("it has not started to consume")),
        ("one", None),
        ("other", None),
        ("database", Some("too many connections")),
        ("broken", Some("it panicked")),
    ];
    let expected = expected.map(|(name, fault)| (name.to_owned(), fault.map(str::to_owned)));
    assert_eq!(found, expected);
    client.close().await;
}
