//! Measures a backlog of a type with a rate limit: how long tasks of another type wait behind it, and how
//! often each of its tasks is held back.

use std::time::Instant;

use countersign::Client;
use futures_util::future::try_join_all;

use crate::limited::Limited;
use crate::role::{Numbers, Result};
use crate::work::Work;

/// Enqueues a backlog of the limited type, then tasks of another one, and waits for all of them.
pub(crate) async fn play(
    client: &Client,
    queue: &str,
    backlog: usize,
    behind: usize,
) -> Result<Numbers> {
    let begun = Instant::now();
    let limited = (0..backlog).map(|_| client.enqueue(Limited {}).queue(queue));
    let limited = client.enqueue_all(limited).await;
    let others = (0..behind)
        .map(|_| client.enqueue(Work { payload: String::new(), pause_ms: 0 }).queue(queue));
    let sent = Instant::now();
    let others = client.enqueue_all(others).await;
    let others = others.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    try_join_all(others.into_iter().map(|handle| handle.result())).await?;
    let behind_s = sent.elapsed().as_secs_f64();
    let limited = limited.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    let held_back = try_join_all(limited.into_iter().map(|handle| handle.result())).await?;
    let times: u64 = held_back.iter().sum();
    Ok(Numbers::from([
        ("behind_s".to_owned(), behind_s),
        ("rate".to_owned(), backlog as f64 / begun.elapsed().as_secs_f64()),
        ("held_back".to_owned(), times as f64 / backlog as f64),
        ("held_back_most".to_owned(), held_back.iter().max().copied().unwrap_or(0) as f64),
    ]))
}
