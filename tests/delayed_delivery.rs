//! Delayed tasks always arrive: after the queue was deleted, under policies of the broker, and without the
//! configure permission. Each test has a RabbitMQ of its own, and counts results, dead letters and runs.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::{Arguments, Client, Config, Handle};
use serde_json::Value;
use support::{DemoWorker, Server, TIMEOUT, queue_name, servers};
use tokio::time::timeout;

async fn client(rabbit: &Server) -> Client {
    let config = Config::new(rabbit.url(), &servers().store_url).unwrap();
    Client::connect(&config).await.unwrap()
}

fn worker(rabbit_url: &str, queue: &str, arguments: &[&str]) -> DemoWorker {
    let mut all = vec!["-Q", queue, "-n", queue];
    all.extend(arguments);
    DemoWorker::spawn(&all, &[("COUNTERSIGN_BROKER_URL", rabbit_url)])
}

async fn retry(client: &Client, queue: &str, times: u32, delay: f64) -> Handle<Value> {
    let arguments = Arguments::of(&(times, delay)).unwrap();
    client.enqueue_named("demo.retry", arguments).queue(queue).await.unwrap()
}

async fn add(client: &Client, queue: &str, delay: Duration) -> Handle<Value> {
    let arguments = Arguments::of(&(1, 2)).unwrap();
    client.enqueue_named("demo.add", arguments).queue(queue).delay(delay).await.unwrap()
}

async fn ready(client: &Client, queue: &str) -> u64 {
    client.backends().broker.inspect(queue).await.unwrap().map_or(0, |state| state.ready)
}

/// The consumer declares the deleted queue again and binds it: a retry that was already sent arrives, and
/// so do later ones from a publisher that has declared everything before.
#[tokio::test(flavor = "multi_thread")]
async fn delayed_messages_arrive_in_a_queue_that_was_deleted_and_declared_again() {
    let rabbit = Server::rabbit().await;
    let (client, queue) = (client(&rabbit).await, queue_name());
    let worker = worker(rabbit.url(), &queue, &[]);
    worker.ready().await;
    let before = retry(&client, &queue, 1, 1.0).await;
    assert_eq!(before.result_within(TIMEOUT).await.unwrap(), 1);
    let across = retry(&client, &queue, 1, 4.0).await;
    worker.wait_for_log("retry in 4").await;
    rabbit.control(&["delete_queue", &queue]).await;
    worker.wait_for_logs(&format!("consuming {queue}\""), 2, TIMEOUT).await;
    assert_eq!(across.result_within(TIMEOUT).await.unwrap(), 1);
    let after = retry(&client, &queue, 2, 1.0).await;
    assert_eq!(after.result_within(TIMEOUT).await.unwrap(), 2);
    client.close().await;
}

/// The broker dead-letters a level's messages at least once, 32 at a time: eighty that no queue accepts would
/// block the messages of all queues.
#[tokio::test(flavor = "multi_thread")]
async fn delayed_tasks_of_a_deleted_queue_are_dead_lettered_and_block_no_others() {
    let rabbit = Server::rabbit().await;
    let client = client(&rabbit).await;
    let (deleted, consumed) = (queue_name(), queue_name());
    let worker = worker(rabbit.url(), &consumed, &[]);
    worker.ready().await;
    // All the long delays are published before the first of them is due.
    for delay in [300, 15_000] {
        for _ in 0..40 {
            add(&client, &deleted, Duration::from_millis(delay)).await;
        }
    }
    let first = add(&client, &consumed, Duration::from_millis(1100)).await;
    first.result_within(TIMEOUT).await.unwrap();
    rabbit.control(&["delete_queue", &deleted]).await;
    let due = async { while ready(&client, &format!("{deleted}.dead")).await < 40 {} };
    timeout(TIMEOUT, due).await.expect("the long delays end as dead letters");
    for delay in [200, 2500] {
        let other = add(&client, &consumed, Duration::from_millis(delay)).await;
        assert_eq!(other.result_within(TIMEOUT).await.unwrap(), 3);
    }
    client.close().await;
}

