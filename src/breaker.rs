//! A circuit breaker for one task type. Pure: the caller supplies the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A limit on failures, above which the tasks of a type are held back: after `failures` failed runs within
/// `within`, no task starts for `cool_down`. Then one task runs, and its outcome closes or reopens the
/// breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// The number of failed runs that open the breaker.
    pub failures: u32,
    /// Only failures within this period count.
    pub within: Duration,
    /// How long the breaker stays open before one task runs.
    pub cool_down: Duration,
}

/// The state of a breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    rule: CircuitBreaker,
    state: State,
    failed: VecDeque<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Closed,
    Open { until: Instant },
    Probing { since: Instant },
}

/// The outcome of a run, for a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    /// The run ended without success or failure, for example by a suspension or a drain.
    None,
}

impl Breaker {
    pub(crate) fn new(rule: CircuitBreaker) -> Self {
        Self { rule, state: State::Closed, failed: VecDeque::new() }
    }

    /// Checks whether a task may start now. The error is the time until the next check.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed => Ok(()),
            State::Open { until } if now >= until => {
                self.state = State::Probing { since: now };
                Ok(())
            }
            State::Open { until } => Err(until - now),
            State::Probing { since } => {
                Err((since + self.rule.cool_down).saturating_duration_since(now))
            }
        }
    }

    /// Records the outcome of a run. Returns whether this opened the breaker.
    pub(crate) fn report(&mut self, now: Instant, verdict: Verdict) -> bool {
        match (self.state, verdict) {
            (State::Probing { .. }, Verdict::Succeeded) => {
                self.state = State::Closed;
                self.failed.clear();
                false
            }
            (State::Probing { .. }, Verdict::Failed) => self.open(now),
            (State::Probing { .. }, Verdict::None) => {
                self.state = State::Open { until: now };
                false
            }
            (State::Closed, Verdict::Failed) => {
                self.failed.push_back(now);
                while self.failed.front().is_some_and(|&at| now - at > self.rule.within) {
                    self.failed.pop_front();
                }
                self.failed.len() >= self.rule.failures.max(1) as usize && self.open(now)
            }
            (State::Closed | State::Open { .. }, _) => false,
        }
    }

    fn open(&mut self, now: Instant) -> bool {
        self.state = State::Open { until: now + self.rule.cool_down };
        self.failed.clear();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        let rule = CircuitBreaker { failures: 3, within: 10 * SECOND, cool_down: 5 * SECOND };
        (Breaker::new(rule), Instant::now())
    }

    #[test]
    fn it_opens_at_the_failure_limit_and_allows_one_probe_after_its_cool_down() {
        let (mut breaker, now) = breaker();
        assert!(!breaker.report(now, Verdict::Failed));
        assert!(!breaker.report(now, Verdict::Failed));
        assert_eq!(breaker.check(now), Ok(()));
        assert!(breaker.report(now, Verdict::Failed));
        assert_eq!(breaker.check(now + SECOND), Err(4 * SECOND));
        let later = now + 5 * SECOND;
        assert_eq!(breaker.check(later), Ok(()), "the probe");
        assert_eq!(breaker.check(later), Err(5 * SECOND), "and no other task");
        assert!(!breaker.report(later, Verdict::Succeeded));
        assert_eq!(breaker.check(later), Ok(()));
    }

    #[test]
    fn a_failed_probe_reopens_it_and_an_unfinished_probe_allows_another() {
        let (mut breaker, now) = breaker();
        for _ in 0..3 {
            breaker.report(now, Verdict::Failed);
        }
        let later = now + 5 * SECOND;
        assert_eq!(breaker.check(later), Ok(()));
        assert!(breaker.report(later, Verdict::Failed));
        assert_eq!(breaker.check(later), Err(5 * SECOND));
        assert_eq!(breaker.check(later + 5 * SECOND), Ok(()));
        breaker.report(later + 5 * SECOND, Verdict::None);
        assert_eq!(breaker.check(later + 5 * SECOND), Ok(()));
    }

    #[test]
    fn old_failures_do_not_count() {
        let (mut breaker, now) = breaker();
        for second in [0, 1, 12, 24] {
            assert!(!breaker.report(now + second * SECOND, Verdict::Failed));
        }
    }
}
