//! A task runs once unless a process dies: long waits, lost connections, reused ids and repeated deliveries
//! run nothing again. Each test counts runs, in its handler or in a Redis list.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::backend::{AuditAction, Delivery, PublishRequest, Queue, StoreResult};
use countersign::config::{QueueSettings, QueueType};
use countersign::{
    Arguments, Client, Config, Context, Policy, Retry, Task, TaskError, TaskResult, Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{DemoWorker, Effects, Proxy, Running, TIMEOUT, queue_name, servers};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

#[derive(Serialize, Deserialize)]
struct Work {
    n: usize,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    type Output = usize;
}

fn config() -> Config {
    let servers = servers();
    Config::new(&servers.broker_url, &servers.store_url).unwrap()
}

async fn mark(client: &Client, queue: &str, list: &str, value: &str) -> countersign::Handle<Value> {
    let arguments = Arguments::of(&(list, value)).unwrap();
    client.enqueue_named("demo.mark", arguments).queue(queue).await.unwrap()
}

/// Waits until no message of the queue waits for a consumer.
async fn wait_until_empty(client: &Client, queue: &str) {
    let broker = &client.backends().broker;
    while broker.inspect(queue).await.unwrap().is_none_or(|state| state.ready > 0) {
        tokio::task::yield_now().await;
    }
}

/// Returns the one message of a queue, which goes back when the delivery is dropped.
async fn peek(client: &Client, queue: &str) -> Delivery {
    loop {
        let (mut fetched, _) = client.backends().broker.fetch(queue, 1).await.unwrap();
        if let Some(delivery) = fetched.pop() {
            return delivery;
        }
    }
}

/// A worker with one slot holds messages for two seconds at most, and a task runs in the slot for ten
/// minutes: the prefetched messages run elsewhere, once.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_cannot_start_before_the_consumer_timeout_run_elsewhere() {
    let client = Client::connect(&config()).await.unwrap();
    let queue = queue_name();
    let mut effects = Effects::at(&servers().store_url).await;
    let timeout = [("COUNTERSIGN_BROKER_CONSUMER_TIMEOUT", "6s")];
    let arguments = ["-Q", &queue, "-n", &queue, "-c", "1", "--prefetch", "10"];
    let busy = DemoWorker::spawn(&arguments, &timeout);
    busy.ready().await;
    let long = Arguments::of(&(600,)).unwrap();
    client.enqueue_named("demo.sleep", long).queue(&queue).await.unwrap();
    let mut marks = Vec::new();
    for n in 0..5 {
        marks.push(mark(&client, &queue, &effects.list, &n.to_string()).await);
    }
    wait_until_empty(&client, &queue).await;
    busy.wait_for_log("pausing the consumer").await;
    let _other = DemoWorker::spawn(&["-Q", &queue, "-n", "other"], &[]);
    for mark in marks {
        mark.result_within(TIMEOUT).await.unwrap();
    }
    let runs = effects.runs().await;
    assert_eq!(runs.len(), 5);
    assert!(runs.values().all(|times| *times == 1), "{runs:?}");
    client.close().await;
}

/// The paused worker continues when its slot is free, with the messages that are in the queue then.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_consumer_resumes_when_a_permit_is_free() {
    let client = Client::connect(&config()).await.unwrap();
    let queue = queue_name();
    let timeout = [("COUNTERSIGN_BROKER_CONSUMER_TIMEOUT", "6s")];
    let arguments = ["-Q", &queue, "-n", &queue, "-c", "1", "--prefetch", "10"];
    let busy = DemoWorker::spawn(&arguments, &timeout);
    busy.ready().await;
    let mut sleeps = Vec::new();
    for _ in 0..4 {
        let seconds = Arguments::of(&(1.5,)).unwrap();
        sleeps.push(client.enqueue_named("demo.sleep", seconds).queue(&queue).await.unwrap());
    }
    busy.wait_for_log("pausing the consumer").await;
    for sleep in sleeps {
        assert_eq!(sleep.result_within(TIMEOUT).await.unwrap(), 1.5);
    }
    client.close().await;
}

async fn quorum_queue() -> (Client, String) {
    let queue = queue_name();
    let mut config = config();
    let settings = QueueSettings { kind: QueueType::Quorum, ..QueueSettings::default() };
    config.queues.insert(queue.clone(), settings);
    let client = Client::connect(&config).await.unwrap();
    client.backends().broker.declare(&Queue::configured(&queue, &config)).await.unwrap();
    (client, queue)
}

