//! Graceful shutdown: take no more, let running tasks finish, close, and report.
//!
//! There is one total: the drain deadline, plus what steps and protected sections that run then may
//! still take, plus two seconds to close. Everything that waits for a server or a lock is cut off by
//! it.

use std::pin::pin;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::pulse::Pulse;
use super::{Crew, Hurry};
use crate::task::TaskId;

/// Runs are told to end when this much of the drain deadline is left.
const NOTICE: f64 = 0.2;
/// How long results, acks and the close of all connections may take after the last run.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// Of that, how long a run that was dropped, or a last result, may wait for a server; then, how long
/// it may take to end once nothing waits any more.
const FLUSH_TIME: Duration = Duration::from_secs(1);
const GIVE_UP_TIME: Duration = Duration::from_millis(500);

/// What a drain did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drained {
    /// Tasks that came to an end while draining.
    pub finished: u64,
    /// Messages given back that had not started.
    pub returned: usize,
    /// Tasks that were told to end, because the deadline was near.
    pub cancelled: usize,
    /// Tasks that were in a protected section or a step at the deadline, and were waited for.
    pub protected: u64,
    /// Tasks that still ran at the deadline: they were stopped, and their messages given back.
    pub abandoned: Vec<TaskId>,
    /// How long it took, in seconds.
    pub elapsed: f64,
}

impl Drained {
    /// Everything that had started was finished.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.abandoned.is_empty()
    }
}

/// What a worker runs besides its tasks.
pub(super) struct Running {
    pub(super) consumers: JoinSet<usize>,
    /// Completes when the child process for quarantined tasks has ended.
    pub(super) isolation: Option<JoinHandle<()>>,
    pub(super) pulse: Pulse,
}

/// The longest that a drain may take when steps have this grace period and no protected section runs.
pub(crate) fn longest_drain(deadline: Duration, step_grace: Duration) -> Duration {
    deadline.saturating_add(step_grace).saturating_add(CLOSE_TIME)
}

/// Stops the consumers and waits for running tasks: to the notice, to the deadline (or until
/// `force`), then for steps and protected sections; then closes the client. Never takes longer than
/// the total.
pub(super) async fn drain(
    crew: &Crew,
    stop: &CancellationToken,
    running: Running,
    force: Hurry,
) -> Drained {
    let Running { mut consumers, isolation, pulse } = running;
    let started = Instant::now();
    let deadline = started + crew.drain_deadline;
    let finished_before = crew.finished.load(Ordering::Relaxed);
    announce(crew, started);

    stop.cancel();
    crew.tasks.close();
    let (returned, cancelled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // A consumer may be about to start a task when it is stopped.
    let runs = async {
        while let Some(consumer) = consumers.join_next().await {
            returned.fetch_add(consumer.unwrap_or(0), Ordering::Relaxed);
        }
        crew.tasks.wait().await;
        if let Some(isolation) = isolation {
            let _ = isolation.await;
        }
    };
    let orderly = wait_for_runs(crew, runs, started, &cancelled);
    let end = tokio::select! {
        _ = timeout_at(deadline, orderly) => deadline,
        () = force.0 => {
            warn!(running = crew.tasks.len(), "forced shutdown: running tasks are given back");
            cancelled.store(crew.tasks.len(), Ordering::Relaxed);
            Instant::now()
        }
    };
    let total = end.max(cut_runs(crew).await) + CLOSE_TIME;
    consumers.abort_all();
    let close = async {
        pulse.stop().await;
        crew.client.close().await;
    };
    if timeout_at(total, close).await.is_err() {
        warn!("a server did not answer in time: its connection was dropped");
    }

    let abandoned =
        std::mem::take(&mut *crew.abandoned.lock().unwrap_or_else(PoisonError::into_inner));
    if !abandoned.is_empty() {
        warn!(?abandoned, "these tasks did not end in time and were given back");
    }
    let ended = crew.finished.load(Ordering::Relaxed) - finished_before;
    Drained {
        finished: ended.saturating_sub(abandoned.len() as u64),
        returned: returned.into_inner(),
        cancelled: cancelled.into_inner(),
        protected: crew.protected.load(Ordering::Relaxed),
        abandoned,
        elapsed: started.elapsed().as_secs_f64(),
    }
}

/// Says how long the drain may take at most.
fn announce(crew: &Crew, started: Instant) {
    let deadline = crew.drain_deadline;
    let sections = crew.sections_end(started + deadline) - (started + deadline);
    info!(
        running = crew.tasks.len(),
        "draining for at most {:.0} s: {:.0} s for running tasks, {:.0} s for steps and protected \
         sections, {} s to close",
        (deadline + sections + CLOSE_TIME).as_secs_f64(),
        deadline.as_secs_f64(),
        sections.as_secs_f64(),
        CLOSE_TIME.as_secs(),
    );
}

/// Waits for all runs; tells those that still run at the notice, and counts them.
async fn wait_for_runs(
    crew: &Crew,
    runs: impl Future<Output = ()>,
    started: Instant,
    told: &AtomicUsize,
) {
    let notice = started + crew.drain_deadline.mul_f64(1.0 - NOTICE);
    let mut runs = pin!(runs);
    tokio::select! {
        () = &mut runs => return,
        () = sleep_until(notice) => {}
    }
    told.store(crew.tasks.len(), Ordering::Relaxed);
    crew.ending.cancel();
    runs.await;
}

/// Drops what still runs, except steps and protected sections, which end by their own limits; then
/// stops waiting for servers. Returns when the last of those limits was due.
async fn cut_runs(crew: &Crew) -> Instant {
    crew.ending.cancel();
    crew.abort.cancel();
    let sections_end = crew.sections_end(Instant::now());
    if timeout_at(sections_end + FLUSH_TIME, crew.tasks.wait()).await.is_err() {
        crew.give_up.cancel();
        let _ = timeout_at(sections_end + FLUSH_TIME + GIVE_UP_TIME, crew.tasks.wait()).await;
    }
    sections_end
}
