//! A producer's options: priorities, idempotency keys, batches, and synchronous programs.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign::config::{QueueSettings, QueueType};
use countersign::protocol::State;
use countersign::{
    Arguments, Client, Config, Context, Task, TaskError, TaskResult, Worker, blocking, gather,
    gather_within,
};
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Connection, ConnectionProperties};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use support::{Running, Server, TIMEOUT, queue_name, servers};
use tokio::sync::oneshot;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Echo {
    word: String,
}

impl Task for Echo {
    const NAME: &'static str = "test.say";
    type Output = String;
}

fn echo(word: &str) -> Echo {
    Echo { word: word.into() }
}

async fn handle_echo(_: Context, echo: Echo) -> TaskResult<String> {
    match echo.word.as_str() {
        "fail" => Err(TaskError::fatal("as requested")),
        word => Ok(word.to_owned()),
    }
}

fn config() -> Config {
    Config::new(&servers().broker_url, &servers().store_url).unwrap()
}

/// A configuration in which this queue has ten priorities.
fn prioritised(queue: &str) -> Config {
    let mut config = config();
    let settings = QueueSettings { max_priority: Some(10), ..QueueSettings::default() };
    config.queues.insert(queue.to_owned(), settings);
    config
}

async fn broker(url: &str) -> lapin::Channel {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    connection.create_channel().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_priority_goes_first() {
    let queue = queue_name();
    let client = Client::connect(&prioritised(&queue)).await.unwrap();
    let mut handles = Vec::new();
    for priority in [1, 0, 9, 5] {
        let task = client.enqueue(echo(&priority.to_string())).queue(&queue).priority(priority);
        handles.push(task.await.unwrap());
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&order);
    let note = move |_: Context, echo: Echo| {
        noted.lock().unwrap().push(echo.word.clone());
        async move { Ok(echo.word) }
    };
    let workers = Client::connect(&prioritised(&queue)).await.unwrap();
    let worker = Worker::new(&workers).queue(&queue).name(&queue).concurrency(1).prefetch(1);
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = worker.handle(note).run(async { drop(stopped.await) });
    let worker = tokio::spawn(worker);
    for result in gather_within(handles, 8, TIMEOUT).await {
        result.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), ["9", "5", "1", "0"]);
    drop(stop);
    worker.await.unwrap().unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_priority_without_a_priority_queue_is_refused() {
    let queue = queue_name();
    let plain = Client::connect(&config()).await.unwrap();
    let error = plain.enqueue(echo("x")).queue(&queue).priority(3).await.unwrap_err();
    assert!(error.is_priority(), "{error}");
    assert!(error.to_string().contains(&format!("[queues.\"{queue}\"]")), "{error}");

    plain.enqueue(echo("made without priorities")).queue(&queue).await.unwrap();
    let client = Client::connect(&prioritised(&queue)).await.unwrap();
    let error = client.enqueue(echo("x")).queue(&queue).priority(3).await.unwrap_err();
    assert!(error.is_queue_mismatch(), "{error}");
    let error = client.enqueue(echo("x")).queue(&queue).priority(11).await.unwrap_err();
    assert!(error.is_priority() && error.to_string().contains("at most 10"), "{error}");
    client.enqueue(echo("x")).queue(&queue).await.unwrap();
    client.close().await;
    plain.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_declared_as_configured() {
    let queue = queue_name();
    let mut config = config();
    let settings = QueueSettings { kind: QueueType::Quorum, ..QueueSettings::default() };
    config.queues.insert(queue.clone(), settings);
    let client = Client::connect(&config).await.unwrap();
    client.enqueue(echo("x")).queue(&queue).await.unwrap();
    let channel = broker(&servers().broker_url).await;
    let mut arguments = FieldTable::default();
    let quorum = AMQPValue::LongString(LongString::from("quorum"));
    arguments.insert("x-queue-type".into(), quorum);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
    let options = QueueDeleteOptions::default();
    channel.queue_delete(queue.as_str().into(), options).await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sent_idempotency_key_returns_the_first_task() {
    let running = Running::start(|worker| worker.handle(handle_echo)).await;
    let key = queue_name();
    let keyed =
        |word| running.client.enqueue(echo(word)).queue(&running.queue).idempotency_key(&key);
    let first = keyed("first").await.unwrap();
    let again = keyed("second").await.unwrap();
    assert_eq!(first.id(), again.id());
    assert_eq!(again.result_within(TIMEOUT).await.unwrap(), "first");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsent_idempotency_key_sends_the_same_id_again() {
    let (full, queue, key) = (queue_name(), queue_name(), queue_name());
    let client = Client::connect(&config()).await.unwrap();
    refuse_all(&full).await;
    let error = client.enqueue(echo("x")).queue(&full).idempotency_key(&key).await.unwrap_err();
    assert!(error.is_backpressure(), "{error}");

    let store = redis::Client::open(servers().store_url).unwrap();
    let mut store = store.get_multiplexed_async_connection().await.unwrap();
    let stored = async |store: &mut redis::aio::MultiplexedConnection| {
        let text: String = store.get(format!("cs:key:test.say:{key}")).await.unwrap();
        text
    };
    let unsent = stored(&mut store).await;
    let sent = client.enqueue(echo("x")).queue(&queue).idempotency_key(&key).await.unwrap();
    assert_eq!(unsent, format!("unsent {}", sent.id()));
    assert_eq!(stored(&mut store).await, format!("sent {}", sent.id()));
    let lives: i64 = store.ttl(format!("cs:key:test.say:{key}")).await.unwrap();
    assert!((86_000..=86_400).contains(&lives), "{lives}");
    client.close().await;
}

/// Declares a queue that rejects every message.
async fn refuse_all(queue: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
    let refuse = AMQPValue::LongString(LongString::from("reject-publish"));
    arguments.insert("x-overflow".into(), refuse);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let channel = broker(&servers().broker_url).await;
    channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_invalid_task_in_a_batch_fails_alone() {
    let mut small = config();
    small.max_arguments = 1000;
    let client = Client::connect(&small).await.unwrap();
    let running = Running::start(|worker| worker.handle(handle_echo)).await;
    let long = "x".repeat(1000);
    let words = (0..2000).map(|n| match n {
        700 => long.clone(),
        900 => "fail".to_owned(),
        n => n.to_string(),
    });
    let tasks = words.map(|word| client.enqueue(Echo { word }).queue(&running.queue));
    let mut sent = client.enqueue_all(tasks).await;
    assert_eq!(sent.len(), 2000);
    assert!(sent.remove(700).unwrap_err().is_too_large());
    let handles = sent.into_iter().map(Result::unwrap);
    let mut results = gather_within(handles, 64, TIMEOUT).await;
    let failed = results.remove(899).unwrap_err();
    assert_eq!(failed.failure().unwrap().message(), "as requested");
    for (n, result) in results.into_iter().enumerate() {
        let expected = if n < 700 {
            n
        } else if n < 899 {
            n + 1
        } else {
            n + 2
        };
        assert_eq!(result.unwrap(), expected.to_string());
    }
    running.drain().await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gather_within_returns_the_results_so_far() {
    let running = Running::start(|worker| worker.handle(handle_echo)).await;
    let done = running.client.enqueue(echo("done")).queue(&running.queue).await.unwrap();
    let never = running.client.handle::<String>("no-such-task");
    let results = gather_within([never, done], 2, Duration::from_secs(3)).await;
    assert!(results[0].as_ref().unwrap_err().is_timeout());
    assert_eq!(results[1].as_ref().unwrap(), "done");
    assert!(gather(Vec::<countersign::Handle<String>>::new(), 0).await.is_empty());
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_returns_the_stored_document() {
    let running = Running::start(|worker| worker.handle(handle_echo)).await;
    let client = &running.client;
    let handle = client.enqueue(echo("fail")).queue(&running.queue).await.unwrap();
    let id = handle.id().clone();
    handle.result_within(TIMEOUT).await.unwrap_err();
    let status = client.status(&id).await.unwrap().unwrap();
    assert_eq!(status.state, State::Failure);
    assert_eq!(status.failure().message(), "as requested");
    assert!(client.status(&"no-such-task".into()).await.unwrap().is_none());
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocking_client_works_inside_and_outside_of_a_runtime() {
    let running = Running::start(|worker| worker.handle(handle_echo)).await;
    let queue = running.queue.clone();
    let work = move || {
        let client = blocking::Client::connect(&config()).unwrap();
        let handle = client.send(client.enqueue(echo("hello")).queue(&queue)).unwrap();
        let id = handle.id().clone();
        assert_eq!(client.result_within(handle, TIMEOUT).unwrap(), "hello");
        assert_eq!(client.status(&id).unwrap().unwrap().state, State::Success);
        client.forget(&id).unwrap();
        assert!(client.status(&id).unwrap().is_none());
        let batch = ["a", "fail"].map(|word| client.enqueue(echo(word)).queue(&queue));
        let handles = client.send_all(batch).unwrap().into_iter().map(Result::unwrap);
        let results = client.gather(handles, 2).unwrap();
        assert_eq!(results[0].as_ref().unwrap(), "a");
        assert!(results[1].is_err());
        client.close();
    };
    std::thread::spawn(work.clone()).join().unwrap();
    work();
    tokio::spawn(async move { work() }).await.unwrap();
    running.drain().await;
}

#[test]
fn a_blocking_client_works_on_the_only_thread_of_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let client = blocking::Client::connect(&config()).unwrap();
        let task = client.enqueue(echo("x")).queue(queue_name()).idempotency_key(queue_name());
        client.send(task).unwrap();
        drop(client);
    });
}

#[test]
fn client_futures_work_on_another_executor() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let queue = queue_name();
    let client = runtime.block_on(Client::connect(&prioritised(&queue))).unwrap();
    futures_executor::block_on(async {
        let task = client.enqueue(echo("x")).queue(&queue).priority(2).idempotency_key(&queue);
        let handle = task.await.unwrap();
        assert!(client.status(handle.id()).await.unwrap().is_none());
        let error = handle.result_within(Duration::from_millis(50)).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
    });
    runtime.block_on(client.close());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_refuses_is_backpressure() {
    let queue = queue_name();
    refuse_all(&queue).await;
    let client = Client::connect(&config()).await.unwrap();
    let error = client.enqueue(echo("x")).queue(&queue).await.unwrap_err();
    assert!(error.is_backpressure() && error.to_string().contains("full"), "{error}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_alarm_is_backpressure_until_it_ends() {
    let rabbit = Server::rabbit().await;
    let mut config = Config::new(rabbit.url(), &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    client.enqueue(echo("before")).queue(&queue).await.unwrap();
    rabbit.control(&["set_vm_memory_high_watermark", "0.0000001"]).await;

    // The broker blocks a connection at its first publish: this message is in transit, and is held.
    config.publish_timeout = Duration::from_secs(2);
    let held = Client::connect(&config).await.unwrap();
    let task = held.enqueue_named("test.say", Arguments::default()).queue(&queue);
    let error = task.id("held").await.unwrap_err();
    assert!(error.is_backpressure(), "{error}");
    let error = held.enqueue(echo("at once")).queue(&queue).id("refused").await.unwrap_err();
    assert!(error.is_backpressure() && error.to_string().contains("memory"), "{error}");

    rabbit.control(&["set_vm_memory_high_watermark", "0.9"]).await;
    client.enqueue(echo("after")).queue(&queue).await.unwrap();
    let channel = broker(rabbit.url()).await;
    let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let state = channel.queue_declare(queue.as_str().into(), look, FieldTable::default());
    // The message that was refused at once never arrives; the held one does.
    assert_eq!(state.await.unwrap().message_count(), 3);
    held.close().await;
    client.close().await;
}
