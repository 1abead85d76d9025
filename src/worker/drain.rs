//! The end of a worker's life: take no more, let what runs finish, say what came of it.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Crew, Hurry};
use crate::task::TaskId;

/// Runs are told to end when this much of the drain deadline is left.
const NOTICE: f64 = 0.2;
/// How long a dropped run may take to be given back, or a last result to be stored.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

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

/// Stops the intakes, then waits for running tasks: to the notice, to the deadline (or until
/// `hurry`), and then only for protected sections, steps and what is left to be given back.
pub(super) async fn drain(
    crew: &Crew,
    stop: &CancellationToken,
    mut intakes: JoinSet<usize>,
    hurry: Hurry,
) -> Drained {
    let started = Instant::now();
    let finished_before = crew.finished.load(Ordering::Relaxed);
    info!(running = crew.tasks.len(), "draining for at most {} s", crew.drain_deadline.as_secs());

    stop.cancel();
    let mut returned = 0;
    while let Some(intake) = intakes.join_next().await {
        returned += intake.unwrap_or(0);
    }
    crew.tasks.close();
    let cancelled = tokio::select! {
        cancelled = wait_for_runs(crew, started) => cancelled,
        () = hurry.0 => {
            warn!(running = crew.tasks.len(), "hurrying: what still runs is given back");
            crew.ending.cancel();
            crew.tasks.len()
        }
    };
    cut_runs(crew).await;

    let abandoned =
        std::mem::take(&mut *crew.abandoned.lock().unwrap_or_else(PoisonError::into_inner));
    if !abandoned.is_empty() {
        warn!(?abandoned, "these tasks did not end in time and were given back");
    }
    let ended = crew.finished.load(Ordering::Relaxed) - finished_before;
    Drained {
        finished: ended.saturating_sub(abandoned.len() as u64),
        returned,
        cancelled,
        protected: crew.protected.load(Ordering::Relaxed),
        abandoned,
        elapsed: started.elapsed().as_secs_f64(),
    }
}

/// Waits for all runs, to the deadline; returns how many had to be told that it is near.
async fn wait_for_runs(crew: &Crew, started: Instant) -> usize {
    let deadline = started + crew.drain_deadline;
    let notice = deadline - crew.drain_deadline.mul_f64(NOTICE);
    tokio::select! {
        () = crew.tasks.wait() => return 0,
        () = sleep_until(notice) => {}
    }
    let told = crew.tasks.len();
    crew.ending.cancel();
    tokio::select! {
        () = crew.tasks.wait() => {}
        () = sleep_until(deadline) => {}
    }
    told
}

/// Drops what still runs, except protected sections and steps, which end by their own limits; then
/// stops waiting for servers.
async fn cut_runs(crew: &Crew) {
    crew.abort.cancel();
    while timeout(FLUSH_DEADLINE, crew.tasks.wait()).await.is_err() {
        if crew.surroundings.sections.load(Ordering::Relaxed) == 0 {
            crew.give_up.cancel();
            let _ = timeout(FLUSH_DEADLINE, crew.tasks.wait()).await;
            return;
        }
    }
}
