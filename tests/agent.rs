//! `demo.agent`: what it streams is said once, whoever decides what, and however long that takes.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use std::time::Duration;

use countersign::approval::{Answer, ApprovalId, Decision};
use countersign::{Arguments, Asked, Client, Config, Said, TaskId};
use serde_json::{Value, json};
use support::{DemoWorker, queue_name, servers};
use tokio::time::timeout;

/// The first park of a fresh broker makes the whole delay ladder.
const PATIENCE: Duration = Duration::from_secs(120);

/// Decides the task's question about this tool, once it is asked.
async fn decide(client: &Client, task: &TaskId, tool: &str, decision: impl Fn(&Asked) -> Decision) {
    let id = ApprovalId::of(task, tool, 0);
    let asked = async {
        loop {
            match client.approval(&id).await {
                Ok(asked) => return asked,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let asked = timeout(PATIENCE, asked).await.unwrap();
    assert_eq!(client.decide(&decision(&asked)).await.unwrap(), Answer::Applied);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_streams_asks_and_is_told_no() {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let queue = queue_name();
    let variables = [("COUNTERSIGN_APPROVALS_HOLD", "0s")];
    let mut worker = DemoWorker::spawn(&["-Q", &queue], &variables);
    worker.ready().await;
    let prompt = Arguments::of(&("lapin traps",)).unwrap();
    let handle = client.enqueue_named("demo.agent", prompt).queue(&queue).await.unwrap();
    let task = handle.id().clone();
    decide(&client, &task, "web.search", |asked| {
        asked.approve_with("ana", json!({"query": "rabbit traps"}))
    })
    .await;
    decide(&client, &task, "mail.send", |asked| asked.reject("ben", "not today")).await;
    let answer: Value = handle.result_within(PATIENCE).await.unwrap();
    assert_eq!(answer, "Not sent: ben said: not today.");
    let mut follow = client.follow(&task);
    let mut said = String::new();
    while let Some(entry) = follow.next().await {
        let entry = entry.unwrap();
        assert_eq!(entry.said, Said::Output, "nothing is said again");
        said += &entry.read::<String>().unwrap();
    }
    assert_eq!(
        said,
        "I look for lapin traps, and mail what I find.\nI found 3 pages on rabbit traps.\n\
         Not sent: ben said: not today.\n"
    );
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    client.close().await;
}
