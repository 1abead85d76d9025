//! Parked tasks outlive every process, and end even when the store forgets them.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::time::Duration;

use countersign::approval::ApprovalId;
use countersign::{
    Arguments, Client, Config, Context, Handle, Policy, Task, TaskId, TaskResult, Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{DemoWorker, Running, Server, approve, parked, queue_name, scratch, servers, shown};
use tokio::sync::{Notify, oneshot};

/// The first park of a fresh broker makes the whole delay ladder.
const PATIENCE: Duration = Duration::from_secs(120);
const DEADLINE: Duration = Duration::from_secs(8);

fn question(task: &TaskId, name: &str) -> ApprovalId {
    ApprovalId::of(task, name, 0)
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
        parked(&client, handle.id()).await;
    }
    worker.kill9().await;
    // Half are decided while no worker is there.
    for handle in &handles[..10] {
        approve(&client, &question(handle.id(), "over-limit")).await;
    }
    let mut worker = DemoWorker::spawn(&arguments, &[]);
    worker.ready().await;
    for handle in &handles[10..] {
        approve(&client, &question(handle.id(), "over-limit")).await;
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
    ctx.approval("short").ask("Now?").expires_in(DEADLINE).await?.approved()
}

/// Asks twice; between the answers it stays until it is let go.
#[derive(Serialize, Deserialize)]
struct Twice {}

impl Task for Twice {
    const NAME: &'static str = "test.twice";
    type Output = ();
}

/// The state in which each of the tasks is that a store forgets.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_store_forgets_of_a_parked_task_it_ends_and_is_lost_or_done() {
    let redis = Server::redis().await;
    let mut config = Config::new(&servers().broker_url, redis.url()).unwrap();
    (config.hold, config.lease) = (Duration::ZERO, Duration::from_secs(1));
    let (go, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (may_go, has_begun) = (Arc::clone(&go), Arc::clone(&began));
    let twice = move |ctx: Context, _: Twice| {
        let (go, began) = (Arc::clone(&may_go), Arc::clone(&has_begun));
        async move {
            let ask = |name| ctx.approval(name).ask("Now?").expires_in(DEADLINE);
            ask("first").await?.approved()?;
            began.notify_one();
            go.notified().await;
            ask("second").await?.approved()
        }
    };
    let running = Running::start_with(&config, |worker| {
        worker.handle(ask, Policy::default()).handle(twice, Policy::default())
    });
    let running = running.await;
    let client = &running.client;
    let open = client.enqueue(Ask {}).queue(&running.queue).await.unwrap();
    parked(client, open.id()).await;
    let again = client.enqueue(Twice {}).queue(&running.queue).await.unwrap();
    parked(client, again.id()).await;
    go.notify_one();
    approve(client, &question(again.id(), "first")).await;
    began.notified().await;
    shown(client, &question(again.id(), "second")).await;
    let resumed = client.enqueue(Twice {}).queue(&running.queue).await.unwrap();
    parked(client, resumed.id()).await;
    approve(client, &question(resumed.id(), "first")).await;
    began.notified().await;
    flush(&redis).await;
    for (id, handle) in
        [(open.id().clone(), open), (again.id().clone(), again), (resumed.id().clone(), resumed)]
    {
        let error = handle.result_within(PATIENCE).await.unwrap_err();
        assert_eq!(error.failure().unwrap().exc_type, "StateLost", "{error}");
        assert!(is_audited_as_lost(client, &id).await);
    }
    running.drain().await;
}

/// The run that the store forgets ends before anybody misses its park.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_although_its_park_was_forgotten_is_not_lost() {
    let redis = Server::redis().await;
    let mut config = Config::new(&servers().broker_url, redis.url()).unwrap();
    config.hold = Duration::ZERO;
    let (go, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (may_go, has_begun) = (Arc::clone(&go), Arc::clone(&began));
    let once = move |ctx: Context, _: Ask| {
        let (go, began) = (Arc::clone(&may_go), Arc::clone(&has_begun));
        async move {
            let asked = ctx.approval("short").ask("Now?").expires_in(DEADLINE);
            asked.await?.approved()?;
            began.notify_one();
            go.notified().await;
            Ok(())
        }
    };
    let running = Running::start_with(&config, |worker| worker.handle(once, Policy::default()));
    let running = running.await;
    let client = &running.client;
    let handle = client.enqueue(Ask {}).queue(&running.queue).await.unwrap();
    let id = handle.id().clone();
    parked(client, handle.id()).await;
    approve(client, &question(handle.id(), "short")).await;
    began.notified().await;
    flush(&redis).await;
    go.notify_one();
    handle.result_within(PATIENCE).await.unwrap();
    // Behind the wake message, by the same way.
    let resume = format!("{}.countersign-resume", running.queue);
    let last = client.enqueue(Ask {}).queue(resume).delay(DEADLINE).await.unwrap();
    parked(client, last.id()).await;
    assert!(!is_audited_as_lost(client, &id).await);
    running.drain().await;
}

/// A sweep resumes it: its wake message comes in an hour, as if that were gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_wake_message_goes_on_at_its_deadline() {
    let file = scratch().join("parked.db");
    for config in [
        Config::new(&servers().broker_url, &servers().store_url).unwrap(),
        Config::embedded(&format!("sqlite:{}", file.display())).unwrap(),
    ] {
        let config = Config { hold: Duration::ZERO, ..config };
        let asking = |ctx: Context, _: Ask| async move {
            ctx.approval("long").ask("Now?").expires_in(DEADLINE * 900).await?.approved()
        };
        let running =
            Running::start_with(&config, |worker| worker.handle(asking, Policy::default())).await;
        let client = &running.client;
        let handle = client.enqueue(Ask {}).queue(&running.queue).await.unwrap();
        parked(client, handle.id()).await;
        let (id, passed) = (question(handle.id(), "long"), 1);
        if config.is_embedded() {
            let database = rusqlite::Connection::open(&file).unwrap();
            database.busy_timeout(PATIENCE).unwrap();
            let pass = "UPDATE questions SET deadline = ?1, listed = ?1 WHERE id = ?2";
            assert_eq!(database.execute(pass, (passed, id.as_str())).unwrap(), 1);
        } else {
            let redis = redis::Client::open(servers().store_url).unwrap();
            let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
            let mut pass = redis::pipe();
            pass.cmd("HSET").arg(format!("cs:ask:{{cs}}:{id}")).arg("deadline").arg(passed);
            pass.cmd("ZADD").arg("cs:pending:{cs}").arg(passed).arg(id.as_str());
            pass.exec_async(&mut redis).await.unwrap();
        }
        let error = handle.result_within(PATIENCE).await.unwrap_err();
        assert!(error.to_string().contains("nobody approved it in time"), "{error}");
        running.drain().await;
    }
}

