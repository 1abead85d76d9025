//! Workers, brokers and stores that die under load. Each test states what it counts, and where.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::{Arguments, Client, Config, Error, Handle};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::Value;
use support::{DemoWorker, Effects, Proxy, Server, TIMEOUT, queue_name, servers};

async fn client(broker_url: &str, store_url: &str) -> Client {
    Client::connect(&Config::new(broker_url, store_url).unwrap()).await.unwrap()
}

fn worker(queue: &str, broker_url: &str, store_url: &str) -> DemoWorker {
    let arguments = ["-Q", queue, "-c", "8", "--prefetch", "16", "-n", queue];
    DemoWorker::spawn(
        &arguments,
        &[("COUNTERSIGN_BROKER_URL", broker_url), ("COUNTERSIGN_STORE_URL", store_url)],
    )
}

async fn mark(
    client: &Client,
    queue: &str,
    list: &str,
    value: &str,
) -> Result<Handle<Value>, Error> {
    let arguments = Arguments::of(&(list, value)).unwrap();
    client.enqueue_named("demo.mark", arguments).queue(queue).await
}

async fn add(client: &Client, queue: &str, n: usize) -> Handle<Value> {
    let sum = client.enqueue_named("demo.add", Arguments::of(&(n, 1)).unwrap());
    sum.queue(queue).await.unwrap()
}

/// Enqueues `count` tasks concurrently; all of them must be accepted.
async fn enqueue_marks(
    client: &Client,
    queue: &str,
    list: &str,
    count: usize,
) -> Vec<Handle<Value>> {
    futures_util::stream::iter(0..count)
        .map(|n| async move { mark(client, queue, list, &n.to_string()).await.unwrap() })
        .buffer_unordered(64)
        .collect()
        .await
}