/// A policy expires the messages of every queue after two seconds: an attempt that is due later waits for
/// the rest of its delay.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_a_policy_delivers_early_waits_for_the_rest_of_its_time() {
    let rabbit = Server::rabbit().await;
    let (client, queue) = (client(&rabbit).await, queue_name());
    let worker = worker(rabbit.url(), &queue, &[]);
    worker.ready().await;
    let first = retry(&client, &queue, 1, 1.0).await;
    first.result_within(TIMEOUT).await.unwrap();
    let policy = r#"{"message-ttl": 2000}"#;
    let levels = "^celery_delayed_";
    rabbit.control(&["set_policy", "--apply-to", "queues", "short", levels, policy]).await;
    let begun = std::time::Instant::now();
    let late = retry(&client, &queue, 1, 9.0).await;
    assert_eq!(late.result_within(TIMEOUT).await.unwrap(), 1);
    assert!(begun.elapsed() > Duration::from_secs(8), "{:?}", begun.elapsed());
    client.close().await;
}

/// The worker's user has read and write but no configure permission: retries and approvals are refused, hold
/// no slot, and continue when the permission is granted. Tasks without a delay run all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_delay_holds_no_permit_and_is_sent_once_access_is_granted() {
    let rabbit = Server::rabbit().await;
    let (client, queue, other) = (client(&rabbit).await, queue_name(), queue_name());
    for name in [&queue, &other] {
        for suffix in ["", ".countersign-resume", ".dead"] {
            let queue = countersign::backend::Queue::new(format!("{name}{suffix}"));
            client.backends().broker.declare(&queue).await.unwrap();
        }
    }
    rabbit.control(&["add_user", "limited", "limited"]).await;
    rabbit.control(&["set_permissions", "limited", "^$", ".*", ".*"]).await;
    let limited = rabbit.url().replacen("countersign:", "limited:", 1);
    let mut limited = url::Url::parse(&limited).unwrap();
    limited.set_password(Some("limited")).unwrap();

    let queues = format!("{queue},{other}");
    let worker = DemoWorker::spawn(
        &["-Q", &queues, "-n", &queue, "-c", "2", "--prefetch", "4"],
        &[("COUNTERSIGN_BROKER_URL", limited.as_str())],
    );
    worker.wait_for_log("RabbitMQ refuses access").await;
    let mut refused = Vec::new();
    for _ in 0..6 {
        refused.push(retry(&client, &queue, 1, 2.0).await);
    }
    let refund = Arguments::of(&("order-1", 25_000)).unwrap();
    let refund = client.enqueue_named("demo.refund", refund).queue(&other).await.unwrap();
    for _ in 0..20 {
        let task = client.enqueue_named("demo.add", Arguments::of(&(1, 2)).unwrap());
        let task = task.queue(&other).await.unwrap();
        assert_eq!(task.result_within(TIMEOUT).await.unwrap(), 3);
    }
    let text = worker.stderr();
    assert!(text.contains("configure"), "{text}");
    assert!(text.matches("refuses access").count() < 20, "{text}");

    rabbit.control(&["set_permissions", "limited", ".*", ".*", ".*"]).await;
    for task in refused {
        assert_eq!(task.result_within(TIMEOUT).await.unwrap(), 1);
    }
    let record = async {
        loop {
            if let Some(record) = client
                .pending_approvals(100)
                .await
                .unwrap()
                .requests
                .into_iter()
                .find(|record| record.request.task.as_ref() == Some(refund.id()))
            {
                return record;
            }
        }
    };
    let record =
        timeout(TIMEOUT, record).await.expect("the approval is requested once access is granted");
    client.decide(&record.approve("ana")).await.unwrap();
    refund.result_within(TIMEOUT).await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsupported_queue_name_is_refused_at_start() {
    let long = "q".repeat(181);
    for name in [&*long, "a.*", "#", "eu.#.billing"] {
        let mut worker = DemoWorker::spawn(&["-Q", name, "-n", "names"], &[]);
        assert_eq!(worker.wait().await, Some(78), "{name}");
        assert!(worker.stderr().contains("queue name `"), "{}", worker.stderr());
    }
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let task = client.enqueue_named("demo.add", Arguments::of(&(1, 2)).unwrap()).queue("#");
    let refused = task.delay(Duration::from_secs(1)).await.unwrap_err();
    assert!(refused.to_string().contains("as a pattern"), "{refused}");
    client.close().await;
}

