//! Countersign's client. The worker is a separate binary: `worker.rs`.

use std::time::Instant;

use countersign::{Client, Config};
use futures_util::stream::{self, FuturesUnordered, StreamExt};

use crate::role::{Numbers, Result, Role, print};
use crate::speak::{Speak, now};
use crate::work::Work;
use crate::{backlog, database, decide, embedded, load, pools};

/// The number of concurrent enqueues while the waits are set up.
const IN_FLIGHT: usize = 64;

pub(crate) async fn play(role: Role, payload: String) -> Result<()> {
    if let Role::Embedded { url, count } = role {
        print(&embedded::play(&url, count, &payload).await?);
        return Ok(());
    }
    let begun = Instant::now();
    let client = Client::connect(&Config::load()?).await?;
    let opened = begun.elapsed();
    let work = move || Work { payload: payload.clone(), pause_ms: 0 };
    let numbers = match role {
        Role::Worker { .. } => return Err("our worker is bench-worker".into()),
        Role::Embedded { .. } => return Err("it has no servers".into()),
        Role::Enqueue { queue, count, in_flight } => {
            let send = || async {
                client.enqueue(work()).queue(&queue).await?;
                Ok(())
            };
            load::enqueue(count, in_flight, send).await?
        }
        Role::Calls { queue, count, callers } => {
            let call = move || {
                let (client, task, queue) = (client.clone(), work(), queue.clone());
                async move {
                    client.enqueue(task).queue(queue).await?.result().await?;
                    Ok(())
                }
            };
            load::calls(count, callers, call).await?
        }
        Role::Streams { queue, tasks, entries } => {
            stream_all(&client, &queue, tasks, entries).await?
        }
        Role::Suspend { queue, numbers } => decide::suspend_all(&client, &queue, numbers).await?,
        Role::Decide { queue, numbers } => decide::decide_all(&client, &queue, numbers).await?,
        Role::Cycle { queue } => decide::cycle(&client, &queue).await?,
        Role::Race { requests, deciders } => decide::race(&client, requests, deciders).await?,
        Role::Suspended { queue, numbers } => {
            database::all_parked(&client, decide::ids(&queue, numbers)).await?;
            Numbers::new()
        }
        Role::Across { queue, count } => database::across(&client, &queue, count).await?,
        Role::Limited { queue, backlog, behind } => {
            backlog::play(&client, &queue, backlog, behind).await?
        }
        Role::Pools { claims, callers, rounds } => {
            pools::play(&client, claims, callers, rounds).await?
        }
        Role::Finish { count } => database::finish_all(&client, count).await?,
        Role::Pruned => database::pruned(&client, opened).await?,
        Role::Waiters { queue, count } => return wait(&client, &queue, count).await,
    };
    print(&numbers);
    Ok(())
}

async fn wait(client: &Client, queue: &str, count: usize) -> Result<()> {
    let enqueue = |_| async {
        let task = Work { payload: String::new(), pause_ms: 0 };
        client.enqueue(task).queue(queue).await
    };
    let waits = FuturesUnordered::new();
    let mut enqueued = stream::iter(0..count).map(enqueue).buffer_unordered(IN_FLIGHT);
    while let Some(handle) = enqueued.next().await {
        waits.push(handle?.result());
    }
    drop(enqueued);
    tokio::pin!(waits);
    // The first poll starts every wait. None of them ends, since no worker runs the tasks.
    if futures_util::poll!(waits.next()).is_ready() {
        return Err("a task ended that was not started".into());
    }
    print(&Numbers::from([("waiting".to_owned(), count as f64)]));
    waits.next().await;
    Ok(())
}

/// Runs tasks that write to their streams as fast as they can, and follows one of them.
async fn stream_all(client: &Client, queue: &str, tasks: usize, entries: usize) -> Result<Numbers> {
    let speak = |_| client.enqueue(Speak { entries }).queue(queue);
    let handles: Vec<_> = client.enqueue_all((0..tasks).map(speak)).await;
    let handles = handles.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    let followed = handles.first().ok_or("no task to follow")?.id().clone();
    let mut latencies = Vec::with_capacity(entries);
    let mut follow = client.follow(&followed);
    while let Some(entry) = follow.next().await {
        latencies.push(now().saturating_sub(entry?.read()?));
    }
    let (mut begun, mut ended) = (u64::MAX, 0);
    for handle in handles {
        let (first, last) = handle.result().await?;
        (begun, ended) = (begun.min(first), ended.max(last));
    }
    latencies.sort_unstable();
    let median = latencies.get(latencies.len() / 2).ok_or("nothing was followed")?;
    let seconds = ended.saturating_sub(begun) as f64 / 1e6;
    Ok(Numbers::from([
        ("rate".to_owned(), (tasks * entries) as f64 / seconds),
        ("followed_p50_ms".to_owned(), *median as f64 / 1e3),
    ]))
}