async fn flush(redis: &Server) {
    let connection = redis::Client::open(redis.url()).unwrap();
    let mut connection = connection.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
}

async fn is_audited_as_lost(client: &Client, id: &TaskId) -> bool {
    let lost = [("what", "state lost"), ("task", id.as_str())];
    let lost = lost.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let entries = client.audit_entries(100).await.unwrap();
    entries.iter().any(|entry| lost.iter().all(|field| entry.fields.contains(field)))
}

fn worker_on(rabbit: &Server, redis: &Server, queue: &str) -> DemoWorker {
    let urls = [("COUNTERSIGN_BROKER_URL", rabbit.url()), ("COUNTERSIGN_STORE_URL", redis.url())];
    DemoWorker::spawn(&["-Q", queue], &urls)
}

/// A decision, and a deadline, after every process was gone.
#[tokio::test(flavor = "multi_thread")]
async fn parked_tasks_survive_the_restart_of_every_process() {
    let (mut rabbit, mut redis) = tokio::join!(Server::rabbit(), Server::redis());
    let config = Config::new(rabbit.url(), redis.url()).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let mut parks = worker_on(&rabbit, &redis, &queue);
    let refund = Arguments::of(&("o-1", 50_000)).unwrap();
    let handle: Handle<Value> =
        client.enqueue_named("demo.refund", refund).queue(&queue).await.unwrap();
    parked(&client, handle.id()).await;
    let running =
        Running::start_with(&config, |worker| worker.handle(ask, Policy::default())).await;
    let expiring = client.enqueue(Ask {}).queue(&running.queue).await.unwrap();
    parked(&client, expiring.id()).await;
    let (id, expiring, other) = (handle.id().clone(), expiring.id().clone(), running.queue.clone());
    parks.kill9().await;
    running.drain().await;
    client.close().await;
    drop(handle);
    tokio::join!(rabbit.stop(), redis.stop());
    tokio::join!(rabbit.start(), redis.start());

    let client = Client::connect(&config).await.unwrap();
    let mut resumes = worker_on(&rabbit, &redis, &queue);
    let handle = client.handle::<Value>(id);
    approve(&client, &question(handle.id(), "over-limit")).await;
    let receipt = handle.result_within(PATIENCE).await.unwrap();
    assert!(receipt.as_str().unwrap().starts_with("refunded"), "{receipt}");
    let running =
        Running::start_with(&config, |worker| worker.queue(&other).handle(ask, Policy::default()));
    let running = running.await;
    let error = client.handle::<()>(expiring).result_within(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("nobody approved it in time"), "{error}");
    running.drain().await;
    resumes.sigterm();
    assert_eq!(resumes.wait().await, Some(0));
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
    parked(&client, handle.id()).await;
    redis.stop().await;
    redis.start().await;
    client.connected().await;
    approve(&client, &question(handle.id(), "short")).await;
    handle.result_within(PATIENCE).await.unwrap();
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
    client.close().await;
}