/// Twelve deliveries were counted, and the worker has no free slot: the message is still replaced, so that
/// further crashes of the worker count from the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_near_its_delivery_limit_is_replaced_while_it_waits_for_a_permit() {
    let (client, queue) = quorum_queue().await;
    let effects = Effects::at(&servers().store_url).await;
    mark(&client, &queue, &effects.list, "x").await;
    for _ in 0..12 {
        let (fetched, flushed) = client.backends().broker.fetch(&queue, 1).await.unwrap();
        drop(fetched);
        flushed.wait().await;
    }
    let count = |delivery: &Delivery| {
        delivery.message.headers.get("x-delivery-count").and_then(Value::as_u64).unwrap_or(0)
    };
    let delivery = peek(&client, &queue).await;
    assert!(count(&delivery) >= 10, "{:?}", delivery.message.headers);
    drop(delivery);

    let busy_queue = queue_name();
    let queues = format!("{busy_queue},{queue}");
    let long = Arguments::of(&(600,)).unwrap();
    client.enqueue_named("demo.sleep", long).queue(&busy_queue).await.unwrap();
    let mut worker = DemoWorker::spawn(&["-Q", &queues, "-n", &queue, "-c", "1"], &[]);
    worker.wait_for_log("replaced by a fresh copy").await;
    wait_until_empty(&client, &queue).await;
    worker.kill9().await;
    // The original may be in the queue as well, if the worker died before its ack was written.
    let copy = async {
        loop {
            let (fetched, _) = client.backends().broker.fetch(&queue, 10).await.unwrap();
            let mut fetched = fetched.into_iter();
            if let Some(copy) = fetched.find(|delivery| delivery.message.is_returned()) {
                return count(&copy);
            }
        }
    };
    assert!(timeout(TIMEOUT, copy).await.unwrap() <= 3);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_its_store_takes_no_messages() {
    let (client, queue) = quorum_queue().await;
    let effects = Effects::at(&servers().store_url).await;
    mark(&client, &queue, &effects.list, "x").await;
    let (proxy, store) = Proxy::before(&servers().store_url).await;
    drop(proxy);
    let mut worker =
        DemoWorker::spawn(&["-Q", &queue, "-n", &queue], &[("COUNTERSIGN_STORE_URL", &store)]);
    worker.wait_for_logs("connected to RabbitMQ", 2, TIMEOUT).await;
    worker.wait_for_log("cannot connect to Redis").await;
    // No log line says that the worker does not consume: the test watches the consumer count for a while.
    let broker = &client.backends().broker;
    let consumed = async {
        while broker.inspect(&queue).await.unwrap().is_none_or(|state| state.consumers == 0) {}
    };
    assert!(timeout(Duration::from_secs(3), consumed).await.is_err(), "the worker consumes");
    worker.kill9().await;
    let delivery = peek(&client, &queue).await;
    assert!(!delivery.redelivered, "it was delivered to a worker that could not run it");
    drop(delivery);
    client.close().await;
}

/// As in Celery, a success is the only final result of an id.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_failed_before_may_be_used_again() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let work = move |_: Context, Work { n }: Work| {
        let run = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            match n {
                0 => Err(TaskError::fatal("refused")),
                // The first run of the second message is retried.
                _ if run == 1 => Err(TaskError::retry_after(Duration::ZERO, "once more")),
                n => Ok(n),
            }
        }
    };
    let retry = Retry::exponential(Duration::from_millis(10)).attempts(3);
    let policy = Policy { retry, ..Policy::default() };
    let running = Running::start(|worker| worker.handle_with_policy(work, policy)).await;
    let id = queue_name();
    let send = |n| running.client.enqueue(Work { n }).queue(&running.queue).id(id.as_str());
    let failed = send(0).await.unwrap().result_within(TIMEOUT).await.unwrap_err();
    assert!(failed.failure().is_some(), "{failed}");

    let _ = send(7).await.unwrap();
    let is_done = async {
        loop {
            let status = running.client.status(&id.as_str().into()).await.unwrap();
            if let Some(status) = status
                && status.state.as_str() == "SUCCESS"
            {
                return status.output::<usize>().unwrap();
            }
        }
    };
    assert_eq!(timeout(TIMEOUT, is_done).await.unwrap(), 7);
    assert_eq!(runs.load(Ordering::SeqCst), 3, "the failed run, and two attempts");

    // A stored success stays.
    let again = send(9).await.unwrap();
    assert_eq!(again.result_within(TIMEOUT).await.unwrap(), 7);
    running.drain().await;
}