async fn countersign(variables: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(support::binary("countersign"))
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(std::process::Stdio::null())
        .output();
    let output = output.await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// The policies are read through the management API, if it is available.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_reports_policies_that_drop_tasks_and_an_unreachable_management_api() {
    let (rabbit, management) = Server::rabbit_with_management().await;
    let (client, queue) = (client(&rabbit).await, queue_name());
    let worker = worker(rabbit.url(), &queue, &[]);
    worker.ready().await;
    let variables = [
        ("COUNTERSIGN_BROKER_URL", rabbit.url()),
        ("COUNTERSIGN_STORE_URL", &servers().store_url),
        ("COUNTERSIGN_BROKER_MANAGEMENT_URL", &management),
    ];
    let (_, healthy) = countersign(&variables, &["doctor"]).await;
    assert!(healthy.contains("the broker's policies were checked"), "{healthy}");
    assert!(healthy.contains("dead_letter_worker_publisher_confirm_timeout"), "{healthy}");

    let pattern = format!("^{queue}$");
    let policy = r#"{"message-ttl": 3000}"#;
    rabbit.control(&["set_policy", "--apply-to", "queues", "short", &pattern, policy]).await;
    let named = async {
        loop {
            let (code, output) = countersign(&variables, &["doctor"]).await;
            if output.contains("policy `short` lets its messages expire") {
                return code;
            }
        }
    };
    assert_eq!(timeout(TIMEOUT, named).await.unwrap(), Some(1));

    let unreachable = [variables[0], variables[1], (variables[2].0, "http://127.0.0.1:9")];
    let (_, output) = countersign(&unreachable, &["doctor"]).await;
    assert!(output.contains("could not be checked"), "{output}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_deleted_only_with_confirmation_and_its_delays_become_dead_letters() {
    let rabbit = Server::rabbit().await;
    let (client, queue) = (client(&rabbit).await, queue_name());
    let variables =
        [("COUNTERSIGN_BROKER_URL", rabbit.url()), ("COUNTERSIGN_STORE_URL", &servers().store_url)];
    client.enqueue_named("demo.add", Arguments::default()).queue(&queue).await.unwrap();
    add(&client, &queue, Duration::from_secs(2)).await;
    let (code, output) = countersign(&variables, &["queues", "delete", &queue]).await;
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("1 tasks wait") && output.contains(".dead"), "{output}");
    assert_eq!(ready(&client, &queue).await, 1);
    let (code, output) = countersign(&variables, &["queues", "delete", &queue, "--yes"]).await;
    assert_eq!(code, Some(0), "{output}");
    assert!(client.backends().broker.inspect(&queue).await.unwrap().is_none());
    let due = async { while ready(&client, &format!("{queue}.dead")).await < 1 {} };
    timeout(TIMEOUT, due).await.expect("the delayed message is a dead letter");

    let worker = worker(rabbit.url(), &queue, &[]);
    worker.ready().await;
    let (code, output) = countersign(&variables, &["queues", "delete", &queue, "--yes"]).await;
    assert_ne!(code, Some(0), "a queue that is consumed stays: {output}");
    client.close().await;
}
