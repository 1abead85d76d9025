//! Suspended tasks outlive every process, and end even when the store loses them.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::time::Duration;

use countersign::approval::ApprovalId;
use countersign::{Arguments, Client, Config, Context, Handle, Task, TaskId, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{
    DemoWorker, Running, Server, TIMEOUT, approve, queue_name, scratch, servers, wait_for_request,
    wait_until_suspended,
};
use tokio::sync::{Notify, oneshot};

const DEADLINE: Duration = Duration::from_secs(8);

fn request_id(task: &TaskId, name: &str) -> ApprovalId {
    ApprovalId::of(task, name, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_suspended_by_a_killed_worker_are_resumed_by_another() {
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
        wait_until_suspended(&client, handle.id()).await;
    }
    worker.kill9().await;
    // Half of the requests are decided while no worker runs.
    for handle in &handles[..10] {
        approve(&client, &request_id(handle.id(), "over-limit")).await;
    }
    let mut worker = DemoWorker::spawn(&arguments, &[]);
    worker.ready().await;
    for handle in &handles[10..] {
        approve(&client, &request_id(handle.id(), "over-limit")).await;
    }
    for handle in handles {
        let receipt: Value = handle.result_within(TIMEOUT).await.unwrap();
        assert!(receipt.as_str().unwrap().starts_with("refunded 50000 cents"), "{receipt}");
    }
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    client.close().await;
}

#[derive(Serialize, Deserialize)]
struct NeedsApproval {}

impl Task for NeedsApproval {
    const NAME: &'static str = "test.ask";
    type Output = ();
}

async fn needs_approval(ctx: Context, _: NeedsApproval) -> TaskResult<()> {
    ctx.approval("short").title("Now?").expires_in(DEADLINE).await?.approved()
}

/// Requests two approvals; between the decisions it waits until the test notifies it.
#[derive(Serialize, Deserialize)]
struct Twice {}

impl Task for Twice {
    const NAME: &'static str = "test.twice";
    type Output = ();
}

/// The store loses tasks in three states: suspended, suspended again, and running after a resume.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_task_fails_as_lost_if_the_store_loses_its_state() {
    let redis = Server::redis().await;
    let mut config = Config::new(&servers().broker_url, redis.url()).unwrap();
    (config.hold, config.lease) = (Duration::ZERO, Duration::from_secs(1));
    let (go, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (may_go, has_begun) = (Arc::clone(&go), Arc::clone(&began));
    let twice = move |ctx: Context, _: Twice| {
        let (go, began) = (Arc::clone(&may_go), Arc::clone(&has_begun));
        async move {
            let request = |name| ctx.approval(name).title("Now?").expires_in(DEADLINE);
            request("first").await?.approved()?;
            began.notify_one();
            go.notified().await;
            request("second").await?.approved()
        }
    };
    let running =
        Running::start_with(&config, |worker| worker.handle(needs_approval).handle(twice));
    let running = running.await;
    let client = &running.client;
    let open = client.enqueue(NeedsApproval {}).queue(&running.queue).await.unwrap();
    wait_until_suspended(client, open.id()).await;
    let again = client.enqueue(Twice {}).queue(&running.queue).await.unwrap();
    wait_until_suspended(client, again.id()).await;
    go.notify_one();
    approve(client, &request_id(again.id(), "first")).await;
    began.notified().await;
    wait_for_request(client, &request_id(again.id(), "second")).await;
    let resumed = client.enqueue(Twice {}).queue(&running.queue).await.unwrap();
    wait_until_suspended(client, resumed.id()).await;
    approve(client, &request_id(resumed.id(), "first")).await;
    began.notified().await;
    flush(&redis).await;
    for (id, handle) in
        [(open.id().clone(), open), (again.id().clone(), again), (resumed.id().clone(), resumed)]
    {
        let error = handle.result_within(TIMEOUT).await.unwrap_err();
        assert_eq!(error.failure().unwrap().exc_type, "StateLost", "{error}");
        assert!(is_audited_as_lost(client, &id).await);
    }
    running.drain().await;
}

/// The run ends before any process notices that the store has lost its suspension.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_after_its_suspension_was_lost_succeeds() {
    let redis = Server::redis().await;
    let mut config = Config::new(&servers().broker_url, redis.url()).unwrap();
    config.hold = Duration::ZERO;
    let (go, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (may_go, has_begun) = (Arc::clone(&go), Arc::clone(&began));
    let once = move |ctx: Context, _: NeedsApproval| {
        let (go, began) = (Arc::clone(&may_go), Arc::clone(&has_begun));
        async move {
            let request = ctx.approval("short").title("Now?").expires_in(DEADLINE);
            request.await?.approved()?;
            began.notify_one();
            go.notified().await;
            Ok(())
        }
    };
    let running = Running::start_with(&config, |worker| worker.handle(once));
    let running = running.await;
    let client = &running.client;
    let handle = client.enqueue(NeedsApproval {}).queue(&running.queue).await.unwrap();
    let id = handle.id().clone();
    wait_until_suspended(client, handle.id()).await;
    approve(client, &request_id(handle.id(), "short")).await;
    began.notified().await;
    flush(&redis).await;
    go.notify_one();
    handle.result_within(TIMEOUT).await.unwrap();
    // This task is delayed behind the wake message in the same way.
    let resume = format!("{}.countersign-resume", running.queue);
    let last = client.enqueue(NeedsApproval {}).queue(resume).delay(DEADLINE).await.unwrap();
    wait_until_suspended(client, last.id()).await;
    assert!(!is_audited_as_lost(client, &id).await);
    running.drain().await;
}

/// A sweep resumes the task: its wake message is due in an hour, which simulates its loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_wake_message_resumes_at_its_deadline() {
    let file = scratch().join("suspended.db");
    for config in [
        Config::new(&servers().broker_url, &servers().store_url).unwrap(),
        Config::embedded(&format!("sqlite:{}", file.display())).unwrap(),
    ] {
        let config = Config { hold: Duration::ZERO, ..config };
        let long_wait = |ctx: Context, _: NeedsApproval| async move {
            ctx.approval("long").title("Now?").expires_in(DEADLINE * 900).await?.approved()
        };
        let running = Running::start_with(&config, |worker| worker.handle(long_wait)).await;
        let client = &running.client;
        let handle = client.enqueue(NeedsApproval {}).queue(&running.queue).await.unwrap();
        wait_until_suspended(client, handle.id()).await;
        let (id, passed) = (request_id(handle.id(), "long"), 1);
        if config.is_embedded() {
            let database = rusqlite::Connection::open(&file).unwrap();
            database.busy_timeout(TIMEOUT).unwrap();
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
        let error = handle.result_within(TIMEOUT).await.unwrap_err();
        assert!(error.to_string().contains("not approved before the deadline"), "{error}");
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

/// A decision, and a deadline, after every process was stopped.
#[tokio::test(flavor = "multi_thread")]
async fn suspended_tasks_survive_a_restart_of_every_process() {
    let (mut rabbit, mut redis) = tokio::join!(Server::rabbit(), Server::redis());
    let config = Config::new(rabbit.url(), redis.url()).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let mut suspending = worker_on(&rabbit, &redis, &queue);
    let refund = Arguments::of(&("o-1", 50_000)).unwrap();
    let handle: Handle<Value> =
        client.enqueue_named("demo.refund", refund).queue(&queue).await.unwrap();
    wait_until_suspended(&client, handle.id()).await;
    let running = Running::start_with(&config, |worker| worker.handle(needs_approval)).await;
    let expiring = client.enqueue(NeedsApproval {}).queue(&running.queue).await.unwrap();
    wait_until_suspended(&client, expiring.id()).await;
    let (id, expiring, other) = (handle.id().clone(), expiring.id().clone(), running.queue.clone());
    suspending.kill9().await;
    running.drain().await;
    client.close().await;
    drop(handle);
    tokio::join!(rabbit.stop(), redis.stop());
    tokio::join!(rabbit.start(), redis.start());

    let client = Client::connect(&config).await.unwrap();
    let mut resuming = worker_on(&rabbit, &redis, &queue);
    let handle = client.handle::<Value>(id);
    approve(&client, &request_id(handle.id(), "over-limit")).await;
    let receipt = handle.result_within(TIMEOUT).await.unwrap();
    assert!(receipt.as_str().unwrap().starts_with("refunded"), "{receipt}");
    let running =
        Running::start_with(&config, |worker| worker.queue(&other).handle(needs_approval));
    let running = running.await;
    let error = client.handle::<()>(expiring).result_within(TIMEOUT).await.unwrap_err();
    assert!(error.to_string().contains("not approved before the deadline"), "{error}");
    running.drain().await;
    resuming.sigterm();
    assert_eq!(resuming.wait().await, Some(0));
    client.close().await;
}

/// A decision while Redis restarts from its append-only file, and no process to send the resume message.
#[tokio::test(flavor = "multi_thread")]
async fn suspensions_and_decisions_survive_a_restart_of_the_store() {
    let mut redis = Server::redis().await;
    let config = Config::new(&servers().broker_url, redis.url()).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let workers = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let slow = |ctx: Context, _: NeedsApproval| async move {
        ctx.approval("short").title("Now?").await?.approved()
    };
    let worker = Worker::new(&workers).queue(&queue).handle(slow);
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
    let handle = client.enqueue(NeedsApproval {}).queue(&queue).await.unwrap();
    wait_until_suspended(&client, handle.id()).await;
    redis.stop().await;
    redis.start().await;
    client.connected().await;
    approve(&client, &request_id(handle.id(), "short")).await;
    handle.result_within(TIMEOUT).await.unwrap();
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
    client.close().await;
}
