//! Measures one database file: the data that it holds, and the latency between two processes that share it.

use std::time::{Duration, Instant};

use countersign::backend::StoreResult;
use countersign::protocol::Document;
use countersign::{ApprovalId, Client, TaskId};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::approve::APPROVAL;
use crate::role::{Numbers, Result};
use crate::speak::{Speak, now};
use crate::work::Work;

/// The number of results that are stored at a time, so that they share a transaction.
const AT_ONCE: usize = 512;
/// The pause between two tasks, so that no process expects the second one.
const PAUSE: Duration = Duration::from_millis(70);
/// The interval between two checks whether a task is suspended.
const LOOK: Duration = Duration::from_millis(5);
/// The duration of the writes to a file from which expired results are deleted.
const PRUNED_FOR: Duration = Duration::from_secs(20);

/// Waits until every task of a batch is suspended.
pub(crate) async fn all_parked(client: &Client, ids: impl Iterator<Item = TaskId>) -> Result<()> {
    for id in ids {
        while client.approval(&ApprovalId::of(&id, APPROVAL, 0)).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Enqueues tasks that another process runs. Measures the time until that process starts each task, and the
/// time until this process has the result.
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

/// Stores the results of `count` tasks.
pub(crate) async fn finish_all(client: &Client, count: usize) -> Result<Numbers> {
    let store = &client.backends().store;
    let finish = |_| async {
        let id = TaskId::random();
        let json = format!(
            r#"{{"status":"SUCCESS","result":3,"traceback":null,"children":[],"date_done":null,"task_id":"{id}"}}"#
        );
        let document = Document::parse(id, json.into())?;
        store.store_result(StoreResult { document, reply_to: None, received: None }).await.map(drop)
    };
    stream::iter(0..count).map(finish).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok(Numbers::new())
}

/// Writes to a file while expired results are deleted. `opened` is the time that opening the file took.
pub(crate) async fn pruned(client: &Client, opened: Duration) -> Result<Numbers> {
    let (begun, mut longest, mut written) = (Instant::now(), Duration::ZERO, 0);
    while begun.elapsed() < PRUNED_FOR {
        let begun = Instant::now();
        let task = Work { payload: String::new(), pause_ms: 0 };
        client.enqueue(task).queue("pruned").await?;
        longest = longest.max(begun.elapsed());
        written += 1;
    }
    Ok(Numbers::from([
        ("open_s".to_owned(), opened.as_secs_f64()),
        ("stall_ms".to_owned(), longest.as_secs_f64() * 1e3),
        ("written_while_pruned".to_owned(), f64::from(written)),
    ]))
}
