//! A RabbitMQ cluster of three nodes under load: a node is lost, a node is partitioned, all are restarted.
//!
//! The test counts one success per accepted id in the store, and the runs in a Redis list.
//! The queue is a quorum queue, as is usual in a cluster.
use std::collections::HashSet;
use std::time::Duration;

use countersign::{Client, Config};
use futures_util::StreamExt;
use serde_json::Value;
use support::{Cluster, DemoWorker, Effects, TIMEOUT, produce_marks, queue_name, servers};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Long enough that the nodes notice it, short enough that they reconnect: their net_ticktime is 60 s.
const OUTAGE: Duration = Duration::from_secs(40);
/// Tasks that are enqueued in one go; repeated until the last fault is over.
const BATCH: usize = 1000;

/// Enqueues tasks until `done` is cancelled; returns the accepted ids.
async fn load(client: Client, queue: String, list: String, done: CancellationToken) -> Vec<String> {
    let mut accepted = Vec::new();
    while !done.is_cancelled() {
        let marks = produce_marks(client.clone(), queue.clone(), list.clone(), BATCH);
        accepted.extend(marks.await);
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a cluster of three RabbitMQ nodes in containers"]
async fn a_cluster_loses_no_task_through_node_loss_partition_and_rolling_restart() {
    if !Cluster::is_possible().await {
        return support::skip("no container engine answers");
    }
    let cluster = Cluster::start().await;
    let queue = queue_name();
    let settings = format!("[queues.{queue}]\ntype = \"quorum\"\n");
    let settings = support::file("quorum.toml", &settings);
    let store = &servers().store_url;
    let workers: Vec<_> = (0..2)
        .map(|n| {
            DemoWorker::spawn(
                &["-Q", &queue, "-c", "8", "--prefetch", "16", "-n", &format!("{queue}-{n}")],
                &[
                    ("COUNTERSIGN_BROKER_URL", &cluster.url()),
                    ("COUNTERSIGN_STORE_URL", store),
                    ("COUNTERSIGN_CONFIG", &settings),
                ],
            )
        })
        .collect();
    for worker in &workers {
        worker.ready().await;
    }
    let client = Client::connect(&Config::new(&cluster.url(), store).unwrap()).await.unwrap();
    let mut effects = Effects::at(store).await;
    let done = CancellationToken::new();
    let load = load(client.clone(), queue.clone(), effects.list.clone(), done.clone());
    let load = tokio::spawn(load);

    cluster.kill(0).await;
    sleep(OUTAGE / 4).await;
    cluster.revive(0).await;
    eprintln!("killed node 0 and started it again");

    cluster.cut_off(1).await;
    sleep(OUTAGE).await;
    cluster.rejoin(1).await;
    eprintln!("cut off node 1 for {OUTAGE:?}");

    for node in 0..3 {
        cluster.restart(node).await;
        eprintln!("restarted node {node}");
    }
    done.cancel();
    let accepted = load.await.unwrap();

    let results = futures_util::stream::iter(&accepted)
        .map(|id| client.handle::<Value>(id).result_within(TIMEOUT))
        .buffer_unordered(20_000);
    let failed: Vec<_> = results.filter_map(async |result| result.err()).collect().await;
    let of = accepted.len();
    assert!(failed.is_empty(), "{} of {of} have no success: {:?}", failed.len(), failed.first());
    let runs = effects.runs().await;
    let never = accepted.iter().filter(|id| !runs.contains_key(*id)).count();
    assert_eq!(never, 0, "accepted tasks with a success that never ran");
    let known: HashSet<_> = accepted.iter().collect();
    let repeated: usize = accepted.iter().map(|id| runs[id] - 1).sum();
    eprintln!("{of} accepted, {} distinct, {repeated} runs repeated", known.len());
    client.close().await;
}
