//! The Celery producer: an unmodified client in its own process.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::ledger::Expected;
use crate::load::Load;

const PER_SECOND: u32 = 20;

/// Lets Celery enqueue marks into the first queue for `duration`. Returns when its process has ended.
pub(crate) async fn produce(load: Arc<Load>, broker_url: String, duration: Duration) {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/celery/producer.py");
    if !Path::new(python).exists() {
        return support::skip(&format!("the Celery producer: ops/venv makes {python}"));
    }
    let (seconds, rate) = (duration.as_secs().to_string(), PER_SECOND.to_string());
    let mut producer = Command::new(python)
        .args([script, &load.queues[0], &load.list, &seconds, &rate])
        .env("COUNTERSIGN_BROKER_URL", broker_url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(producer.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        match line.split_once(' ') {
            Some(("sending", id)) => load.ledger.sent(id.into()),
            Some(("accepted", id)) => load.ledger.accept(load.client.handle(id), Expected::Mark),
            _ => {}
        }
    }
    let status = producer.wait().await.unwrap();
    if !status.success() {
        load.ledger.violation(format!("the Celery producer failed: {status}"));
    }
}
