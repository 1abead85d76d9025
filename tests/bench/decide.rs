//! Countersign's deciders: for suspended tasks, and for requests that many deciders decide at once.

use std::ops::Range;
use std::time::{Duration, Instant};

use countersign::approval::DecideResult;
use countersign::{ApprovalId, ApprovalRequest, Client, TaskId};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::approve::{APPROVAL, NeedsApproval};
use crate::role::{Numbers, Result};
use crate::speak::now;

/// The number of tasks that are enqueued at a time; four times as many are decided at a time.
const IN_FLIGHT: usize = 64;
/// Cycles of one task at a time: those before the first that counts, and those that count.
const WARM_UP: usize = 20;
const CYCLES: usize = 300;
/// The interval between two lookups of a request that does not exist yet.
const LOOK: Duration = Duration::from_millis(1);

/// Derives the id of a task from its queue, so that other processes know the ids of a batch.
fn id(queue: &str, number: usize) -> TaskId {
    TaskId::from(format!("{queue}-{number}"))
}

/// Returns the ids of the tasks of a batch.
pub(crate) fn ids(queue: &str, numbers: Range<usize>) -> impl Iterator<Item = TaskId> {
    numbers.map(move |number| id(queue, number))
}

pub(crate) async fn suspend_all(
    client: &Client,
    queue: &str,
    numbers: Range<usize>,
) -> Result<Numbers> {
    let enqueue = |number| async move {
        client.enqueue(NeedsApproval {}).queue(queue).id(id(queue, number)).await.map(drop)
    };
    stream::iter(numbers).map(enqueue).buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
    Ok(Numbers::new())
}

/// Approves every task of a batch, and waits until each has ended.
pub(crate) async fn decide_all(
    client: &Client,
    queue: &str,
    numbers: Range<usize>,
) -> Result<Numbers> {
    let begun = Instant::now();
    let decide = |number| async move {
        let task = id(queue, number);
        approve(client, &task).await?;
        client.handle::<u64>(task).result().await?;
        Result::Ok(())
    };
    let all = stream::iter(numbers).map(decide).buffer_unordered(IN_FLIGHT * 4);
    all.try_collect::<()>().await?;
    Ok(Numbers::from([("resume_s".to_owned(), begun.elapsed().as_secs_f64())]))
}

async fn approve(client: &Client, task: &TaskId) -> Result<()> {
    let request = client.approval(&ApprovalId::of(task, APPROVAL, 0)).await?;
    match client.decide(&request.approve("bench")).await? {
        DecideResult::Applied => Ok(()),
        other => Err(format!("task {task}: {other:?}").into()),
    }
}

/// Measures the time from a decision until the handler has it, one task after the other.
pub(crate) async fn cycle(client: &Client, queue: &str) -> Result<Numbers> {
    let mut latencies = Vec::with_capacity(CYCLES);
    for number in 0..WARM_UP + CYCLES {
        let handle = client.enqueue(NeedsApproval {}).queue(queue).await?;
        let request = ApprovalId::of(handle.id(), APPROVAL, 0);
        let request = loop {
            match client.approval(&request).await {
                Ok(request) => break request,
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        // By then the task's message is acked, and its suspension is complete.
        tokio::time::sleep(LOOK * 20).await;
        let decided = now();
        client.decide(&request.approve("bench")).await?;
        let resumed = handle.result().await?;
        if number >= WARM_UP {
            latencies.push(resumed.saturating_sub(decided));
        }
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let place = (latencies.len() as f64 * share) as usize;
        latencies.get(place).map_or(f64::NAN, |latency| *latency as f64 / 1e3)
    };
    Ok(Numbers::from([
        ("resume_p50_ms".to_owned(), at(0.50)),
        ("resume_p99_ms".to_owned(), at(0.99)),
    ]))
}

/// Lets `deciders` decide each of `requests` requests at once. One decision wins; the results of the others
/// name its decider.
pub(crate) async fn race(client: &Client, requests: usize, deciders: usize) -> Result<Numbers> {
    let begun = Instant::now();
    for number in 0..requests {
        let requested =
            client.request_approval(ApprovalRequest::new(format!("Race {number}?"))).await?;
        let request = client.approval(requested.id()).await?;
        let names: Vec<String> = (0..deciders).map(|decider| format!("d{decider}")).collect();
        let decisions: Vec<_> = names.iter().map(|name| request.approve(name)).collect();
        let answers = join_all(decisions.iter().map(|decision| client.decide(decision))).await;
        let answers = answers.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
        let mut winners =
            answers.iter().zip(&names).filter(|(answer, _)| **answer == DecideResult::Applied);
        let (Some((_, winner)), None) = (winners.next(), winners.next()) else {
            return Err(format!("request {number} does not have one winner").into());
        };
        let is_told = |answer: &DecideResult| match answer {
            DecideResult::Applied => true,
            DecideResult::AlreadyDecided { by, .. } => by == winner,
            _ => false,
        };
        if let Some(other) = answers.iter().find(|answer| !is_told(answer)) {
            return Err(format!("request {number}: a loser got {other:?}").into());
        }
    }
    let rate = (requests * deciders) as f64 / begun.elapsed().as_secs_f64();
    Ok(Numbers::from([("race_rate".to_owned(), rate)]))
}
