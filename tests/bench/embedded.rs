//! One database instead of servers: client and worker run in one process, as in a small service.

use std::time::Instant;

use countersign::{Client, Config, Context, TaskResult, Worker};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::oneshot;

use crate::role::{Numbers, Result};
use crate::work::Work;

const CALLERS: usize = 64;
const QUEUE: &str = "bench";

/// Enqueues `count` tasks, runs them, and waits for their results.
pub(crate) async fn play(url: &str, count: usize, payload: &str) -> Result<Numbers> {
    let client = Client::connect(&Config::embedded(url)?).await?;
    let begun = Instant::now();
    let send = |_| {
        let task = Work { payload: payload.to_owned(), pause_ms: 0 };
        client.enqueue(task).queue(QUEUE).into_future()
    };
    let sent = stream::iter(0..count).map(send).buffer_unordered(CALLERS);
    let handles: Vec<_> = sent.try_collect().await?;
    let enqueued = count as f64 / begun.elapsed().as_secs_f64();

    let worker = Worker::new(&client).queue(QUEUE).concurrency(CALLERS).prefetch(512);
    let work = |_: Context, task: Work| async move { TaskResult::Ok(task.perform().await) };
    let worker = worker.handle(work);
    let (stop, stopped) = oneshot::channel::<()>();
    let begun = Instant::now();
    let working = tokio::spawn(worker.run(async {
        let _ = stopped.await;
    }));
    for handle in handles {
        handle.result().await?;
    }
    let drained = count as f64 / begun.elapsed().as_secs_f64();
    let _ = stop.send(());
    working.await??;
    Ok(Numbers::from([("enqueue".to_owned(), enqueued), ("drain".to_owned(), drained)]))
}
