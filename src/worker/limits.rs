//! What tasks of one type may do at a time: how many, how fast, and not while they keep failing.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::breaker::{Breaker, Verdict};
use crate::lifecycle::Outcome;
use crate::task::{Policy, Rate};

/// A task that would have to wait longer gives its slot to another, and comes back by the ladder.
const PATIENCE: Duration = Duration::from_secs(1);

/// The limits of one type of task in this worker.
#[derive(Default)]
pub(super) struct Limits {
    slots: Option<Arc<Semaphore>>,
    rate: Option<DefaultDirectRateLimiter>,
    breaker: Option<Arc<Mutex<Breaker>>>,
}

/// The right to run one task of a type. What became of it is reported, or nothing on drop.
pub(super) struct Admitted {
    _slot: Option<OwnedSemaphorePermit>,
    breaker: Option<Arc<Mutex<Breaker>>>,
}

impl Limits {
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            slots: policy.concurrency.map(|slots| Arc::new(Semaphore::new(slots.max(1)))),
            rate: policy.rate.and_then(quota).map(DefaultDirectRateLimiter::direct),
            breaker: policy.breaker.map(|rule| Arc::new(Mutex::new(Breaker::new(rule)))),
        }
    }

    /// Lets a task start, at the latest after a second; else says after which pause it may ask
    /// again.
    pub(super) async fn admit(&self) -> Result<Admitted, Duration> {
        let slot = match &self.slots {
            None => None,
            Some(slots) => match timeout(PATIENCE, Arc::clone(slots).acquire_owned()).await {
                Ok(Ok(slot)) => Some(slot),
                _ => return Err(PATIENCE.mul_f64(1.0 + rand::random::<f64>())),
            },
        };
        if let Some(rate) = &self.rate {
            within_rate(rate).await?;
        }
        if let Some(breaker) = &self.breaker {
            locked(breaker).ask(Instant::now())?;
        }
        Ok(Admitted { _slot: slot, breaker: self.breaker.clone() })
    }
}

fn quota(Rate { tasks, per }: Rate) -> Option<Quota> {
    let burst = std::num::NonZeroU32::new(tasks)?;
    Some(Quota::with_period(per / tasks)?.allow_burst(burst))
}

async fn within_rate(rate: &DefaultDirectRateLimiter) -> Result<(), Duration> {
    let clock = DefaultClock::default();
    let give_up = Instant::now() + PATIENCE;
    while let Err(not_yet) = rate.check() {
        let wait = not_yet.wait_time_from(clock.now());
        if Instant::now() + wait > give_up {
            return Err(wait.max(PATIENCE / 10));
        }
        sleep(wait).await;
    }
    Ok(())
}

fn locked(breaker: &Mutex<Breaker>) -> std::sync::MutexGuard<'_, Breaker> {
    breaker.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admitted {
    /// Tells the breaker how the run ended.
    pub(super) fn report(mut self, name: &str, outcome: &Outcome) {
        let verdict = match outcome {
            Outcome::Done(_) => Verdict::Succeeded,
            Outcome::Failed(_) | Outcome::Retry { .. } => Verdict::Failed,
            _ => return,
        };
        if let Some(breaker) = self.breaker.take()
            && locked(&breaker).report(Instant::now(), verdict)
        {
            warn!(task.name = name, "keeps failing: its tasks are held back for a while");
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(breaker) = self.breaker.take() {
            locked(&breaker).report(Instant::now(), Verdict::None);
        }
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits").field("breaker", &self.breaker).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_would_wait_too_long_is_sent_away() {
        let rate = Some(Rate { tasks: 2, per: Duration::from_secs(3600) });
        let limits = Limits::new(&Policy { rate, ..Policy::default() });
        assert!(limits.admit().await.is_ok() && limits.admit().await.is_ok(), "the burst");
        let pause = limits.admit().await.map(drop).unwrap_err();
        assert!(pause > Duration::from_secs(1000), "{pause:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_of_a_type_is_free_when_its_task_has_ended() {
        let limits = Limits::new(&Policy { concurrency: Some(1), ..Policy::default() });
        let first = limits.admit().await.unwrap_or_else(|_| unreachable!());
        assert!(limits.admit().await.is_err());
        drop(first);
        assert!(limits.admit().await.is_ok());
    }
}
