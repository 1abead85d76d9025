//! Graceful shutdown: stop consuming, let running tasks finish, close the connections, and report.
//!
//! There is one total: the drain deadline, plus the time that steps and protected sections running at the
//! deadline may still take, plus two seconds to close. The total also bounds every wait for a server or a
//! lock.

use std::pin::pin;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Serialize, Serializer};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::heartbeat::Heartbeat;
use super::state::WorkerState;
use crate::task::TaskId;

/// Runs are cancelled when this fraction of the drain deadline is left.
const NOTICE: f64 = 0.2;
/// How long results, acks and the close of all connections may take after the last run.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// The part of [`CLOSE_TIME`] in which a dropped run, or a last result, may wait for a server. After it,
/// [`END_WAITS_TIME`] is left for runs to end once they no longer wait.
const FLUSH_TIME: Duration = Duration::from_secs(1);
const END_WAITS_TIME: Duration = Duration::from_millis(500);

/// The report of a drain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DrainReport {
    /// Tasks that ended during the drain.
    pub finished: u64,
    /// Messages that were requeued unstarted.
    pub returned: usize,
    /// Tasks that were cancelled because the deadline was near.
    pub cancelled: usize,
    /// Tasks that were in a protected section or a step at the deadline; the drain waited for those.
    pub protected: u64,
    /// Tasks that still ran at the deadline: they were stopped, and their messages requeued.
    pub abandoned: Vec<TaskId>,
    /// The duration of the drain. Serialized in seconds.
    #[serde(serialize_with = "seconds")]
    pub elapsed: Duration,
}

impl DrainReport {
    /// Returns whether every task that had started was finished.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.abandoned.is_empty()
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// The background tasks of a worker besides its runs.
pub(super) struct Running {
    pub(super) consumers: JoinSet<usize>,
    /// Completes when the child process for quarantined tasks has ended.
    pub(super) isolation: Option<JoinHandle<()>>,
    pub(super) heartbeat: Heartbeat,
}

/// Returns the longest time that a drain can take with this grace period for steps and without protected
/// sections.
pub fn longest_drain(deadline: Duration, step_grace: Duration) -> Duration {
    deadline.saturating_add(step_grace).saturating_add(CLOSE_TIME)
}

/// Stops the consumers and waits for running tasks: until the notice, until the deadline (or a forced
/// shutdown), then for steps and protected sections; then closes the client. Never takes longer than the
/// total.
pub(super) async fn drain(
    state: &WorkerState,
    stop: &CancellationToken,
    running: Running,
    force_shutdown: BoxFuture<'static, ()>,
) -> DrainReport {
    let Running { mut consumers, isolation, heartbeat } = running;
    let started = Instant::now();
    let deadline = started + state.drain_deadline;
    let finished_before = state.finished.load(Ordering::Relaxed);
    log_start(state, started);

    stop.cancel();
    state.tasks.close();
    let (returned, cancelled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // A consumer may be about to start a task when it is stopped.
    let runs = async {
        while let Some(consumer) = consumers.join_next().await {
            returned.fetch_add(consumer.unwrap_or(0), Ordering::Relaxed);
        }
        state.tasks.wait().await;
        if let Some(isolation) = isolation {
            let _ = isolation.await;
        }
    };
    let graceful = wait_for_runs(state, runs, started, &cancelled);
    let end = tokio::select! {
        _ = timeout_at(deadline, graceful) => deadline,
        () = force_shutdown => {
            warn!(running = state.tasks.len(), "forced shutdown: the messages of running tasks are requeued");
            cancelled.store(state.tasks.len(), Ordering::Relaxed);
            Instant::now()
        }
    };
    let total = end.max(drop_runs(state).await) + CLOSE_TIME;
    consumers.abort_all();
    let close = async {
        heartbeat.stop().await;
        state.client.close().await;
    };
    if timeout_at(total, close).await.is_err() {
        warn!("a server did not answer in time: its connection was dropped");
    }

    let abandoned =
        std::mem::take(&mut *state.abandoned.lock().unwrap_or_else(PoisonError::into_inner));
    if !abandoned.is_empty() {
        warn!(?abandoned, "these tasks did not end in time; their messages were requeued");
    }
    let ended = state.finished.load(Ordering::Relaxed) - finished_before;
    DrainReport {
        finished: ended.saturating_sub(abandoned.len() as u64),
        returned: returned.into_inner(),
        cancelled: cancelled.into_inner(),
        protected: state.protected.load(Ordering::Relaxed),
        abandoned,
        elapsed: started.elapsed(),
    }
}

/// Logs how long the drain may take at most.
fn log_start(state: &WorkerState, started: Instant) {
    let deadline = state.drain_deadline;
    let sections = state.sections_end(started + deadline) - (started + deadline);
    info!(
        running = state.tasks.len(),
        "draining for at most {:.0} s: {:.0} s for running tasks, {:.0} s for steps and protected \
         sections, {} s to close",
        (deadline + sections + CLOSE_TIME).as_secs_f64(),
        deadline.as_secs_f64(),
        sections.as_secs_f64(),
        CLOSE_TIME.as_secs(),
    );
}

/// Waits for all runs. Cancels and counts those that still run at the notice.
async fn wait_for_runs(
    state: &WorkerState,
    runs: impl Future<Output = ()>,
    started: Instant,
    cancelled: &AtomicUsize,
) {
    let notice = started + state.drain_deadline.mul_f64(1.0 - NOTICE);
    let mut runs = pin!(runs);
    tokio::select! {
        () = &mut runs => return,
        () = sleep_until(notice) => {}
    }
    cancelled.store(state.tasks.len(), Ordering::Relaxed);
    state.cancel_runs.cancel();
    runs.await;
}

/// Drops the remaining runs, except steps and protected sections, which end by their own limits; then
/// stops waiting for servers. Returns when the last of those limits is due.
async fn drop_runs(state: &WorkerState) -> Instant {
    state.cancel_runs.cancel();
    state.drop_runs.cancel();
    let sections_end = state.sections_end(Instant::now());
    if timeout_at(sections_end + FLUSH_TIME, state.tasks.wait()).await.is_err() {
        state.end_waits.cancel();
        let _ = timeout_at(sections_end + FLUSH_TIME + END_WAITS_TIME, state.tasks.wait()).await;
    }
    sections_end
}
