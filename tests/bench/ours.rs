//! Our side's client. Our worker is a binary of its own: `worker.rs`.

use countersign::{Client, Config};
use futures_util::stream::{self, FuturesUnordered, StreamExt};

use crate::load;
use crate::role::{Numbers, Result, Role};
use crate::work::Work;

/// Enqueued at a time while waits are being set up.
const IN_FLIGHT: usize = 64;

pub(crate) async fn play(role: Role, payload: String) -> Result<()> {
    let client = Client::connect(&Config::load()?).await?;
    let work = move || Work { payload: payload.clone(), pause_ms: 0 };
    let numbers = match role {
        Role::Worker { .. } => return Err("our worker is bench-worker".into()),
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
    // The first poll begins every wait, and none of them ends.
    if futures_util::poll!(waits.next()).is_ready() {
        return Err("a task came to an end that nobody runs".into());
    }
    print(&Numbers::from([("waiting".to_owned(), count as f64)]));
    waits.next().await;
    Ok(())
}

pub(crate) fn print(numbers: &Numbers) {
    println!("{}", serde_json::json!(numbers));
}
