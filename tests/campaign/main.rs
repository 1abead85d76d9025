//! The campaign: random faults for a given time under load, on servers and on one SQLite file.
//!
//! `COUNTERSIGN_CAMPAIGN_SECONDS` sets the time; the default is 180 s. `COUNTERSIGN_TEST_SEED` repeats
//! the faults and the tasks of a seed; the timing of the machine differs each time.
//!
//! Three demo workers run tasks that succeed at once, are delayed, take a while, are retried, or are
//! suspended until one of two approvers decides. The faults are in `server_faults.rs` and
//! `file_faults.rs`; two of them may overlap, and all have healed at the end. Then these properties must
//! hold:
//!
//! - Each accepted task has exactly one terminal result in the store, and it is the expected one. The
//!   result of a mark identifies one of the task's own runs, so each mark has run.
//! - No result changes: a read at the end returns the result that the task's waiter received.
//! - No waiter hangs: each has its result within five minutes after the last fault has healed.
//! - Only sent tasks ran. Runs are counted in a Redis that no fault touches.
//! - There are at most as many repeated runs as the faults excuse. Each kill, cut or half-open connection,
//!   restart of RabbitMQ and drain that was cut short excuses the concurrency limit of each affected
//!   worker. If the worker was stopped or silent until other workers received its messages, its
//!   prefetched messages count too; if the fault hit the producers' connection, their publishes in flight.
//! - All hostile messages are dead letters, and no others. One decision is applied to each approval.
//! - A worker that receives a signal ends within its deadline, and at the end each worker drains cleanly.
//!   No worker ends by itself, and none panics.
#![expect(clippy::unwrap_used, reason = "a test panics when it fails")]

mod approver;
mod celery;
mod disk;
mod file_faults;
mod hostile;
mod ledger;
mod load;
mod nemesis;
mod oracle;
mod plan;
mod server_faults;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use support::{Effects, servers};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;
use crate::load::Load;
use crate::nemesis::{Bounds, Fault, Kind};
use crate::oracle::Scene;
use crate::plan::Plan;
use crate::workers::WORKERS;

const PER_SECOND: u32 = 80;
/// The time within which the Celery producer must end after the last fault.
const CELERY_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: random faults of RabbitMQ, Redis, connections and workers"]
async fn campaign_on_rabbitmq_and_redis_loses_nothing() {
    let (plan, ledger) = (Plan::from_environment(), Ledger::new());
    let fixture = Arc::new(server_faults::Fixture::start(&ledger).await);
    let scene = Scene {
        client: &fixture.client,
        queues: &fixture.queues,
        workers: &fixture.workers,
        ledger: &ledger,
    };
    let inject = |fault| {
        let fixture = Arc::clone(&fixture);
        async move { fixture.inject(fault).await }
    };
    let celery_url = Some(fixture.celery_url.clone());
    let repeated = run(scene, plan, celery_url, server_faults::kinds(), inject).await;
    fixture.client.close().await;
    ledger.report("campaign on RabbitMQ and Redis", &plan.variables(), repeated);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "campaign: random faults of one SQLite file and of its processes"]
async fn campaign_on_sqlite_loses_nothing() {
    let (plan, ledger) = (Plan::from_environment(), Ledger::new());
    let fixture = Arc::new(file_faults::Fixture::start(&ledger).await);
    let scene = Scene {
        client: &fixture.client,
        queues: &fixture.queues,
        workers: &fixture.workers,
        ledger: &ledger,
    };
    let inject = |fault| {
        let fixture = Arc::clone(&fixture);
        async move { fixture.inject(fault).await }
    };
    let repeated = run(scene, plan, None, fixture.kinds(), inject).await;
    fixture.close().await;
    ledger.report("campaign on SQLite", &plan.variables(), repeated);
}

/// Produces tasks and injects faults until the time is over, then runs all checks. Returns the number of
/// repeated runs.
async fn run<K, F>(
    scene: Scene<'_>,
    plan: Plan,
    celery_url: Option<String>,
    kinds: Vec<Kind<K>>,
    inject: impl Fn(Fault<K>) -> F,
) -> usize
where
    K: Copy,
    F: Future<Output = ()> + Send + 'static,
{
    let Scene { client, queues, workers, ledger } = scene;
    let mut effects = Effects::at(&servers().store_url).await;
    let (queues, list) = (queues.to_vec(), effects.list.clone());
    let load = Load { client: client.clone(), queues, list, ledger: Arc::clone(ledger) };
    let load = Arc::new(load);
    let end = Instant::now() + plan.duration;
    // The load has its own seed, so that more draws of the load do not change the faults.
    let producer = Arc::clone(&load).run(plan.seed.wrapping_add(1), PER_SECOND, end);
    let producer = tokio::spawn(producer);
    let celery = celery_url.map(|url| tokio::spawn(celery::produce(load, url, plan.duration)));
    let stop = CancellationToken::new();
    let approvers = ["ana", "ben"].map(|by| {
        tokio::spawn(approver::approve_all(client.clone(), by, Arc::clone(ledger), stop.clone()))
    });

    let bounds = Bounds { places: WORKERS, seed: plan.seed, end };
    nemesis::attack(kinds, bounds, ledger, inject).await;
    producer.await.unwrap();
    if let Some(celery) = celery {
        let ended = timeout(CELERY_LIMIT, celery).await;
        if !matches!(ended, Ok(Ok(()))) {
            ledger.violation(format!("the Celery producer did not end: {ended:?}"));
        }
    }

    scene.await_results().await;
    stop.cancel();
    for approver in approvers {
        approver.await.unwrap();
    }
    workers.drain_all().await;
    scene.check_results().await;
    let repeated = scene.check_runs(&effects.entries().await);
    scene.check_dead_letters().await;
    scene.check_decisions();
    repeated
}
