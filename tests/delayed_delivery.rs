//! Delays always arrive: after the queue was deleted, under policies of the broker, and without the right
//! to configure. Each test has a RabbitMQ of its own, and counts results, dead letters and runs.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::{Arguments, Client, Config, Handle};
use serde_json::Value;
use support::{DemoWorker, Server, queue_name, servers};
use tokio::time::timeout;

/// A fresh broker makes 31 quorum queues first, each on the disk.
const PATIENCE: Duration = Duration::from_secs(120);

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

/// The consumer declares the deleted queue again and binds it: a retry that was on its way arrives, and
/// so do later ones, by a publisher that has declared everything before.
#[tokio::test(flavor = "multi_thread")]
async fn delays_arrive_in_a_queue_that_was_deleted_and_declared_again() {
    let rabbit = Server::rabbit().await;
    let (client, queue) = (client(&rabbit).await, queue_name());
    let worker = worker(rabbit.url(), &queue, &[]);
    worker.ready().await;
    let before = retry(&client, &queue, 1, 1.0).await;
    assert_eq!(before.result_within(PATIENCE).await.unwrap(), 1);
    let across = retry(&client, &queue, 1, 4.0).await;
    worker.says("retry in 4").await;
    rabbit.control(&["delete_queue", &queue]).await;
    worker.says_again(&format!("consuming {queue}\""), 2, PATIENCE).await;
    assert_eq!(across.result_within(PATIENCE).await.unwrap(), 1);
    let after = retry(&client, &queue, 2, 1.0).await;
    assert_eq!(after.result_within(PATIENCE).await.unwrap(), 2);
    client.close().await;
}

/// The broker dead-letters a level's messages at least once, 32 at a time: eighty that no queue took would
/// hold up everybody's.
#[tokio::test(flavor = "multi_thread")]
async fn delayed_tasks_of_a_deleted_queue_are_dead_letters_and_hold_up_no_others() {
    let rabbit = Server::rabbit().await;
    let client = client(&rabbit).await;
    let (deleted, consumed) = (queue_name(), queue_name());
    let worker = worker(rabbit.url(), &consumed, &[]);
    worker.ready().await;
    // The long ones are all published before the first of them is due.
    for delay in [300, 15_000] {
        for _ in 0..40 {
            add(&client, &deleted, Duration::from_millis(delay)).await;
        }
    }
    let first = add(&client, &consumed, Duration::from_millis(1100)).await;
    first.result_within(PATIENCE).await.unwrap();
    rabbit.control(&["delete_queue", &deleted]).await;
    let due = async { while ready(&client, &format!("{deleted}.dead")).await < 40 {} };
    timeout(PATIENCE, due).await.expect("the long ones are dead letters when they are due");
    for delay in [200, 2500] {
        let other = add(&client, &consumed, Duration::from_millis(delay)).await;
        assert_eq!(other.result_within(PATIENCE).await.unwrap(), 3);
    }
    client.close().await;
}

/// A policy lets every queue's messages expire after two seconds: an attempt that is due later goes on for
/// the rest of its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_a_policy_delivers_early_waits_for_the_rest_of_its_time() {
    let rabbit = Server::rabbit().await;
    let (client, queue) = (client(&rabbit).await, queue_name());
    let worker = worker(rabbit.url(), &queue, &[]);
    worker.ready().await;
    let first = retry(&client, &queue, 1, 1.0).await;
    first.result_within(PATIENCE).await.unwrap();
    let policy = r#"{"message-ttl": 2000}"#;
    let levels = "^celery_delayed_";
    rabbit.control(&["set_policy", "--apply-to", "queues", "short", levels, policy]).await;
    let begun = std::time::Instant::now();
    let late = retry(&client, &queue, 1, 9.0).await;
    assert_eq!(late.result_within(PATIENCE).await.unwrap(), 1);
    assert!(begun.elapsed() > Duration::from_secs(8), "{:?}", begun.elapsed());
    client.close().await;
}

