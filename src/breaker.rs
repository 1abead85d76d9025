//! A circuit breaker for one type of task. Pure: the clock is given.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// When tasks of a type are held back because they keep failing: after `failures` within `within`
/// none starts for `cool_down`; then one is tried, and its end decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// So many failed runs open it.
    pub failures: u32,
    /// Only failures of this last while count.
    pub within: Duration,
    /// How long it stays open before one task is tried.
    pub cool_down: Duration,
}

/// A breaker at work.
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

/// How a run ended, as far as a breaker cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    /// It did not come to an end here.
    None,
}

impl Breaker {
    pub(crate) fn new(rule: CircuitBreaker) -> Self {
        Self { rule, state: State::Closed, failed: VecDeque::new() }
    }

    /// May a task start now? If not: ask again after this long.
    pub(crate) fn ask(&mut self, now: Instant) -> Result<(), Duration> {
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

    /// Takes in how a run ended. True when this opened the breaker.
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
    fn it_opens_at_the_last_failure_and_tries_one_task_after_its_cool_down() {
        let (mut breaker, now) = breaker();
        assert!(!breaker.report(now, Verdict::Failed));
        assert!(!breaker.report(now, Verdict::Failed));
        assert_eq!(breaker.ask(now), Ok(()));
        assert!(breaker.report(now, Verdict::Failed));
        assert_eq!(breaker.ask(now + SECOND), Err(4 * SECOND));
        let later = now + 5 * SECOND;
        assert_eq!(breaker.ask(later), Ok(()), "the probe");
        assert_eq!(breaker.ask(later), Err(5 * SECOND), "and nobody else");
        assert!(!breaker.report(later, Verdict::Succeeded));
        assert_eq!(breaker.ask(later), Ok(()));
    }

    #[test]
    fn a_failed_probe_opens_it_again_and_one_without_an_end_frees_the_place() {
        let (mut breaker, now) = breaker();
        for _ in 0..3 {
            breaker.report(now, Verdict::Failed);
        }
        let later = now + 5 * SECOND;
        assert_eq!(breaker.ask(later), Ok(()));
        assert!(breaker.report(later, Verdict::Failed));
        assert_eq!(breaker.ask(later), Err(5 * SECOND));
        assert_eq!(breaker.ask(later + 5 * SECOND), Ok(()));
        breaker.report(later + 5 * SECOND, Verdict::None);
        assert_eq!(breaker.ask(later + 5 * SECOND), Ok(()));
    }

    #[test]
    fn old_failures_do_not_count() {
        let (mut breaker, now) = breaker();
        for second in [0, 1, 12, 24] {
            assert!(!breaker.report(now + second * SECOND, Verdict::Failed));
        }
    }
}
