//! The wake messages of suspended tasks wait in queues of their own.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use countersign::approval::ApprovalId;
use countersign::backend::Queue;
use countersign::{Arguments, Client, Config, Handle};
use serde_json::Value;
use support::{
    DemoWorker, Server, TIMEOUT, approve, queue_name, servers, wait_for_request,
    wait_until_suspended,
};
use url::Url;

const NO_HOLD: (&str, &str) = ("COUNTERSIGN_APPROVALS_HOLD", "0s");

async fn refund(client: &Client, queue: &str) -> Handle<Value> {
    let arguments = Arguments::of(&("o-1", 50_000)).unwrap();
    client.enqueue_named("demo.refund", arguments).queue(queue).await.unwrap()
}

fn request_id(task: &Handle<Value>) -> ApprovalId {
    ApprovalId::of(task.id(), "over-limit", 0)
}

/// The number of messages in the queue for waits of an hour; `None`: it does not exist.
async fn waiting(client: &Client, queue: &str) -> Option<u64> {
    let name = format!("{queue}.countersign-wake-1h");
    client.backends().broker.inspect(&name).await.unwrap().map(|state| state.ready)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wake_message_of_a_long_wait_is_in_a_queue_of_its_own() {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let (client, queue) = (Client::connect(&config).await.unwrap(), queue_name());
    let worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue], &[NO_HOLD]);
    worker.ready().await;
    let task = refund(&client, &queue).await;
    wait_until_suspended(&client, task.id()).await;
    assert_eq!(waiting(&client, &queue).await, Some(1));
    approve(&client, &request_id(&task)).await;
    task.result_within(TIMEOUT).await.unwrap();
    client.close().await;
}

/// A policy makes the wake message arrive early: while the task is suspended, it is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_the_store_has_lost_fails_by_its_wake_message() {
    let (rabbit, redis) = tokio::join!(Server::rabbit(), Server::redis());
    let policy = r#"{"message-ttl": 1000}"#;
    let pattern = "countersign-wake-";
    rabbit.control(&["set_policy", "--apply-to", "queues", "early", pattern, policy]).await;
    let config = Config::new(rabbit.url(), redis.url()).unwrap();
    let (client, queue) = (Client::connect(&config).await.unwrap(), queue_name());
    let urls = [("COUNTERSIGN_BROKER_URL", rabbit.url()), ("COUNTERSIGN_STORE_URL", redis.url())];
    let worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue], &[urls[0], urls[1], NO_HOLD]);
    worker.ready().await;
    let task = refund(&client, &queue).await;
    wait_until_suspended(&client, task.id()).await;
    let connection = redis::Client::open(redis.url()).unwrap();
    let mut connection = connection.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
    let error = task.result_within(TIMEOUT).await.unwrap_err();
    assert_eq!(error.failure().unwrap().exc_type, "StateLost", "{error}");
    client.close().await;
}

/// The exchanges of delayed delivery exist, but the worker's user may not declare the queues of wake
/// messages.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_permission_for_its_queue_a_wake_message_is_delayed_by_the_levels() {
    let rabbit = Server::rabbit().await;
    let config = Config::new(rabbit.url(), &servers().store_url).unwrap();
    let (client, queue) = (Client::connect(&config).await.unwrap(), queue_name());
    for of in [Queue::new(&queue), Queue::new(&queue).resume(), Queue::new(&queue).dead()] {
        // A delayed message declares the levels.
        let add = client.enqueue_named("demo.add", Arguments::of(&(1, 2)).unwrap());
        add.queue(&of.name).delay(std::time::Duration::from_millis(100)).await.unwrap();
    }
    rabbit.control(&["add_user", "limited", "limited"]).await;
    rabbit.control(&["set_permissions", "limited", "^$", ".*", ".*"]).await;
    let mut limited = Url::parse(rabbit.url()).unwrap();
    limited.set_username("limited").unwrap();
    limited.set_password(Some("limited")).unwrap();
    let urls = ("COUNTERSIGN_BROKER_URL", limited.as_str());
    let worker = DemoWorker::spawn(&["-Q", &queue, "-n", &queue], &[urls, NO_HOLD]);
    let task = refund(&client, &queue).await;
    wait_for_request(&client, &request_id(&task)).await;
    approve(&client, &request_id(&task)).await;
    task.result_within(TIMEOUT).await.unwrap();
    assert_eq!(waiting(&client, &queue).await, None);
    assert!(worker.stderr().contains("countersign-wake-1h"), "{}", worker.stderr());
    client.close().await;
}
