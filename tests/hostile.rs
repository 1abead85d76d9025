//! Messages and peers that try to stop a worker. Each test counts lost messages and the connections that
//! the worker opened: two, unless it had to reconnect.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::process::Command;
use std::time::Duration;

use countersign::{Arguments, Client, Config};
use serde_json::{Value, json};
use support::amqp::{CONTENT_TYPE, CORRELATION_ID, HEADERS, RawChannel, long, nested, short, text};
use support::{DemoWorker, Server, TIMEOUT, queue_name, servers};
use tokio::net::TcpListener;
use tokio::time::timeout;

const CONNECTED: &str = "connected to RabbitMQ";
const BODY: &[u8] = br#"[[1, 2], {}, {}]"#;

fn worker(queue: &str, broker_url: &str) -> DemoWorker {
    let arguments = ["-Q", queue, "-c", "1", "--prefetch", "20", "-n", queue];
    let store_url = servers().store_url;
    let urls = [("COUNTERSIGN_BROKER_URL", broker_url), ("COUNTERSIGN_STORE_URL", &store_url)];
    DemoWorker::spawn(&arguments, &urls)
}

async fn client() -> Client {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    Client::connect(&config).await.unwrap()
}

/// Returns the header entries that make a message a task.
fn task(id: &str, name: &str) -> Vec<u8> {
    [text("id", id.as_bytes()), text("task", name.as_bytes())].concat()
}

/// Sends a valid task and waits for its result.
async fn assert_serves(client: &Client, queue: &str) {
    let arguments = Arguments::of(&(1, 2)).unwrap();
    let sum = client.enqueue_named("demo.add", arguments).queue(queue).await.unwrap();
    assert_eq!(sum.result_within(TIMEOUT).await.unwrap(), json!(3));
}

/// Waits until the queue has at least `count` dead letters, and returns them.
async fn dead(client: &Client, queue: &str, count: u64) -> Vec<countersign::client::DeadLetter> {
    let letters = client.dead_letters(queue);
    let wait = async {
        while letters.count().await.unwrap() < count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TIMEOUT, wait).await.unwrap();
    letters.browse(1000).await.unwrap()
}

