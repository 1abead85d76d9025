//! Renewals of leases while other callers read large results through the same client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use countersign::backend::{ClaimResult, StoreResult};
use countersign::protocol::{Document, TaskDigest};
use countersign::{Client, TaskId};
use futures_util::future::try_join_all;
use tokio::task::JoinSet;

use crate::role::{Numbers, Result};

const LEASE: Duration = Duration::from_secs(3600);
const RESULT_BYTES: usize = 1024 * 1024;
const HOLDER: &str = "bench";

/// Renews the claims of `claims` tasks `rounds` times, while `callers` read a result of 1 MiB each, over
/// and over. Returns the latencies of the renewals.
pub(crate) async fn play(
    client: &Client,
    claims: usize,
    callers: usize,
    rounds: usize,
) -> Result<Numbers> {
    let store = Arc::clone(&client.backends().store);
    let tasks: Vec<_> = (0..claims).map(|n| TaskId::from(format!("pools-{n}"))).collect();
    for id in &tasks {
        let digest = TaskDigest::from(id.to_string());
        match store.claim_first(id, &digest, true, HOLDER, LEASE).await? {
            ClaimResult::Claimed { .. } => {}
            other => return Err(format!("{id} was not claimed: {other:?}").into()),
        }
    }
    let (is_over, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut readers = JoinSet::new();
    for number in 0..callers {
        let id = TaskId::from(format!("pools-result-{number}"));
        let text = "x".repeat(RESULT_BYTES);
        let json = format!(r#"{{"status": "SUCCESS", "result": "{text}", "task_id": "{id}"}}"#);
        let document = Document::parse(id.clone(), Bytes::from(json))?;
        let stored = StoreResult { document, reply_to: None, received: None };
        let _ = store.store_result(stored).await?;
        let (store, is_over, reads) =
            (Arc::clone(&store), Arc::clone(&is_over), Arc::clone(&reads));
        readers.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                store.read_result(&id).await?.ok_or("the result is missing")?;
                reads.fetch_add(1, Ordering::Relaxed);
            }
            Result::Ok(())
        });
    }
    let (begun, before) = (Instant::now(), reads.load(Ordering::Relaxed));
    let mut latencies = Vec::with_capacity(claims * rounds);
    for _ in 0..rounds {
        // The tasks of a worker renew their claims at the same time.
        let renewed = try_join_all(tasks.iter().map(async |id| {
            let begun = Instant::now();
            let is_held = store.renew_claim(id, HOLDER, LEASE).await?;
            if is_held { Result::Ok(begun.elapsed()) } else { Err(format!("{id} was lost").into()) }
        }));
        latencies.extend(renewed.await?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let count = reads.load(Ordering::Relaxed) - before;
    is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = readers.join_next().await {
        ended??;
    }
    for id in &tasks {
        store.release_claim(id, HOLDER).await?;
    }
    latencies.sort_unstable();
    let at = |percent: usize| {
        let place = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(place).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    Ok(Numbers::from([
        ("p50_ms".to_owned(), at(50)),
        ("p99_ms".to_owned(), at(99)),
        ("reads".to_owned(), count as f64 / seconds),
    ]))
}
