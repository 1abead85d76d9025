//! A Rust client and a Rust worker in one process, on real servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{
    Arguments, Client, Config, Context, Policy, Retry, Task, TaskError, TaskResult, Worker,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use support::{Running, TIMEOUT, queue_name, servers};
use tokio::sync::Notify;

#[derive(Serialize, Deserialize)]
struct Greet {
    name: String,
    #[serde(default)]
    times: u32,
}

impl Task for Greet {
    const NAME: &'static str = "test.greet";
    type Output = String;
}

async fn greet(_: Context, greet: Greet) -> TaskResult<String> {
    Ok(vec![format!("hello {}", greet.name); greet.times.max(1) as usize].join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typed_task_has_a_typed_result() {
    let running = Running::start(|worker| worker.handle(greet)).await;
    let result = running.call(Greet { name: "Ana".into(), times: 2 }).await.unwrap();
    assert_eq!(result, "hello Ana, hello Ana");
    let drained = running.drain().await;
    assert!(drained.is_clean(), "{drained:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_may_be_awaited_on_another_executor() {
    let running = Running::start(|worker| worker.handle(greet)).await;
    let handle =
        running.client.enqueue(Greet { name: "Bo".into(), times: 1 }).queue(&running.queue);
    let handle = handle.await.unwrap();
    let result = std::thread::spawn(move || {
        futures_executor::block_on(handle.result_within(TIMEOUT)).unwrap()
    });
    assert_eq!(tokio::task::spawn_blocking(|| result.join().unwrap()).await.unwrap(), "hello Bo");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_fails_only_its_task() {
    let panicking = |_: Context, greet: Greet| async move {
        if greet.times == 0 { panic!("boom for {}", greet.name) } else { Ok(greet.name) }
    };
    let running = Running::start(|worker| worker.handle(panicking)).await;
    let error = running.call(Greet { name: "Cy".into(), times: 0 }).await.unwrap_err();
    let failure = error.failure().unwrap();
    assert_eq!(failure.exc_type, "HandlerPanicked");
    assert_eq!(failure.message(), "boom for Cy");
    assert_eq!(running.call(Greet { name: "Di".into(), times: 1 }).await.unwrap(), "Di");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_runs_until_it_succeeds_or_runs_out_of_attempts() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let flaky = move |ctx: Context, greet: Greet| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            if ctx.attempt() <= greet.times {
                return Err(TaskError::retry_after(Duration::from_millis(100), "not yet"));
            }
            Ok(format!("attempt {}", ctx.attempt()))
        }
    };
    let retry = Retry::exponential(Duration::from_millis(100)).attempts(4);
    let policy = Policy { retry, ..Policy::default() };
    let running = Running::start(|worker| worker.handle_with_policy(flaky, policy)).await;
    let result = running.call(Greet { name: "Ed".into(), times: 3 }).await.unwrap();
    assert_eq!(result, "attempt 4");
    let error = running.call(Greet { name: "Flo".into(), times: 9 }).await.unwrap_err();
    assert_eq!(error.failure().unwrap().message(), "not yet");
    assert_eq!(runs.load(Ordering::SeqCst), 8);
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_task_waits_in_the_delay_queues_and_not_in_the_worker() {
    let running = Running::start(|worker| worker.handle(greet)).await;
    let begun = jiff::Timestamp::now();
    let later = Greet { name: "Gil".into(), times: 1 };
    let later = running.client.enqueue(later).queue(&running.queue);
    let later = later.delay(Duration::from_millis(1300)).await.unwrap();
    let now = running.call(Greet { name: "Hal".into(), times: 1 }).await.unwrap();
    assert_eq!(now, "hello Hal");
    assert_eq!(later.result_within(TIMEOUT).await.unwrap(), "hello Gil");
    let waited = jiff::Timestamp::now().duration_since(begun);
    assert!(waited >= jiff::SignedDuration::from_millis(1250), "too early, after {waited:?}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_cancels_and_the_hard_limit_ends_a_task() {
    let cancellable = |ctx: Context, greet: Greet| async move {
        ctx.cancelled().await;
        if greet.times == 0 {
            std::future::pending::<()>().await;
        }
        Ok("cancelled in time".to_owned())
    };
    let policy = Policy {
        soft_limit: Some(Duration::from_millis(50)),
        hard_limit: Duration::from_millis(200),
        ..Policy::default()
    };
    let running = Running::start(|worker| worker.handle_with_policy(cancellable, policy)).await;
    assert_eq!(
        running.call(Greet { name: "Ida".into(), times: 1 }).await.unwrap(),
        "cancelled in time"
    );
    let error = running.call(Greet { name: "Jo".into(), times: 0 }).await.unwrap_err();
    assert_eq!(error.failure().unwrap().exc_type, "TimeLimitExceeded");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_past_the_drain_deadline_is_requeued_and_reported() {
    let started = Arc::new(Notify::new());
    let begun = Arc::clone(&started);
    let stuck = move |_: Context, _: Greet| {
        begun.notify_one();
        std::future::pending::<TaskResult<String>>()
    };
    let running =
        Running::start(|worker| worker.handle(stuck).drain_deadline(Duration::from_millis(200)))
            .await;
    let task = running.client.enqueue(Greet { name: "Kim".into(), times: 1 });
    let handle = task.queue(&running.queue).await.unwrap();
    started.notified().await;
    let (id, queue) = (handle.id().clone(), running.queue.clone());
    let drained = running.drain().await;
    assert_eq!(drained.abandoned, std::slice::from_ref(&id));

    let successor = Running::start(|worker| worker.queue(&queue).handle(greet)).await;
    let result = successor.client.handle::<String>(id).result_within(TIMEOUT).await.unwrap();
    assert_eq!(result, "hello Kim");
    successor.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocking_handler_leaves_the_runtime_free() {
    let count = |_: Context, greet: Greet| Ok(greet.name.len().to_string());
    let running = Running::start(|worker| worker.handle_blocking(count)).await;
    assert_eq!(running.call(Greet { name: "Lou".into(), times: 1 }).await.unwrap(), "3");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_enqueued_by_a_handler_continues_its_trace() {
    let read_trace = |ctx: Context, _: Greet| async move { Ok(ctx.traceparent()) };
    let running = Running::start(|worker| worker.handle(read_trace)).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let task = running.client.enqueue(Greet { name: "Mo".into(), times: 1 }).traceparent(trace);
    let handle = task.queue(&running.queue).await.unwrap();
    let inside = handle.result_within(TIMEOUT).await.unwrap();
    assert!(inside.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{inside}");
    assert!(!inside.contains("00f067aa0ba902b7"), "a span of its own: {inside}");
    running.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_enqueued_by_a_handler_is_its_child() {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let (producer, to) = (client.clone(), queue.clone());
    let enqueue_child = move |_: Context, Greet { name, times }: Greet| {
        let (producer, to) = (producer.clone(), to.clone());
        async move {
            if times == 0 {
                return Ok(name);
            }
            let child = Greet { name, times: times - 1 };
            Ok(producer.enqueue(child).queue(to).await?.id().to_string())
        }
    };
    let running = Running::start(|worker| worker.queue(&queue).handle(enqueue_child));
    let running = running.await;
    let task = client.enqueue(Greet { name: "Ida".into(), times: 2 }).queue(&queue).await.unwrap();
    let root = task.id().clone();
    let child = task.result_within(TIMEOUT).await.unwrap();
    let grandchild = client.handle::<String>(&child).result_within(TIMEOUT).await.unwrap();
    client.handle::<String>(&grandchild).result_within(TIMEOUT).await.unwrap();
    for (id, parent) in [(&child, root.as_str()), (&grandchild, &child)] {
        let document = client.status(&id.as_str().into()).await.unwrap().unwrap();
        let stored: Value = serde_json::from_slice(&document.json).unwrap();
        assert_eq!(stored["parent_id"], parent);
    }
    running.drain().await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_deadlines_are_typed_errors() {
    let servers = servers();
    let mut config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    config.max_arguments = 1000;
    let client = Client::connect(&config).await.unwrap();
    let large = Arguments::of(&("x".repeat(1000),)).unwrap();
    let error = client.enqueue_named("test.greet", large).queue(queue_name()).await.unwrap_err();
    assert!(error.is_too_large() && error.to_string().contains("limits.arguments"), "{error}");

    let waiting = client.enqueue_named("test.greet", Arguments::default()).queue(queue_name());
    let waiting = waiting.await.unwrap();
    let error = waiting.result_within(Duration::from_millis(50)).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");

    let forever = client.handle::<Value>("no-such-task");
    let closed = tokio::spawn(forever.result());
    tokio::task::yield_now().await;
    client.close().await;
    assert!(closed.await.unwrap().is_err(), "a wait ends when its client is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified() {
    let servers = servers();
    let mut config = Config::new(&servers.broker_tls_url, &servers.store_tls_url).unwrap();
    config.tls_ca_pem = Some(std::fs::read_to_string(&servers.ca_file).unwrap());
    Client::connect(&config).await.unwrap().close().await;

    config.connect_timeout = Duration::from_secs(2);
    config.tls_ca_pem = Some(std::fs::read_to_string(&servers.other_ca_file).unwrap());
    let error = Client::connect(&config).await.unwrap_err();
    assert!(error.is_connection(), "a wrong authority: {error}");

    let by_address = |url: &str| url.replace("localhost", "127.0.0.1");
    let (broker, store) = (by_address(&servers.broker_tls_url), by_address(&servers.store_tls_url));
    let mut config = Config::new(&broker, &store).unwrap();
    config.connect_timeout = Duration::from_secs(2);
    config.tls_ca_pem = Some(std::fs::read_to_string(&servers.ca_file).unwrap());
    let error = Client::connect(&config).await.unwrap_err();
    assert!(error.is_connection(), "a wrong name: {error}");
    assert!(!error.to_string().contains("not-to-be-printed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reports_every_configuration_fault_before_it_consumes() {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let worker = Worker::new(&client).concurrency(0).handle(greet);
    let error = worker.run(std::future::pending()).await.unwrap_err();
    let message = error.to_string();
    assert!(error.is_config());
    for part in ["no queue", "concurrency is 0"] {
        assert!(message.contains(part), "{message}");
    }
    client.close().await;
}
