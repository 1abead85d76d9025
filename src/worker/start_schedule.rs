//! When the tasks of one type may start: the rate limit, and the times that are assigned to tasks which
//! are delayed. Pure.
//!
//! A delayed task gets its own time, one step after that of the previous task, so that a backlog does
//! not return all at once. A step is the interval of the rate, or the average run time per
//! permit, whichever is longer.

use std::time::{Duration, Instant};

/// Times further ahead than this are not assigned.
const MAX_DELAY: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The step of a type whose runs have not been measured yet.
const UNKNOWN_RUN: Duration = Duration::from_secs(1);
/// The delay of a task that is delayed repeatedly doubles at most this many times.
const DOUBLINGS: u32 = 10;

/// The schedule of one task type in this worker.
#[derive(Debug)]
pub(super) struct StartSchedule {
    /// The interval of the rate, and how far the starts may be ahead of it (a token bucket by the generic
    /// cell rate algorithm).
    rate: Option<(Duration, Duration)>,
    /// When the next start would be exactly on the rate.
    on_rate: Instant,
    /// The first time that is not assigned to a task that is delayed.
    free_from: Instant,
    concurrency: Option<u32>,
    /// The average duration of runs.
    run: Option<Duration>,
}

impl StartSchedule {
    /// Creates a schedule. `rate`: the interval and the burst. `concurrency`: how many tasks may run at
    /// once.
    pub(super) fn new(
        rate: Option<(Duration, u32)>,
        concurrency: Option<u32>,
        now: Instant,
    ) -> Self {
        let rate = rate
            .map(|(interval, burst)| (interval, interval.saturating_mul(burst.saturating_sub(1))));
        Self { rate, on_rate: now, free_from: now, concurrency, run: None }
    }

    /// Reserves the next start under the rate; returns the time until then. A start more than `longest`
    /// ahead is not reserved; the error is the time until it.
    pub(super) fn reserve(
        &mut self,
        now: Instant,
        longest: Duration,
    ) -> Result<Duration, Duration> {
        let Some((interval, ahead)) = self.rate else { return Ok(Duration::ZERO) };
        let wait = self.on_rate.saturating_duration_since(now).saturating_sub(ahead);
        if wait > longest {
            return Err(wait);
        }
        self.on_rate = self.on_rate.max(now) + interval;
        Ok(wait)
    }

    /// Returns whether earlier tasks are delayed, and need the capacity that is free now.
    pub(super) fn has_backlog(&self, now: Instant, longest: Duration) -> bool {
        // The rate was unused for its whole burst: those tasks run elsewhere, or not at all.
        let is_unused = self.rate.is_some() && self.on_rate <= now;
        self.free_from > now + longest && !is_unused
    }

    /// Returns how long to delay a task that cannot start within `least`, and that was delayed
    /// `times` before. The first time, it gets the next free time. After that it is near its turn, and
    /// waits a short while, longer each time.
    pub(super) fn assign_delay(&mut self, now: Instant, least: Duration, times: u32) -> Duration {
        let step = self.step();
        if times == 0 {
            let at = self.free_from.max(now + least).min(now + MAX_DELAY);
            self.free_from = at + step;
            return at.saturating_duration_since(now);
        }
        let longest = self.free_from.saturating_duration_since(now).max(least + step);
        let spread = step.saturating_mul(1 << times.min(DOUBLINGS)).mul_f64(rand::random());
        (least + spread).min(longest).min(MAX_DELAY)
    }

    /// Records the duration of a run.
    pub(super) fn ran(&mut self, took: Duration) {
        self.run = Some(self.run.map_or(took, |run| run.mul_f64(0.8) + took.mul_f64(0.2)));
    }

    fn step(&self) -> Duration {
        let by_runs = self.concurrency.map(|tasks| self.run.unwrap_or(UNKNOWN_RUN) / tasks.max(1));
        let by_rate = self.rate.map(|(interval, _)| interval);
        by_runs.max(by_rate).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn starts_follow_the_rate_after_a_burst() {
        let now = Instant::now();
        let mut schedule = StartSchedule::new(Some((SECOND, 3)), None, now);
        let starts: Vec<_> = (0..5).map(|_| schedule.reserve(now, 2 * SECOND)).collect();
        let (zero, two) = (Ok(Duration::ZERO), Ok(2 * SECOND));
        assert_eq!(starts, [zero, zero, zero, Ok(SECOND), two]);
        assert_eq!(schedule.reserve(now, 2 * SECOND), Err(3 * SECOND));
        assert_eq!(schedule.reserve(now + SECOND, 2 * SECOND), two);
        let rested = now + 60 * SECOND;
        let again: Vec<_> = (0..4).map(|_| schedule.reserve(rested, 2 * SECOND)).collect();
        assert_eq!(again, [zero, zero, zero, Ok(SECOND)], "a rest saves one burst, and no more");
    }

    #[test]
    fn each_delayed_task_gets_a_time_of_its_own() {
        let now = Instant::now();
        let mut schedule = StartSchedule::new(Some((SECOND, 1)), None, now);
        schedule.reserve(now, SECOND).unwrap();
        let delays: Vec<_> = (0..3).map(|_| schedule.assign_delay(now, 2 * SECOND, 0)).collect();
        assert_eq!(delays, [2 * SECOND, 3 * SECOND, 4 * SECOND]);
        assert!(schedule.has_backlog(now, SECOND), "new tasks go behind them");
        let near = schedule.assign_delay(now, SECOND, 1);
        assert!((SECOND..=3 * SECOND).contains(&near), "{near:?}: its turn is near");
        assert_eq!(schedule.assign_delay(now, SECOND, 0), 5 * SECOND, "the order stays");
        assert!(!schedule.has_backlog(now + 60 * SECOND, SECOND));
    }

    #[test]
    fn the_times_of_a_concurrency_limit_follow_its_runs() {
        let now = Instant::now();
        let mut schedule = StartSchedule::new(None, Some(2), now);
        schedule.ran(4 * SECOND);
        let delays: Vec<_> = (0..3).map(|_| schedule.assign_delay(now, SECOND, 0)).collect();
        assert_eq!(delays, [SECOND, 3 * SECOND, 5 * SECOND]);
    }

    #[test]
    fn a_rate_that_stays_unused_ends_a_backlog() {
        let now = Instant::now();
        let mut schedule = StartSchedule::new(Some((SECOND, 1)), None, now);
        schedule.reserve(now, SECOND).unwrap();
        for _ in 0..100 {
            schedule.assign_delay(now, SECOND, 0);
        }
        assert!(schedule.has_backlog(now, SECOND));
        assert!(!schedule.has_backlog(now + 2 * SECOND, SECOND), "another worker runs them");
    }
}