fn assert_never_reconnected(worker: &DemoWorker) {
    let log = worker.stderr();
    assert_eq!(log.matches(CONNECTED).count(), 2, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deeply_nested_header_stops_nothing_in_any_queue() {
    let (queue, client) = (queue_name(), client().await);
    let worker = worker(&queue, &servers().broker_url);
    worker.ready().await;
    worker.wait_for_log("listening to Celery's remote control").await;
    let dead_queue = format!("{queue}.dead");
    let mut channel = RawChannel::open(&servers().broker_url).await;
    channel.declare(&dead_queue).await;
    let deep = long(&[task("deep-task", "demo.add"), nested("deep", 5_000)].concat());
    channel.publish(("", &dead_queue), HEADERS, &deep, BODY).await;
    channel.publish(("", &queue), HEADERS, &deep, BODY).await;
    channel.publish(("celery.pidbox", ""), HEADERS, &deep, br#"{"method": "ping"}"#).await;

    assert_serves(&client, &queue).await;
    for letter in dead(&client, &queue, 2).await {
        let reason = letter.reason.unwrap();
        assert_eq!(reason, "header `deep` is nested deeper than 32 levels");
        assert_eq!(letter.task.as_deref(), Some("demo.add"));
        assert!(letter.message.headers.contains_key("x-countersign-raw-headers"));
    }
    let error = client.handle::<Value>("deep-task").result_within(TIMEOUT).await.unwrap_err();
    assert!(error.to_string().contains("nested deeper"), "its waiter gets the reason: {error}");
    let list = ["failures", "list", "-Q", &queue];
    let output = Command::new(support::binary("countersign")).args(list).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    assert_serves(&client, &queue).await;
    assert_never_reconnected(&worker);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_string_that_is_not_utf8_affects_only_its_message() {
    let (queue, client) = (queue_name(), client().await);
    let worker = worker(&queue, &servers().broker_url);
    worker.ready().await;
    let mut channel = RawChannel::open(&servers().broker_url).await;
    let headers = long(&task("bad-text", "demo.add"));
    for (flags, list) in [
        (HEADERS | CORRELATION_ID, [headers.clone(), short(b"\xff")].concat()),
        (HEADERS | 1 << 9, [headers.clone(), short(b"reply\xff")].concat()),
        (HEADERS | 1 << 7, [headers.clone(), short(b"message\xff")].concat()),
        (HEADERS | CONTENT_TYPE, [short(b"application/\xff"), headers.clone()].concat()),
        (HEADERS, long(&[task("bad-text", "demo.add"), b"\x02a\xffV".to_vec()].concat())),
    ] {
        channel.publish(("", &queue), flags, &list, BODY).await;
        assert_serves(&client, &queue).await;
    }
    let letters = dead(&client, &queue, 5).await;
    assert_eq!(letters.len(), 5);
    for letter in letters {
        assert!(letter.reason.unwrap().contains("is not UTF-8"));
        assert_eq!(letter.id.as_str(), "bad-text");
    }
    assert_never_reconnected(&worker);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_outgrows_a_frame_is_dead_lettered() {
    let (queue, client) = (queue_name(), client().await);
    let worker = worker(&queue, &servers().broker_url);
    worker.ready().await;
    let mut channel = RawChannel::open(&servers().broker_url).await;
    let waiting = queue_name();
    let arguments = [
        [&short(b"x-message-ttl")[..], b"I\0\0\0\x01"].concat(),
        text("x-dead-letter-exchange", b""),
        text("x-dead-letter-routing-key", queue.as_bytes()),
    ];
    channel.declare_with(&waiting, &arguments.concat()).await;
    // The headers fit into a frame until the broker adds `x-death`.
    let large = text("note", &vec![b'n'; 130_800]);
    let headers = long(&[task("grown", "demo.add"), large].concat());
    channel.publish(("", &waiting), HEADERS, &headers, BODY).await;

    let letters = dead(&client, &queue, 1).await;
    let reason = letters[0].reason.as_deref().unwrap();
    assert!(reason.contains("does not fit into a frame; dropped: note"), "{reason}");
    assert_eq!(letters[0].id.as_str(), "grown");
    assert_serves(&client, &queue).await;
    assert_never_reconnected(&worker);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_an_id_over_255_bytes_keeps_its_id() {
    let (queue, client) = (queue_name(), client().await);
    let worker = worker(&queue, &servers().broker_url);
    worker.ready().await;
    let mut channel = RawChannel::open(&servers().broker_url).await;
    let (unreadable, retried) = ("u".repeat(300), "r".repeat(300));
    let no_json = [short(b"text/plain"), long(&task(&unreadable, "demo.add"))].concat();
    channel.publish(("", &queue), HEADERS | CONTENT_TYPE, &no_json, BODY).await;
    let headers = long(&task(&retried, "demo.retry"));
    channel.publish(("", &queue), HEADERS, &headers, b"[[2, 0.01], {}, {}]").await;

    let retries = client.handle::<Value>(&retried).result_within(TIMEOUT).await.unwrap();
    assert_eq!(retries, json!(2));
    let failed = client.handle::<Value>(&unreadable).result_within(TIMEOUT).await.unwrap_err();
    assert!(failed.to_string().contains("content type"), "{failed}");
    let letters = dead(&client, &queue, 1).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].id.as_str(), unreadable);
    assert_serves(&client, &queue).await;
    let log = worker.stderr();
    assert_eq!(log.matches("content type").count(), 1, "dead-lettered once: {log}");
    assert_eq!(log.matches("retry in").count(), 2, "two attempts failed: {log}");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_dead_lettered_holds_no_permit() {
    let rabbit = Server::rabbit().await;
    let queue = queue_name();
    let mut channel = RawChannel::open(rabbit.url()).await;
    channel.declare(&queue).await;
    channel.declare(&format!("{queue}.countersign-resume")).await;
    rabbit.control(&["add_user", "limited", "limited"]).await;
    rabbit.control(&["set_permissions", "limited", "^$", ".*", ".*"]).await;
    let mut url = url::Url::parse(rabbit.url()).unwrap();
    url.set_username("limited").unwrap();
    url.set_password(Some("limited")).unwrap();
    let worker = worker(&queue, url.as_str());
    worker.ready().await;

    let config = Config::new(rabbit.url(), &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let headers = long(&task("no-handler", "demo.none"));
    channel.publish(("", &queue), HEADERS, &headers, BODY).await;
    worker.wait_for_log("cannot publish to the dead-letter queue, trying again").await;
    // The only slot is free.
    for _ in 0..20 {
        assert_serves(&client, &queue).await;
    }
    let log = worker.stderr();
    assert_eq!(log.matches("no handler for demo.none").count(), 1, "delivered once: {log}");

    rabbit.control(&["set_permissions", "limited", ".*", ".*", ".*"]).await;
    assert_eq!(dead(&client, &queue, 1).await.len(), 1);
    worker.wait_for_log("the copy was published to").await;
    assert_eq!(worker.stderr().matches("no handler for demo.none").count(), 1);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_surrogate_in_a_name_is_treated_as_one_in_a_value() {
    let (queue, client) = (queue_name(), client().await);
    let worker = worker(&queue, &servers().broker_url);
    worker.ready().await;
    let mut channel = RawChannel::open(&servers().broker_url).await;
    let bodies: [&[u8]; 2] =
        [br#"[[], {"x": "\udc80", "y": 2}, {}]"#, br#"[[1, 2], {"\udc80": 1}, {}]"#];
    for (index, body) in bodies.into_iter().enumerate() {
        let id = format!("{queue}-{index}");
        let headers = long(&task(&id, "demo.add"));
        channel.publish(("", &queue), HEADERS, &headers, body).await;
        let error = client.handle::<Value>(&id).result_within(TIMEOUT).await.unwrap_err();
        assert!(error.to_string().contains("add()"), "the call does not fit: {error}");
    }
    assert_eq!(client.dead_letters(&queue).count().await.unwrap(), 0);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_reach_a_silent_broker_leak_no_threads_and_descriptors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://guest:guest@{}//", listener.local_addr().unwrap());
    let store_url = servers().store_url;
    let variables = [
        ("COUNTERSIGN_BROKER_URL", url.as_str()),
        ("COUNTERSIGN_STORE_URL", &store_url),
        ("COUNTERSIGN_CONNECT_TIMEOUT", "300ms"),
    ];
    let worker = DemoWorker::spawn(&["-Q", "none"], &variables);
    let mut silent = Vec::new();
    let mut accept = async |count: usize| {
        for _ in 0..count {
            silent.push(timeout(TIMEOUT, listener.accept()).await.unwrap().unwrap());
        }
        worker.threads_and_descriptors()
    };
    // Both connections are being tried, and everything that is created once exists.
    let (threads, descriptors) = accept(6).await;
    let (threads_later, descriptors_later) = accept(14).await;
    let message = format!(
        "{threads} threads and {descriptors} descriptors became {threads_later} and \
         {descriptors_later} in 14 attempts"
    );
    // At either count, up to two attempts are under way or ending.
    assert!(threads_later <= threads + 4 && descriptors_later <= descriptors + 6, "{message}");
}
