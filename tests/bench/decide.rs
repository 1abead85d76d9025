//! Our side's deciders: of tasks that are parked, and of questions that many race for.

use std::ops::Range;
use std::time::{Duration, Instant};

use countersign::approval::Answer;
use countersign::{ApprovalId, Client, Question, TaskId};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::ask::{Ask, QUESTION};
use crate::role::{Numbers, Result};
use crate::speak::now;

/// Tasks that are enqueued, or decided, at a time.
const IN_FLIGHT: usize = 64;
/// Cycles of one task at a time, before the first that counts and in all.
const WARM_UP: usize = 20;
const CYCLES: usize = 300;
/// How soon a question that is not there yet is looked for again.
const LOOK: Duration = Duration::from_millis(1);

/// The ids of a batch are known to whoever knows its queue.
fn id(queue: &str, number: usize) -> TaskId {
    TaskId::from(format!("{queue}-{number}"))
}

/// The tasks of a batch.
pub(crate) fn ids(queue: &str, numbers: Range<usize>) -> impl Iterator<Item = TaskId> {
    numbers.map(move |number| id(queue, number))
}

pub(crate) async fn park_all(
    client: &Client,
    queue: &str,
    numbers: Range<usize>,
) -> Result<Numbers> {
    let enqueue = |number| async move {
        client.enqueue(Ask {}).queue(queue).id(id(queue, number)).await.map(drop)
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
    let asked = client.approval(&ApprovalId::of(task, QUESTION, 0)).await?;
    match client.decide(&asked.approve("bench")).await? {
        Answer::Applied => Ok(()),
        other => Err(format!("task {task}: {other:?}").into()),
    }
}

/// From a decision to the handler that has it, one task after the other.
pub(crate) async fn cycle(client: &Client, queue: &str) -> Result<Numbers> {
    let mut latencies = Vec::with_capacity(CYCLES);
    for number in 0..WARM_UP + CYCLES {
        let handle = client.enqueue(Ask {}).queue(queue).await?;
        let question = ApprovalId::of(handle.id(), QUESTION, 0);
        let asked = loop {
            match client.approval(&question).await {
                Ok(asked) => break asked,
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        };
        // Its message is acked by then, and nothing of the park is under way any more.
        tokio::time::sleep(LOOK * 20).await;
        let decided = now();
        client.decide(&asked.approve("bench")).await?;
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

/// So many deciders at once on each of so many questions: one wins, and the others are told who.
pub(crate) async fn race(client: &Client, questions: usize, deciders: usize) -> Result<Numbers> {
    let begun = Instant::now();
    for number in 0..questions {
        let requested = client.request_approval(Question::new(format!("Race {number}?"))).await?;
        let asked = client.approval(requested.id()).await?;
        let names: Vec<String> = (0..deciders).map(|decider| format!("d{decider}")).collect();
        let decisions: Vec<_> = names.iter().map(|name| asked.approve(name)).collect();
        let answers = join_all(decisions.iter().map(|decision| client.decide(decision))).await;
        let answers = answers.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
        let mut winners =
            answers.iter().zip(&names).filter(|(answer, _)| **answer == Answer::Applied);
        let (Some((_, winner)), None) = (winners.next(), winners.next()) else {
            return Err(format!("question {number} has not one winner").into());
        };
        let is_told = |answer: &Answer| match answer {
            Answer::Applied => true,
            Answer::AlreadyDecided { by, .. } => by == winner,
            _ => false,
        };
        if let Some(other) = answers.iter().find(|answer| !is_told(answer)) {
            return Err(format!("question {number}: a loser was told {other:?}").into());
        }
    }
    let rate = (questions * deciders) as f64 / begun.elapsed().as_secs_f64();
    Ok(Numbers::from([("race_rate".to_owned(), rate)]))
}
