//! Messages that no worker can run. Each has a readable id, so each must fail and be dead-lettered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign::backend::{PublishRequest, Queue};
use countersign::protocol::{Headers, Message, Properties};
use countersign::{Client, TaskId};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::ledger::{Expected, Ledger};

const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// Deeper than a worker decodes an AMQP header.
const DEPTH: usize = 100;

/// Publishes one message of each form to each queue.
pub(crate) async fn publish_all(client: &Client, queues: &[String], ledger: &Arc<Ledger>) {
    let mut publishes = Vec::new();
    for queue in queues {
        for (form, headers, body) in forms() {
            let id = TaskId::from(format!("hostile-{form}-{}", TaskId::random()));
            publishes.push(publish(client, queue, message(id, headers, body), ledger));
        }
    }
    join_all(publishes).await;
}

async fn publish(client: &Client, queue: &str, message: Message, ledger: &Arc<Ledger>) {
    let id = message.id.clone();
    ledger.sent_hostile(id.clone());
    let queue = Queue::configured(queue, client.config());
    let request = PublishRequest { message, queue, delay: None, timeout: PUBLISH_TIMEOUT };
    match client.backends().broker.publish(request).await {
        Ok(_recorded) => ledger.accept(client.handle(id.as_str()), Expected::Failure),
        Err(error) => ledger.not_accepted(&id, &error),
    }
}

/// Returns each form: its name, the headers that make it hostile, and its body.
fn forms() -> Vec<(&'static str, Value, &'static [u8])> {
    let valid: &[u8] = b"[[1, 2], {}, {}]";
    let deep = (0..DEPTH).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
    vec![
        ("cut-body", json!({}), b"[[1, 2"),
        ("binary-body", json!({}), b"\x80\x04\xff\x00"),
        ("no-arguments", json!({}), b"7"),
        ("unknown-task", json!({ "task": "demo.none" }), valid),
        ("no-task", json!({ "task": null }), valid),
        ("retries", json!({ "retries": -7 }), valid),
        ("eta", json!({ "eta": "soon" }), valid),
        ("time-limit", json!({ "timelimit": ["x", -1] }), valid),
        // Without AMQP its depth does no harm; then the unknown task makes it hostile.
        ("deep-header", json!({ "task": "demo.none", "deep": deep }), valid),
    ]
}

fn message(id: TaskId, odd: Value, body: &'static [u8]) -> Message {
    let mut headers = Headers::new();
    headers.insert("id".into(), id.as_str().into());
    headers.insert("task".into(), "demo.add".into());
    if let Value::Object(odd) = odd {
        headers.extend(odd);
    }
    let properties = Properties {
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        ..Properties::default()
    };
    Message { id, headers: headers.into(), body: Bytes::from_static(body), properties }
}
