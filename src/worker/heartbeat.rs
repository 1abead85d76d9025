//! A worker's heartbeat: a small file that `health` reads, renewed every two seconds, and an entry in the
//! store for readers on other machines.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::health::Health;
use super::state::WorkerState;
use crate::backend::WorkerInfo;
use crate::client::hostname;
use crate::clock;

/// How often the worker announces itself in the store; the entry expires after four of these.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);
const RETRACT_DEADLINE: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(2);
/// The running heartbeat of a worker.
pub(super) struct Heartbeat {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Heartbeat {
    /// Stops the heartbeat, and removes its file and its entry in the store.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

pub(super) fn start(state: &Arc<WorkerState>, consuming: Vec<watch::Receiver<bool>>) -> Heartbeat {
    let stop = CancellationToken::new();
    let (state, stopped, started) = (Arc::clone(state), stop.clone(), clock::now());
    let task = tokio::spawn(async move {
        let file = Health::file(&state.name, state.config.worker.health_dir.as_deref());
        let work = async {
            tokio::join!(
                write_health(&state, consuming, &file),
                announce(&state, started),
                state.runs.store_started(state.backends.store.as_ref(), &state.name),
            )
        };
        stopped.run_until_cancelled(work).await;
        let _ = tokio::fs::remove_file(&file).await;
        let retracted = state.backends.store.unregister_worker(worker_info(&state, started));
        let _ = timeout(RETRACT_DEADLINE, retracted).await;
    });
    Heartbeat { stop, task }
}

/// Reports the worker as draining at once, not at the next heartbeat.
pub(super) fn report_draining(state: &WorkerState) {
    state.draining.store(true, Ordering::Relaxed);
    state.health.send_modify(|health| {
        if let Some(health) = health {
            health.draining = true;
        }
    });
}

/// Announces this worker in the store at every interval. A failed announcement is corrected by the next.
async fn announce(state: &WorkerState, started: Timestamp) {
    state.client.connected().await;
    let mut ticks = interval(ANNOUNCE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = state.runs.changed.notified() => {}
        }
        let announced = state
            .backends
            .store
            .register_worker(worker_info(state, started), ANNOUNCE_INTERVAL * 4);
        if let Err(error) = announced.await {
            debug!("cannot store this worker's heartbeat: {error}");
        }
    }
}

fn worker_info(state: &WorkerState, started: Timestamp) -> WorkerInfo {
    WorkerInfo {
        name: state.name.clone(),
        host: hostname(),
        pid: std::process::id(),
        queues: state.queues.iter().map(|(queue, _)| queue.name.clone()).collect(),
        tasks: task_types(state),
        concurrency: state.concurrency_limit.size(),
        running: state.tasks.len(),
        long_running: state.runs.long(),
        finished: state.finished.load(Ordering::Relaxed),
        draining: state.draining.load(Ordering::Relaxed),
        started,
        at: clock::now(),
    }
}

fn task_types(state: &WorkerState) -> Vec<String> {
    let mut names: Vec<_> = state.handlers.keys().map(|name| (*name).to_owned()).collect();
    names.sort_unstable();
    names
}

async fn write_health(
    state: &WorkerState,
    mut consuming: Vec<watch::Receiver<bool>>,
    file: &PathBuf,
) {
    state.client.connected().await;
    for queue in &mut consuming {
        let _ = queue.wait_for(|consuming| *consuming).await;
    }
    let queues: Vec<_> = state.queues.iter().map(|(queue, _)| queue.name.as_str()).collect();
    info!(name = %state.name, ?queues, concurrency = state.concurrency_limit.size(), "ready");
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_written = true;
    loop {
        ticks.tick().await;
        let health = Health {
            pid: std::process::id(),
            broker: state.backends.broker.is_connected(),
            consuming: consuming.iter().all(|queue| *queue.borrow()),
            store: state.backends.store.is_connected(),
            refused: state.backends.broker.refusal(),
            draining: state.draining.load(Ordering::Relaxed),
            running: state.tasks.len(),
            finished: state.finished.load(Ordering::Relaxed),
            at: clock::now(),
        };
        state.health.send_replace(Some(health.clone()));
        let written = write(file, &health).await;
        if let Err(error) = &written
            && is_written
        {
            warn!(
                "cannot write the health file {}: {error}; health probes of this worker fail until it \
                 can be written; name another folder by the setting worker.health_dir",
                file.display()
            );
        }
        is_written = written.is_ok();
    }
}

/// Writes to a temporary file and renames it, so that a reader never sees a partial file.
async fn write(file: &PathBuf, health: &Health) -> std::io::Result<()> {
    let temporary = file.with_extension(format!("{}.new", std::process::id()));
    tokio::fs::write(&temporary, serde_json::to_vec(health)?).await?;
    tokio::fs::rename(&temporary, file).await
}
