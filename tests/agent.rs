//! `demo.agent` outputs each part once, for any decisions and across suspensions.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

use countersign::approval::{ApprovalId, DecideResult, Decision};
use countersign::{ApprovalRecord, Arguments, Client, Config, EntryKind, TaskId};
use serde_json::{Value, json};
use support::{DemoWorker, TIMEOUT, queue_name, servers};
use tokio::time::timeout;

/// Waits for the task's approval request for this tool, and decides it.
async fn decide(
    client: &Client,
    task: &TaskId,
    tool: &str,
    decision: impl Fn(&ApprovalRecord) -> Decision,
) {
    let id = ApprovalId::of(task, tool, 0);
    let record = async {
        loop {
            match client.approval(&id).await {
                Ok(record) => return record,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let record = timeout(TIMEOUT, record).await.unwrap();
    assert_eq!(client.decide(&decision(&record)).await.unwrap(), DecideResult::Applied);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_streams_requests_approval_and_is_rejected() {
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
    decide(&client, &task, "web.search", |record| {
        record.approve_with("ana", json!({"query": "rabbit traps"}))
    })
    .await;
    decide(&client, &task, "mail.send", |record| record.reject("ben", "not today")).await;
    let result: Value = handle.result_within(TIMEOUT).await.unwrap();
    assert_eq!(result, "Not sent: ben said: not today.");
    let mut follow = client.follow(&task);
    let mut output = String::new();
    while let Some(entry) = follow.next().await {
        let entry = entry.unwrap();
        assert_eq!(entry.kind, EntryKind::Output, "nothing is streamed again");
        output += &entry.read::<String>().unwrap();
    }
    assert_eq!(
        output,
        "I look for lapin traps, and mail what I find.\nI found 3 pages on rabbit traps.\n\
         Not sent: ben said: not today.\n"
    );
    worker.sigterm();
    assert_eq!(worker.wait().await, Some(0));
    client.close().await;
}