/// A postponed copy is marked: the worker that receives it reads the stored result first.
#[tokio::test(flavor = "multi_thread")]
async fn a_postponed_task_that_has_ended_meanwhile_does_not_run() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let work = move |_: Context, Work { n }: Work| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready::<TaskResult<usize>>(Ok(n))
    };
    let running = Running::start(|worker| worker.handle(work)).await;
    // Published without the delayed-delivery exchanges: it arrives two seconds early, and is postponed.
    let eta = jiff::Timestamp::now() + Duration::from_secs(2);
    let mut message = envelope("test.work", r#"{"n": 1}"#);
    message.eta = Some(eta);
    let id = message.id.clone();
    let request = PublishRequest {
        message: message.encode(),
        queue: Queue::new(&running.queue),
        delay: None,
        timeout: TIMEOUT,
    };
    running.client.backends().broker.publish(request).await.map(drop).unwrap();
    wait_until_empty(&running.client, &running.queue).await;
    let document = countersign::protocol::Document::success(
        &message,
        &serde_json::value::to_raw_value(&5).unwrap(),
        &[],
        jiff::Timestamp::now(),
    );
    let finish = StoreResult { document, reply_to: None, received: None };
    running.client.backends().store.store_result(finish).await.map(drop).unwrap();

    // A second task is delayed in the same way: when it has run, the first one has arrived.
    let later = running.client.enqueue(Work { n: 2 }).queue(&running.queue);
    let later = later.delay(Duration::from_secs(4)).await.unwrap();
    assert_eq!(later.result_within(TIMEOUT).await.unwrap(), 2);
    assert_eq!(runs.load(Ordering::SeqCst), 1, "only the second task ran");
    let first = running.client.handle::<usize>(id.as_str());
    assert_eq!(first.result_within(TIMEOUT).await.unwrap(), 5);
    running.drain().await;
}

fn envelope(name: &str, kwargs: &str) -> countersign::protocol::Envelope {
    let kwargs = serde_json::from_str(kwargs).unwrap();
    let arguments = Arguments { kwargs, ..Arguments::default() };
    countersign::protocol::Envelope::new(name, arguments)
}

/// A worker that reaches its broker through a proxy, and a handler that reports each run.
struct Cut {
    proxy: Proxy,
    stop: oneshot::Sender<()>,
    worker: tokio::task::JoinHandle<Result<countersign::DrainReport, countersign::Error>>,
}

impl Cut {
    async fn start(queue: &str, concurrency: usize, build: impl FnOnce(Worker) -> Worker) -> Self {
        let servers = servers();
        let (proxy, broker) = Proxy::before(&servers.broker_url).await;
        let config = Config::new(&broker, &servers.store_url).unwrap();
        let client = Client::connect(&config).await.unwrap();
        let worker = Worker::new(&client).queue(queue).name(queue).concurrency(concurrency);
        let (stop, stopped) = oneshot::channel();
        let worker = tokio::spawn(build(worker).run(async { drop(stopped.await) }));
        Self { proxy, stop, worker }
    }

    async fn drain(self) {
        let _ = self.stop.send(());
        self.worker.await.unwrap().unwrap();
    }
}

/// Its runs lose their message five times, but no worker dies: the task does not count as poison.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_connection_is_lost_repeatedly_is_no_poison_task() {
    let (begun, mut begins) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let released = Arc::new(AtomicUsize::new(0));
    let (start, open) = (Arc::clone(&go), Arc::clone(&released));
    let work = move |_: Context, Work { n }: Work| {
        let (begun, start, open) = (begun.clone(), Arc::clone(&start), Arc::clone(&open));
        async move {
            let _ = begun.send(());
            while open.load(Ordering::SeqCst) == 0 {
                start.notified().await;
            }
            TaskResult::Ok(n)
        }
    };
    let queue = queue_name();
    let cut = Cut::start(&queue, 16, |worker| worker.handle(work)).await;
    let client = Client::connect(&config()).await.unwrap();
    let task = client.enqueue(Work { n: 3 }).queue(&queue).await.unwrap();
    let store = &client.backends().store;
    for cuts in 0..6 {
        timeout(TIMEOUT, begins.recv()).await.expect("the task runs again").unwrap();
        // The worker is alive: it deletes its note of each run that lost its message.
        let noted =
            async { while store.crashes(task.id()).await.unwrap().runs != u32::from(cuts > 0) {} };
        timeout(TIMEOUT, noted).await.expect("only the present run is recorded");
        cut.proxy.cut();
    }
    timeout(TIMEOUT, begins.recv()).await.expect("the task runs again").unwrap();
    released.store(1, Ordering::SeqCst);
    go.notify_waiters();
    assert_eq!(task.result_within(TIMEOUT).await.unwrap(), 3);
    go.notify_waiters();
    cut.drain().await;
    client.close().await;
}

