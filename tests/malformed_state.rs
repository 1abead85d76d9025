//! A malformed record or an odd name hides no other record from an operator.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::process::Command;

use countersign::approval::ApprovalRequest;
use countersign::{Client, Config};
use serde_json::Value;
use support::{DemoWorker, queue_name, servers};

/// Runs the command on the servers that all tests share; returns its records and its standard error.
fn countersign(arguments: &[&str]) -> (Vec<Value>, String) {
    let output = Command::new(support::binary("countersign"))
        .args(arguments)
        .env("COUNTERSIGN_BROKER_URL", &servers().broker_url)
        .env("COUNTERSIGN_STORE_URL", &servers().store_url)
        .env("USER", "ana")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    let lines = String::from_utf8(output.stdout).unwrap();
    (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), stderr)
}

async fn redis(command: &[&str]) {
    let client = redis::Client::open(servers().store_url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut sent = redis::cmd(command[0]);
    let () = sent.arg(&command[1..]).query_async(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_name_that_the_broker_refuses_hides_no_other_queue() {
    let (queue, odd) = (queue_name(), "q".repeat(256));
    let worker = DemoWorker::spawn(
        &["-Q", &queue],
        &[
            ("COUNTERSIGN_BROKER_URL", &servers().broker_url),
            ("COUNTERSIGN_STORE_URL", &servers().store_url),
        ],
    );
    worker.ready().await;
    redis(&["ZADD", "cs:queues", "99999999999999", &odd]).await;
    let (queues, stderr) = countersign(&["queues"]);
    assert!(queues.iter().any(|it| it["queue"] == *queue), "{queues:?}");
    assert!(stderr.contains("cannot inspect queue qqqq"), "{stderr}");
    let (_, stderr) = countersign(&["failures", "list"]);
    assert!(stderr.contains("cannot inspect queue qqqq"), "{stderr}");
    redis(&["ZREM", "cs:queues", &odd]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_name_that_the_broker_refuses_is_not_remembered() {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let arguments = countersign::Arguments::of(&(1, 2)).unwrap();
    let long = "r".repeat(256);
    for queue in ["", "amq.odd", &*long] {
        client.enqueue_named("demo.add", arguments.clone()).queue(queue).await.unwrap_err();
    }
    let sent = client.enqueue_named("demo.add", arguments).queue(queue_name());
    sent.await.unwrap();
    client.close().await;
    let (queues, _) = countersign(&["queues"]);
    let is_odd = |it: &Value| ["", "amq.odd", &*long].contains(&it["queue"].as_str().unwrap());
    assert!(!queues.iter().any(is_odd), "{queues:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_suspension_hides_no_suspended_task() {
    let queue = queue_name();
    let worker = DemoWorker::spawn(
        &["-Q", &queue],
        &[
            ("COUNTERSIGN_BROKER_URL", &servers().broker_url),
            ("COUNTERSIGN_STORE_URL", &servers().store_url),
        ],
    );
    worker.ready().await;
    let (sent, _) = countersign(&["run", "demo.refund", "order-1", "25000", "-Q", &queue]);
    let id = sent[0]["id"].as_str().unwrap().to_owned();
    let malformed = format!("cs:park:{{cs}}:{queue}");
    redis(&["SET", &malformed, "x"]).await;
    let is_listed = async || {
        let (tasks, _) = countersign(&["tasks", "list", "--suspended", "--limit", "10000"]);
        tasks.iter().any(|it| it["id"] == *id)
    };
    let listed = async {
        while !is_listed().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::TIMEOUT, listed).await.unwrap();
    redis(&["DEL", &malformed]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_extended_by_a_year_at_most() {
    let config = Config::new(&servers().broker_url, &servers().store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let requested = client.request_approval(ApprovalRequest::new("Pay?")).await.unwrap();
    let days = |days: u64| std::time::Duration::from_secs(days * 24 * 60 * 60);
    let error = client.extend_approval(requested.id(), "ana", days(400)).await.unwrap_err();
    assert!(error.is_decision() && error.to_string().contains("366 days"), "{error}");
    client.extend_approval(requested.id(), "ana", days(100)).await.unwrap();
    client.close().await;
}
