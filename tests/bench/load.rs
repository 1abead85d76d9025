//! The same load for both sides. They differ only in the closure that sends or calls.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinSet;

use crate::role::{Numbers, Result};

/// Calls before the first that counts. They open the connections and load the code into memory.
const WARM_UP: usize = 200;

/// Sends `count` tasks with `in_flight` of them unconfirmed at a time.
pub(crate) async fn enqueue<F, Sent>(count: usize, in_flight: usize, send: F) -> Result<Numbers>
where
    F: Fn() -> Sent,
    Sent: Future<Output = Result<()>>,
{
    send_all(WARM_UP, in_flight, &send).await?;
    let begun = Instant::now();
    send_all(count, in_flight, &send).await?;
    Ok(Numbers::from([("rate".to_owned(), per_second(count, begun))]))
}

async fn send_all<F, Sent>(count: usize, in_flight: usize, send: &F) -> Result<()>
where
    F: Fn() -> Sent,
    Sent: Future<Output = Result<()>>,
{
    let sent = stream::iter(0..count).map(|_| send()).buffer_unordered(in_flight);
    sent.try_collect().await
}

/// Makes `count` calls, split between `callers` concurrent callers.
pub(crate) async fn calls<F, Called>(count: usize, callers: usize, call: F) -> Result<Numbers>
where
    F: Fn() -> Called + Clone + Send + 'static,
    Called: Future<Output = Result<()>> + Send + 'static,
{
    call_all(WARM_UP.max(callers), callers, &call).await?;
    let begun = Instant::now();
    let mut latencies = call_all(count, callers, &call).await?;
    let rate = per_second(latencies.len(), begun);
    latencies.sort_unstable();
    Ok(Numbers::from([
        ("rate".to_owned(), rate),
        ("p50_ms".to_owned(), milliseconds(&latencies, 0.50)),
        ("p99_ms".to_owned(), milliseconds(&latencies, 0.99)),
    ]))
}

async fn call_all<F, Called>(count: usize, callers: usize, call: &F) -> Result<Vec<Duration>>
where
    F: Fn() -> Called + Clone + Send + 'static,
    Called: Future<Output = Result<()>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for _ in 0..callers {
        let call = call.clone();
        running.spawn(async move {
            let mut latencies = Vec::with_capacity(count / callers);
            for _ in 0..count / callers {
                let begun = Instant::now();
                call().await?;
                latencies.push(begun.elapsed());
            }
            Result::Ok(latencies)
        });
    }
    let mut latencies = Vec::with_capacity(count);
    while let Some(ended) = running.join_next().await {
        latencies.extend(ended??);
    }
    Ok(latencies)
}

fn per_second(count: usize, begun: Instant) -> f64 {
    count as f64 / begun.elapsed().as_secs_f64()
}

fn milliseconds(sorted: &[Duration], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
}
