//! Quarantine: tasks that were running during several worker crashes.
//!
//! Only a redelivered task can be one of those, so no other task pays for the check. From its second
//! crash on, a task runs in isolation, so that the next crash can be attributed to it alone: in a process
//! of its own (`isolation.rs`), or, in a worker without one, while all other tasks wait. A poison task is
//! dead-lettered.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::isolation_lock::IsolationGuard;
use super::state::{STORE_RETRY_DELAY, WorkerState};
use crate::backend::{Crashes, Delivery};
use crate::error::Error;
use crate::task::TaskId;

/// A task with at least this many runs that ended in a worker crash runs alone.
const SUSPECT_CRASHES: u32 = 2;
/// A task with this many runs alone that ended in a worker crash is a poison task.
const POISON_CRASHES: u32 = 2;
/// How long a suspect task waits for the other runs to end; after that it runs concurrently with them.
const ALONE_WAIT: Duration = Duration::from_secs(5);
/// How long a task waits before it counts as poison, so that live workers can withdraw their crash marks.
const WITHDRAW_TIME: Duration = Duration::from_secs(5);

/// Held while a task runs: the lock that keeps a suspect task apart, and the task's crash mark.
#[derive(Debug)]
pub(super) struct QuarantineGuard<'r> {
    /// `None` for the only task of its process.
    _lock: Option<IsolationGuard<'r>>,
    _mark: Option<CrashMark>,
}

/// The quarantine status of a delivery.
#[derive(Debug)]
pub(super) enum QuarantineStatus<'r> {
    /// The task may run.
    Clear(QuarantineGuard<'r>),
    /// The task must run in a process of its own.
    Quarantined,
    /// The task was running during this many worker crashes.
    Poisoned(Crashes),
}

/// The stored mark of a redelivered task that runs. A worker that loses the message while the task runs
/// has not crashed: it withdraws the mark, with retries. Otherwise six restarts of a broker would look
/// like six crashes of this task.
#[derive(Debug)]
pub(super) struct CrashMark {
    _run_ended: DropGuard,
}

impl CrashMark {
    async fn store(state: &Arc<WorkerState>, delivery: &Delivery, alone: bool) -> Self {
        let id = delivery.id().clone();
        if let Err(error) = state.backends.store.record_run(&id, alone).await {
            warn!(task.id = %id, "cannot store the crash mark of the task: {error}");
        }
        let ended = CancellationToken::new();
        let (worker, lost, run_ended) = (Arc::clone(state), delivery.lost(), ended.clone());
        tokio::spawn(async move {
            if run_ended.run_until_cancelled(lost).await.is_some() {
                let withdrawing =
                    retry(&worker, &id, || worker.backends.store.forget_run(&id, alone));
                worker.end_waits.run_until_cancelled(withdrawing).await;
            }
        });
        Self { _run_ended: ended.drop_guard() }
    }
}

/// Acquires the guard for a task about to run, and stores a crash mark if it may be a poison task.
pub(super) async fn check<'r>(
    state: &'r Arc<WorkerState>,
    delivery: &Delivery,
) -> QuarantineStatus<'r> {
    if !delivery.redelivered {
        let lock = state.isolation_lock.shared().await;
        return QuarantineStatus::Clear(QuarantineGuard { _lock: Some(lock), _mark: None });
    }
    let id = delivery.id();
    let mut crashes = state.backends.store.crashes(id).await.unwrap_or_default();
    if crashes.alone >= POISON_CRASHES {
        // A live worker may be about to withdraw its mark.
        sleep(WITHDRAW_TIME).await;
        crashes = state.backends.store.crashes(id).await.unwrap_or_default();
    }
    if crashes.alone >= POISON_CRASHES {
        return QuarantineStatus::Poisoned(crashes);
    }
    if state.is_isolated {
        let mark = CrashMark::store(state, delivery, true).await;
        return QuarantineStatus::Clear(QuarantineGuard { _lock: None, _mark: Some(mark) });
    }
    if crashes.runs >= SUSPECT_CRASHES && state.child_process.is_some() {
        info!(
            task.id = %id,
            crashes = crashes.runs,
            "task was running during worker crashes; an isolated process runs it",
        );
        return QuarantineStatus::Quarantined;
    }
    let (lock, mark) = if crashes.runs < SUSPECT_CRASHES {
        let mark = CrashMark::store(state, delivery, false).await;
        (state.isolation_lock.shared().await, mark)
    } else {
        let lock = state.isolation_lock.exclusive(ALONE_WAIT).await;
        info!(
            task.id = %id,
            crashes = crashes.runs,
            alone = lock.is_alone(),
            "task was running during worker crashes; running it in isolation",
        );
        (lock, CrashMark::store(state, delivery, true).await)
    };
    QuarantineStatus::Clear(QuarantineGuard { _lock: Some(lock), _mark: Some(mark) })
}

/// Removes the stored marks of a run that ended. A run whose message was requeued by the broker leaves
/// the marks of the other runs alone.
pub(super) async fn clear_crashes(state: &Arc<WorkerState>, delivery: &Delivery) {
    if !delivery.redelivered || delivery.is_stale() {
        return;
    }
    let id = delivery.id().clone();
    if let Err(error) = state.backends.store.clear_crashes(&id).await {
        warn!(task.id = %id, "cannot delete the crash marks of the task: {error}; trying again");
        let worker = Arc::clone(state);
        tokio::spawn(async move {
            let deleting = retry(&worker, &id, || worker.backends.store.clear_crashes(&id));
            worker.end_waits.run_until_cancelled(deleting).await;
        });
    }
}

/// Retries until the change is stored.
async fn retry<F>(state: &WorkerState, id: &TaskId, attempt: impl Fn() -> F)
where
    F: Future<Output = Result<(), Error>>,
{
    while let Err(error) = attempt().await {
        warn!(task.id = %id, "cannot delete a crash mark: {error}; trying again");
        state.backends.store.connected().await;
        sleep(STORE_RETRY_DELAY).await;
    }
}