/// A possible poison task waits for the others to end; during this time its message is requeued.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_message_was_requeued_does_not_start() {
    let (begun, mut begins) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let start = Arc::clone(&go);
    let work = move |_: Context, Work { n }: Work| {
        let (begun, start) = (begun.clone(), Arc::clone(&start));
        async move {
            let _ = begun.send(n);
            if n == 0 {
                start.notified().await;
            }
            TaskResult::Ok(n)
        }
    };
    let (queue, others) = (queue_name(), queue_name());
    let cut = Cut::start(&others, 16, |worker| worker.queue(&queue).handle(work)).await;
    let client = Client::connect(&config()).await.unwrap();
    client.enqueue(Work { n: 0 }).queue(&others).await.unwrap();
    assert_eq!(timeout(TIMEOUT, begins.recv()).await.unwrap(), Some(0));

    let mut suspect = envelope("test.work", r#"{"n": 1}"#).encode();
    suspect.mark_returned();
    let id = suspect.id.clone();
    for _ in 0..2 {
        client.backends().store.record_run(&id, false).await.unwrap();
    }
    let request = PublishRequest {
        message: suspect,
        queue: Queue::new(&queue),
        delay: None,
        timeout: TIMEOUT,
    };
    client.backends().broker.publish(request).await.map(drop).unwrap();
    wait_until_empty(&client, &queue).await;
    cut.proxy.cut();
    let handle = client.handle::<usize>(id.as_str());
    assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), 1);
    go.notify_waiters();
    cut.drain().await;
    let runs: Vec<_> = std::iter::from_fn(|| begins.try_recv().ok()).filter(|n| *n == 1).collect();
    assert_eq!(runs.len(), 1, "the task ran once");
    client.close().await;
}

/// A pause of the broker that is shorter than twice the heartbeat loses no delivery, even if it spans a
/// check of the channel.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_shorter_than_the_heartbeat_runs_nothing_again() {
    let (proxy, broker) = Proxy::before(&servers().broker_url).await;
    let client = Client::connect(&config()).await.unwrap();
    let queue = queue_name();
    let mut effects = Effects::at(&servers().store_url).await;
    let worker = DemoWorker::spawn(
        &["-Q", &queue, "-n", &queue],
        &[("COUNTERSIGN_BROKER_URL", &*broker), ("COUNTERSIGN_BROKER_HEARTBEAT", "5s")],
    );
    worker.ready().await;
    let sleep = Arguments::of(&(20,)).unwrap();
    let sleep = client.enqueue_named("demo.sleep", sleep).queue(&queue).await.unwrap();
    wait_until_empty(&client, &queue).await;
    // The channel is checked every 15 s: the pause begins before a check, and ends after it.
    tokio::time::sleep(Duration::from_secs(13)).await;
    proxy.blackhole();
    tokio::time::sleep(Duration::from_secs(8)).await;
    proxy.heal();
    assert_eq!(sleep.result_within(TIMEOUT).await.unwrap(), 20.0);
    let done = mark(&client, &queue, &effects.list, "x").await;
    done.result_within(TIMEOUT).await.unwrap();
    assert_eq!(effects.runs().await.len(), 1);
    let lost = worker.stderr().matches("lost the consumer").count();
    assert_eq!(lost, 0, "{}", worker.stderr());
    client.close().await;
}

/// The audit notes each result of an id that is withdrawn for another run.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_lifted_only_by_a_new_message() {
    let client = Client::connect(&config()).await.unwrap();
    let store = &client.backends().store;
    let message = envelope("test.work", r#"{"n": 1}"#);
    let now = jiff::Timestamp::now();
    let document = countersign::protocol::Document::revoked(&message, "expired", now);
    let finish = StoreResult { document, reply_to: None, received: None };
    store.store_result(finish).await.map(drop).unwrap();
    let action =
        |what| AuditAction { what, id: message.id.clone(), queue: "q".into(), by: "test".into() };
    let state = store.reopen(action("replay"), 1).await.unwrap();
    assert_eq!(state.unwrap().as_str(), "REVOKED");
    assert!(store.read_result(&message.id).await.unwrap().is_some());
    store.reopen(action(AuditAction::SUPERSEDE), 1).await.unwrap();
    assert!(store.read_result(&message.id).await.unwrap().is_none());
    client.close().await;
}
