//! Delayed tasks: the queue in which they arrive, and how often they run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::{Client, Config, Context, Task, TaskResult, Worker};
use serde::{Deserialize, Serialize};
use support::{Running, TIMEOUT, queue_name, servers};
use tokio::sync::oneshot;

#[derive(Serialize, Deserialize)]
struct Work {
    n: usize,
}

impl Task for Work {
    const NAME: &'static str = "test.work";
    type Output = usize;
}

/// Counts the runs of one worker.
fn counting(runs: &Arc<AtomicUsize>) -> impl Fn(Worker) -> Worker {
    let runs = Arc::clone(runs);
    move |worker| {
        let runs = Arc::clone(&runs);
        let count = move |_: Context, Work { n }: Work| {
            runs.fetch_add(1, Ordering::SeqCst);
            std::future::ready::<TaskResult<usize>>(Ok(n))
        };
        worker.handle(count)
    }
}

/// `#.billing` would match `eu.billing` too. Both are bound before any task is delayed.
#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_task_is_not_delivered_to_a_queue_with_a_similar_name() {
    let servers = servers();
    let config = Config::new(&servers.broker_url, &servers.store_url).unwrap();
    let client = Client::connect(&config).await.unwrap();
    let billing = queue_name();
    let queues = [billing.clone(), format!("eu.{billing}")];
    let runs: [Arc<AtomicUsize>; 2] = Default::default();
    let mut workers = Vec::new();
    for (queue, runs) in queues.iter().zip(&runs) {
        let own = Client::connect(&config).await.unwrap();
        let worker = counting(runs)(Worker::new(&own).queue(queue).name(queue));
        let (stop, stopped) = oneshot::channel::<()>();
        workers.push((stop, tokio::spawn(worker.run(async { drop(stopped.await) }))));
    }
    for _ in 0..2 {
        let mut delayed = Vec::new();
        for n in 0..10 {
            for queue in &queues {
                let work = client.enqueue(Work { n }).queue(queue);
                let delay = Duration::from_millis(200 * n as u64);
                delayed.push((n, work.delay(delay).await.unwrap()));
            }
        }
        for (n, handle) in delayed {
            assert_eq!(handle.result_within(TIMEOUT).await.unwrap(), n);
        }
    }
    for (stop, worker) in workers {
        stop.send(()).unwrap();
        worker.await.unwrap().unwrap();
    }
    assert_eq!(runs.map(|runs| runs.load(Ordering::SeqCst)), [20, 20], "runs at each queue");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_a_delay_does_not_start_before_it_has_passed() {
    let runs = Arc::default();
    let running = Running::start(counting(&runs)).await;
    for millis in [30, 400, 1200, 2100] {
        let delay = Duration::from_millis(millis);
        let due = jiff::Timestamp::now() + delay;
        let work = running.client.enqueue(Work { n: 1 }).queue(&running.queue).delay(delay);
        work.await.unwrap().result_within(TIMEOUT).await.unwrap();
        let early = due.duration_since(jiff::Timestamp::now());
        assert!(early <= jiff::SignedDuration::from_millis(20), "{early:?} early of {delay:?}");
    }
    running.drain().await;
}
