//! The limits of one task type: the number of concurrent runs, their rate, and a breaker for a type that
//! keeps failing.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::concurrency_limit::Permit;
use super::outcome::Outcome;
use super::start_schedule::StartSchedule;
use crate::breaker::{Breaker, Verdict};
use crate::task::{Policy, Rate};

/// A task that would have to wait longer is delayed: it leaves the worker, and returns by delayed
/// delivery.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The limits of one task type in this worker.
#[derive(Default)]
pub(super) struct Limits {
    semaphore: Option<Arc<Semaphore>>,
    /// Only set with a concurrency limit or a rate.
    schedule: Option<Arc<Mutex<StartSchedule>>>,
    /// The number of unsettled deliveries that wait here.
    waiting: AtomicUsize,
    breaker: Option<Arc<Mutex<Breaker>>>,
}

/// A delivery that requests to start.
pub(super) struct StartRequest<'s> {
    /// The delivery's permit of the worker. It is released while the delivery waits here.
    pub(super) permit: &'s mut Permit,
    /// How often the limits have delayed the task before.
    pub(super) times_limited: u32,
    /// The number of deliveries of a type that may wait here. More would fill the prefetch and block
    /// other types.
    pub(super) max_waiting: usize,
}

/// The right to run one task of a type. The outcome of the run is reported to the breaker, or no outcome
/// on drop.
pub(super) struct TypePermit {
    _permit: Option<OwnedSemaphorePermit>,
    schedule: Option<Arc<Mutex<StartSchedule>>>,
    since: Instant,
    breaker: Option<Arc<Mutex<Breaker>>>,
}

impl Limits {
    pub(super) fn new(policy: &Policy) -> Self {
        let rate = policy.rate.and_then(interval);
        let concurrency = policy.concurrency.map(|tasks| tasks.max(1));
        let per_step = concurrency.map(|tasks| u32::try_from(tasks).unwrap_or(u32::MAX));
        let schedule = (rate.is_some() || concurrency.is_some())
            .then(|| StartSchedule::new(rate, per_step, Instant::now()));
        Self {
            semaphore: concurrency
                .map(|tasks| Arc::new(Semaphore::new(tasks.min(Semaphore::MAX_PERMITS)))),
            schedule: schedule.map(|schedule| Arc::new(Mutex::new(schedule))),
            waiting: AtomicUsize::new(0),
            breaker: policy.breaker.map(|rule| Arc::new(Mutex::new(Breaker::new(rule)))),
        }
    }

    /// Admits a task, after a few seconds at the latest; the error is how long to delay it. A task
    /// that waits here releases its permit of the worker, and holds one again when this returns
    /// successfully.
    pub(super) async fn acquire(&self, request: StartRequest<'_>) -> Result<TypePermit, Duration> {
        let Some(schedule) = &self.schedule else { return self.check_breaker(None) };
        let times = request.times_limited;
        match self.wait_for_turn(schedule, request).await {
            Ok(type_permit) => self.check_breaker(type_permit),
            Err(least) => Err(locked(schedule).assign_delay(Instant::now(), least, times)),
        }
    }

    fn check_breaker(
        &self,
        type_permit: Option<OwnedSemaphorePermit>,
    ) -> Result<TypePermit, Duration> {
        if let Some(breaker) = &self.breaker {
            // Randomized, so that tasks that an open breaker delays do not all return at once.
            let spread = |left: Duration| left.mul_f64(1.0 + rand::random::<f64>());
            locked(breaker).check(Instant::now()).map_err(spread)?;
        }
        Ok(TypePermit {
            _permit: type_permit,
            schedule: self.schedule.clone(),
            since: Instant::now(),
            breaker: self.breaker.clone(),
        })
    }

    /// Waits for a permit of the type and for its rate. The error is how long both are known to be
    /// unavailable.
    async fn wait_for_turn(
        &self,
        schedule: &Mutex<StartSchedule>,
        request: StartRequest<'_>,
    ) -> Result<Option<OwnedSemaphorePermit>, Duration> {
        let StartRequest { permit, times_limited, max_waiting } = request;
        let is_behind =
            times_limited == 0 && locked(schedule).has_backlog(Instant::now(), MAX_WAIT);
        // A delayed task has already waited for its turn.
        let max_waiting = if times_limited == 0 { max_waiting } else { usize::MAX };
        let mut waiting = None;
        let type_permit = match &self.semaphore {
            None => None,
            Some(semaphore) => match Arc::clone(semaphore).try_acquire_owned() {
                Ok(type_permit) => Some(type_permit),
                Err(_) if is_behind => return Err(MAX_WAIT),
                Err(_) => {
                    waiting = Some(self.wait_in(max_waiting, permit).ok_or(MAX_WAIT)?);
                    let type_permit =
                        timeout(MAX_WAIT, Arc::clone(semaphore).acquire_owned()).await;
                    Some(type_permit.ok().and_then(Result::ok).ok_or(MAX_WAIT)?)
                }
            },
        };
        if is_behind && self.semaphore.is_none() {
            return Err(MAX_WAIT);
        }
        let longest = if self.waiting.load(Ordering::Relaxed) < max_waiting || waiting.is_some() {
            MAX_WAIT
        } else {
            Duration::ZERO
        };
        let wait = locked(schedule).reserve(Instant::now(), longest)?;
        if !wait.is_zero() {
            if waiting.is_none() {
                waiting = Some(self.wait_in(usize::MAX, permit).ok_or(MAX_WAIT)?);
            }
            sleep(wait).await;
        }
        if waiting.is_some() {
            timeout(MAX_WAIT, permit.reacquire()).await.map_err(|_| MAX_WAIT)?;
        }
        Ok(type_permit)
    }

