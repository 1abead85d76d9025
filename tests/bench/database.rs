//! What one file holds, and how soon two processes on it hear of each other.

use std::time::{Duration, Instant};

use countersign::backend::Finish;
use countersign::protocol::Document;
use countersign::{ApprovalId, Client, TaskId};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::ask::QUESTION;
use crate::role::{Numbers, Result};
use crate::speak::{Speak, now};
use crate::work::Work;

/// Results that are stored at a time: they share a transaction.
const AT_ONCE: usize = 512;
/// Between two tasks, so that nobody expects the second one.
const PAUSE: Duration = Duration::from_millis(70);
/// How soon is looked again whether a task is parked.
const LOOK: Duration = Duration::from_millis(5);
/// How long a file that is being pruned is written to.
const PRUNED_FOR: Duration = Duration::from_secs(20);

/// Waits until every task of a batch is parked.
pub(crate) async fn all_parked(client: &Client, ids: impl Iterator<Item = TaskId>) -> Result<()> {
    for id in ids {
        while client.approval(&ApprovalId::of(&id, QUESTION, 0)).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Tasks that another process runs: how soon it has each, and how soon this one has its result.
pub(crate) async fn across(client: &Client, queue: &str, count: usize) -> Result<Numbers> {
    let (mut there, mut back) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        tokio::time::sleep(PAUSE).await;
        let sent = now();
        let (begun, ended) =
            client.enqueue(Speak { entries: 0 }).queue(queue).await?.result().await?;
        back.push(now().saturating_sub(ended));
        there.push(begun.saturating_sub(sent));
    }
    let median = |mut latencies: Vec<u64>| {
        latencies.sort_unstable();
        latencies.get(count / 2).map_or(f64::NAN, |latency| *latency as f64 / 1e3)
    };
    Ok(Numbers::from([
        ("task_p50_ms".to_owned(), median(there)),
        ("result_p50_ms".to_owned(), median(back)),
    ]))
}

/// Stores results of so many tasks.
pub(crate) async fn finish_all(client: &Client, count: usize) -> Result<Numbers> {
    let store = &client.backends().store;
    let finish = |_| async {
        let id = TaskId::random();
        let json = format!(
            r#"{{"status":"SUCCESS","result":3,"traceback":null,"children":[],"date_done":null,"task_id":"{id}"}}"#
        );
        let document = Document::parse(id, json.into())?;
        store.finish(Finish { document, reply_to: None, received: None }).await.map(drop)
    };
    stream::iter(0..count).map(finish).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok(Numbers::new())
}

/// Writes to a file whose results are being forgotten; `opened_s` is how long opening it took.
pub(crate) async fn pruned(client: &Client, opened: Duration) -> Result<Numbers> {
    let (begun, mut longest, mut written) = (Instant::now(), Duration::ZERO, 0);
    while begun.elapsed() < PRUNED_FOR {
        let asked = Instant::now();
        let task = Work { payload: String::new(), pause_ms: 0 };
        client.enqueue(task).queue("pruned").await?;
        longest = longest.max(asked.elapsed());
        written += 1;
    }
    Ok(Numbers::from([
        ("open_s".to_owned(), opened.as_secs_f64()),
        ("stall_ms".to_owned(), longest.as_secs_f64() * 1e3),
        ("written_while_pruned".to_owned(), f64::from(written)),
    ]))
}