/// The worker's user may read and write, and configure nothing: retries and approvals are refused, hold no
/// slot, and go on when the right is granted. Tasks that need no delay run all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_delay_holds_no_slot_and_is_sent_when_the_right_is_granted() {
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
    worker.says("RabbitMQ refuses access").await;
    let mut refused = Vec::new();
    for _ in 0..6 {
        refused.push(retry(&client, &queue, 1, 2.0).await);
    }
    let asks = Arguments::of(&("order-1", 25_000)).unwrap();
    let asks = client.enqueue_named("demo.refund", asks).queue(&other).await.unwrap();
    for _ in 0..20 {
        let task = client.enqueue_named("demo.add", Arguments::of(&(1, 2)).unwrap());
        let task = task.queue(&other).await.unwrap();
        assert_eq!(task.result_within(PATIENCE).await.unwrap(), 3);
    }
    let text = worker.stderr();
    assert!(text.contains("configure"), "{text}");
    assert!(text.matches("refuses access").count() < 20, "{text}");

    rabbit.control(&["set_permissions", "limited", ".*", ".*", ".*"]).await;
    for task in refused {
        assert_eq!(task.result_within(PATIENCE).await.unwrap(), 1);
    }
    let asked = async {
        loop {
            if let Some(asked) = client
                .pending_approvals(100)
                .await
                .unwrap()
                .asked
                .into_iter()
                .find(|asked| asked.question.task.as_ref() == Some(asks.id()))
            {
                return asked;
            }
        }
    };
    let asked = timeout(PATIENCE, asked).await.expect("it asks once it may");
    client.decide(&asked.approve("ana")).await.unwrap();
    asks.result_within(PATIENCE).await.unwrap();
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_name_that_a_feature_cannot_serve_is_refused_at_the_start() {
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

/// Through the management API, where it answers.
#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_policies_that_drop_tasks_and_says_when_it_cannot_look() {
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
    assert!(healthy.contains("the broker's policies were looked at"), "{healthy}");
    assert!(healthy.contains("dead_letter_worker_publisher_confirm_timeout"), "{healthy}");

    let pattern = format!("^{queue}$");
    let policy = r#"{"message-ttl": 3000}"#;
    rabbit.control(&["set_policy", "--apply-to", "queues", "short", &pattern, policy]).await;
    let named = async {
        loop {
            let (code, said) = countersign(&variables, &["doctor"]).await;
            if said.contains("policy `short` lets its messages expire") {
                return code;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, named).await.unwrap(), Some(1));

    let unreachable = [variables[0], variables[1], (variables[2].0, "http://127.0.0.1:9")];
    let (_, said) = countersign(&unreachable, &["doctor"]).await;
    assert!(said.contains("could not be looked at"), "{said}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_deleted_only_when_asked_twice_and_its_delays_become_dead_letters() {
    let rabbit = Server::rabbit().await;
    let (client, queue) = (client(&rabbit).await, queue_name());
    let variables =
        [("COUNTERSIGN_BROKER_URL", rabbit.url()), ("COUNTERSIGN_STORE_URL", &servers().store_url)];
    client.enqueue_named("demo.add", Arguments::default()).queue(&queue).await.unwrap();
    add(&client, &queue, Duration::from_secs(2)).await;
    let (code, said) = countersign(&variables, &["queues", "delete", &queue]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("1 tasks wait") && said.contains(".dead"), "{said}");
    assert_eq!(ready(&client, &queue).await, 1);
    let (code, said) = countersign(&variables, &["queues", "delete", &queue, "--yes"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(client.backends().broker.inspect(&queue).await.unwrap().is_none());
    let due = async { while ready(&client, &format!("{queue}.dead")).await < 1 {} };
    timeout(PATIENCE, due).await.expect("the delayed one is a dead letter");

    let worker = worker(rabbit.url(), &queue, &[]);
    worker.ready().await;
    let (code, said) = countersign(&variables, &["queues", "delete", &queue, "--yes"]).await;
    assert_ne!(code, Some(0), "a queue that is consumed stays: {said}");
    client.close().await;
}