    /// Starts to wait and releases the permit; returns `None` when `max_waiting` deliveries already wait.
    fn wait_in(&self, max_waiting: usize, permit: &mut Permit) -> Option<Waiting<'_>> {
        let waiting = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= max_waiting {
            return None;
        }
        permit.release();
        Some(waiting)
    }
}

/// Counts one delivery that waits.
struct Waiting<'l>(&'l AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the interval of a rate and its burst, or `None` if the rate is unlimited.
fn interval(Rate { tasks, per }: Rate) -> Option<(Duration, u32)> {
    let interval = per.checked_div(tasks)?;
    (!interval.is_zero()).then_some((interval, tasks))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TypePermit {
    /// Reports the outcome of the run to the breaker.
    pub(super) fn report(mut self, name: &str, outcome: &Outcome) {
        let verdict = match outcome {
            Outcome::Done(_) => Verdict::Succeeded,
            Outcome::Failed(_) | Outcome::Retry { .. } => Verdict::Failed,
            _ => return,
        };
        if let Some(breaker) = self.breaker.take()
            && locked(&breaker).report(Instant::now(), verdict)
        {
            warn!(task.name = name, "the breaker of the task type is open: its tasks are delayed");
        }
    }
}

impl Drop for TypePermit {
    fn drop(&mut self) {
        if let Some(schedule) = &self.schedule {
            locked(schedule).ran(self.since.elapsed());
        }
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
    use crate::worker::concurrency_limit::ConcurrencyLimit;

    async fn acquire(
        limits: &Limits,
        concurrency: &ConcurrencyLimit,
        times_limited: u32,
    ) -> Result<TypePermit, Duration> {
        let mut permit = concurrency.acquire().await;
        limits.acquire(StartRequest { permit: &mut permit, times_limited, max_waiting: 1 }).await
    }

    #[tokio::test]
    async fn a_task_that_would_wait_too_long_is_times_limited() {
        let rate = Some(Rate { tasks: 2, per: Duration::from_secs(3600) });
        let (limits, concurrency) =
            (Limits::new(&Policy { rate, ..Policy::default() }), ConcurrencyLimit::new(1));
        for _ in 0..2 {
            assert!(acquire(&limits, &concurrency, 0).await.is_ok(), "the burst");
        }
        let delays =
            [acquire(&limits, &concurrency, 0).await, acquire(&limits, &concurrency, 0).await];
        let [first, second] = delays.map(|result| result.map(drop).unwrap_err().as_secs());
        assert!((1790..=1800).contains(&first) && (3590..=3600).contains(&second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_of_a_type_is_free_when_its_task_has_ended() {
        let limits = Limits::new(&Policy { concurrency: Some(1), ..Policy::default() });
        let concurrency = ConcurrencyLimit::new(2);
        let first = acquire(&limits, &concurrency, 0).await.unwrap_or_else(|_| unreachable!());
        assert!(acquire(&limits, &concurrency, 0).await.is_err());
        drop(first);
        assert!(acquire(&limits, &concurrency, 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_for_its_type_holds_no_permit_of_the_worker() {
        let limits = Limits::new(&Policy { concurrency: Some(1), ..Policy::default() });
        let concurrency = ConcurrencyLimit::new(1);
        let first = acquire(&limits, &concurrency, 0).await.unwrap_or_else(|_| unreachable!());
        let waits = async {
            let mut permit = concurrency.acquire().await;
            let request = StartRequest { permit: &mut permit, times_limited: 0, max_waiting: 1 };
            limits.acquire(request).await.map(|_| concurrency.try_acquire().is_none())
        };
        let other = async {
            tokio::task::yield_now().await;
            let permit = concurrency.try_acquire();
            drop(first);
            permit.is_some()
        };
        let (waited, other_runs) = tokio::join!(waits, other);
        assert!(other_runs, "another type could not start");
        assert_eq!(waited, Ok(true), "it has a permit again when it starts");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_tasks_wait_than_there_is_room_for() {
        let limits = Limits::new(&Policy { concurrency: Some(1), ..Policy::default() });
        let concurrency = ConcurrencyLimit::new(3);
        let _first = acquire(&limits, &concurrency, 0).await.unwrap_or_else(|_| unreachable!());
        let begun = tokio::time::Instant::now();
        let ended = || tokio::time::Instant::now() - begun;
        let wait = async || {
            assert!(acquire(&limits, &concurrency, 0).await.is_err());
            ended()
        };
        let (one, two) = tokio::join!(wait(), wait());
        assert_eq!([one, two], [MAX_WAIT, Duration::ZERO]);
    }
}