/// Waits for every result, and counts the successes.
async fn successes(handles: Vec<Handle<Value>>) -> usize {
    let waits: FuturesUnordered<_> =
        handles.into_iter().map(|handle| handle.result_within(TIMEOUT)).collect();
    let is_success = |result: &Result<Value, Error>| {
        result.as_ref().inspect_err(|error| eprintln!("{error}")).is_ok()
    };
    waits.filter(|result| std::future::ready(is_success(result))).count().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_under_load_loses_nothing() {
    let servers = servers();
    let queue = queue_name();
    let client = client(&servers.broker_url, &servers.store_url).await;
    let mut effects = Effects::at(&servers.store_url).await;
    let mut killed = worker(&queue, &servers.broker_url, &servers.store_url);
    killed.ready().await;
    let mut handles = enqueue_marks(&client, &queue, &effects.list, 2000).await;

    // The worker is killed while it is in the middle of its work.
    handles.pop().unwrap().result_within(TIMEOUT).await.ok();
    let rest = enqueue_marks(&client, &queue, &effects.list, 2000).await;
    killed.kill9().await;
    let _successor = worker(&queue, &servers.broker_url, &servers.store_url);

    let expected = handles.len() + rest.len();
    assert_eq!(successes(handles).await + successes(rest).await, expected);
    let runs = effects.runs().await;
    assert_eq!(runs.len(), 2000, "every value was marked");
    let repeated: usize = runs.values().map(|times| times - 2).sum();
    assert!(repeated <= 8, "{repeated} runs were repeated, more than ran at the kill");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_drains_under_load_lose_nothing_and_run_nothing_twice() {
    drains_under_load(10).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: fifty drains"]
async fn fifty_drains_under_load_lose_nothing_and_run_nothing_twice() {
    drains_under_load(50).await;
}

async fn drains_under_load(drains: usize) {
    let servers = servers();
    let queue = queue_name();
    let client = client(&servers.broker_url, &servers.store_url).await;
    let mut effects = Effects::at(&servers.store_url).await;
    let count = 600 * drains;
    let handles = enqueue_marks(&client, &queue, &effects.list, count).await;
    for _ in 0..drains {
        let mut drained = worker(&queue, &servers.broker_url, &servers.store_url);
        drained.wait_for_log("consuming").await;
        mark(&client, &queue, &effects.list, "last").await.unwrap();
        drained.sigterm();
        assert_eq!(drained.wait().await, Some(0), "{}", drained.stderr());
    }
    let _last = worker(&queue, &servers.broker_url, &servers.store_url);
    assert_eq!(successes(handles).await, count);
    let mut runs = effects.runs().await;
    runs.remove("last");
    assert_eq!(runs.len(), count);
    let twice: Vec<_> = runs.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "run twice: {twice:?}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_restarted_under_load_loses_nothing() {
    let servers = servers();
    let mut rabbit = Server::rabbit().await;
    let queue = queue_name();
    let client = client(rabbit.url(), &servers.store_url).await;
    let mut effects = Effects::at(&servers.store_url).await;
    let worker = worker(&queue, rabbit.url(), &servers.store_url);
    worker.ready().await;
    let before = enqueue_marks(&client, &queue, &effects.list, 1000).await;
    let (during, ()) = tokio::join!(enqueue_marks(&client, &queue, &effects.list, 1000), async {
        rabbit.stop().await;
        rabbit.start().await;
        worker.wait_for_logs("consuming", 2, Duration::from_secs(10)).await;
    });
    let after = enqueue_marks(&client, &queue, &effects.list, 100).await;
    let results = successes(before).await + successes(during).await + successes(after).await;
    assert_eq!(results, 2100);
    assert_eq!(effects.runs().await.len(), 1000);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_restarted_under_load_leaves_no_waiter() {
    let servers = servers();
    let mut redis = Server::redis().await;
    let queue = queue_name();
    let client = client(&servers.broker_url, redis.url()).await;
    let worker = worker(&queue, &servers.broker_url, redis.url());
    worker.ready().await;
    let mut handles = Vec::new();
    for n in 0..1000 {
        handles.push(add(&client, &queue, n).await);
        if n == 500 {
            redis.stop().await;
        }
        if n == 700 {
            redis.start().await;
        }
    }
    assert_eq!(successes(handles).await, 1000);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_or_silent_connection_is_replaced() {
    let servers = servers();
    let (rabbit, broker_url) = Proxy::before(&servers.broker_url).await;
    let (redis, store_url) = Proxy::before(&servers.store_url).await;
    let queue = queue_name();
    let client = client(&broker_url, &store_url).await;
    let worker = worker(&queue, &broker_url, &store_url);
    worker.ready().await;
    for _ in 0..5 {
        let mut handles = Vec::new();
        for n in 0..200 {
            handles.push(add(&client, &queue, n).await);
        }
        rabbit.cut();
        redis.cut();
        assert_eq!(successes(handles).await, 200);
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_cut_every_second_loses_nothing() {
    let servers = servers();
    let (rabbit, broker_url) = Proxy::before(&servers.broker_url).await;
    let (redis, store_url) = Proxy::before(&servers.store_url).await;
    let queue = queue_name();
    let client = client(&broker_url, &store_url).await;
    let worker = worker(&queue, &broker_url, &store_url);
    worker.ready().await;
    let thirty_seconds = async {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        for _ in 0..30 {
            second.tick().await;
            rabbit.cut();
            redis.cut();
        }
    };
    let calls = futures_util::stream::iter(0..3000)
        .map(|n| {
            let (client, queue) = (&client, &queue);
            async move { add(client, queue, n).await.result_within(2 * TIMEOUT).await }
        })
        .buffer_unordered(16)
        .filter(|sum| std::future::ready(sum.is_ok()))
        .count();
    let (succeeded, ()) = tokio::join!(calls, thirty_seconds);
    assert_eq!(succeeded, 3000, "accepted tasks whose result came");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_replaced() {
    let servers = servers();
    let (rabbit, broker_url) = Proxy::before(&servers.broker_url).await;
    let (redis, store_url) = Proxy::before(&servers.store_url).await;
    let queue = queue_name();
    let client = client(&broker_url, &store_url).await;
    let worker = DemoWorker::spawn(
        &["-Q", &queue, "-c", "8", "--prefetch", "16", "-n", &queue],
        &[
            ("COUNTERSIGN_BROKER_URL", &broker_url),
            ("COUNTERSIGN_STORE_URL", &store_url),
            ("COUNTERSIGN_BROKER_HEARTBEAT", "2s"),
            ("DEMO_MARKS_URL", &servers.store_url),
        ],
    );
    worker.ready().await;
    let mut effects = Effects::at(&servers.store_url).await;
    let before = enqueue_marks(&client, &queue, &effects.list, 500).await;
    rabbit.freeze();
    redis.freeze();
    let after = enqueue_marks(&client, &queue, &effects.list, 500).await;
    assert_eq!(successes(before).await + successes(after).await, 1000);
    assert_eq!(effects.runs().await.len(), 500);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_come_late_are_waited_for_with_one_line_each() {
    let mut rabbit = Server::rabbit().await;
    let mut redis = Server::redis().await;
    let queue = queue_name();
    rabbit.stop().await;
    redis.stop().await;
    let worker = worker(&queue, rabbit.url(), redis.url());
    worker.wait_for_log("cannot connect to RabbitMQ").await;
    redis.start().await;
    rabbit.start().await;
    worker.ready().await;
    let stderr = worker.stderr();
    let lines = stderr.lines().filter(|line| line.contains("cannot connect to RabbitMQ")).count();
    assert!(lines <= 2, "one line for each connection, not {lines}:\n{stderr}");
    assert!(!stderr.contains("not-to-be-printed"), "a password was printed:\n{stderr}");

    let client = client(rabbit.url(), redis.url()).await;
    let sum = client.enqueue_named("demo.add", Arguments::of(&(1, 2)).unwrap()).queue(&queue);
    assert_eq!(sum.await.unwrap().result_within(TIMEOUT).await.unwrap(), 3);
    client.close().await;
}
