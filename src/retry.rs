//! When a failed attempt is tried again. Pure: the randomness is given.

use std::time::Duration;

use crate::error::{Retryable, TaskError};

/// How often, and after which pauses, a task is tried again.
///
/// ```
/// # use std::time::Duration;
/// use countersign::Retry;
///
/// let retry = Retry::exponential(Duration::from_secs(1))
///     .attempts(5)
///     .at_most(Duration::from_secs(60))
///     .never_for("ValueError");
/// # let _ = retry;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    attempts: u32,
    base: Duration,
    factor: f64,
    ceiling: Duration,
    within: Option<Duration>,
    never_for: Vec<String>,
}

impl Retry {
    /// One attempt, whatever happens. What a policy says unless told otherwise.
    #[must_use]
    pub fn never() -> Self {
        Self { attempts: 1, ..Self::exponential(Duration::from_secs(1)) }
    }

    /// Up to three attempts, with a pause drawn evenly between nothing and `base`, then twice
    /// that, four times, and so on: full jitter spreads what failed together.
    #[must_use]
    pub fn exponential(base: Duration) -> Self {
        Self {
            attempts: 3,
            base,
            factor: 2.0,
            ceiling: Duration::from_secs(3600),
            within: None,
            never_for: Vec::new(),
        }
    }

    /// The same pause, up to which is drawn, before every attempt.
    #[must_use]
    pub fn fixed(pause: Duration) -> Self {
        Self { factor: 1.0, ..Self::exponential(pause) }
    }

    /// At most this many attempts in all, the first one included.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// No pause is longer than this: an hour unless said otherwise.
    #[must_use]
    pub fn at_most(mut self, ceiling: Duration) -> Self {
        self.ceiling = ceiling;
        self
    }

    /// No attempt begins later than this after the first one began, whoever ran that: the task
    /// fails instead. The clocks of two workers may differ; this is as exact as they are.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = Some(limit);
        self
    }

    /// An error whose exception type is `exc_type` is not tried again.
    #[must_use]
    pub fn never_for(mut self, exc_type: impl Into<String>) -> Self {
        self.never_for.push(exc_type.into());
        self
    }

    /// The pause before the next attempt, if there is one. The first attempt began `since_first`
    /// ago. `draw` is evenly drawn from 0 to 1.
    pub(crate) fn pause(
        &self,
        attempt: u32,
        since_first: Duration,
        error: &TaskError,
        draw: f64,
    ) -> Option<Duration> {
        let pause = self.pause_by_attempt(attempt, error, draw)?;
        let begins = since_first.saturating_add(pause);
        self.within.is_none_or(|limit| begins <= limit).then_some(pause)
    }

    fn pause_by_attempt(&self, attempt: u32, error: &TaskError, draw: f64) -> Option<Duration> {
        if attempt >= self.attempts || self.never_for.contains(&error.failure().exc_type) {
            return None;
        }
        match error.retry {
            Retryable::Never => None,
            Retryable::After(pause) => Some(pause),
            Retryable::ByPolicy => {
                let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
                let longest = self.base.as_secs_f64() * self.factor.powi(exponent);
                let longest = longest.min(self.ceiling.as_secs_f64());
                Duration::try_from_secs_f64(longest * draw).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn error() -> TaskError {
        TaskError::raise("builtins", "OSError", "gone")
    }

    #[test]
    fn pauses_double_up_to_the_ceiling() {
        let retry = Retry::exponential(secs(1)).attempts(6).at_most(secs(5));
        let pauses: Vec<_> =
            (1..=6).map(|n| retry.pause(n, Duration::ZERO, &error(), 1.0)).collect();
        let expected = [Some(1), Some(2), Some(4), Some(5), Some(5), None];
        assert_eq!(pauses, expected.map(|pause| pause.map(secs)));
        assert_eq!(retry.pause(2, Duration::ZERO, &error(), 0.5), Some(secs(1)));
    }

    #[test]
    fn the_error_has_the_last_word() {
        let retry = Retry::exponential(secs(1)).never_for("KeyError");
        assert_eq!(retry.pause(1, Duration::ZERO, &TaskError::fatal("no"), 1.0), None);
        assert_eq!(
            retry.pause(1, Duration::ZERO, &TaskError::retry_after(secs(9), "later"), 0.1),
            Some(secs(9))
        );
        assert_eq!(
            retry.pause(3, Duration::ZERO, &TaskError::retry_after(secs(9), "later"), 0.1),
            None
        );
        assert_eq!(
            retry.pause(1, Duration::ZERO, &TaskError::raise("builtins", "KeyError", "k"), 1.0),
            None
        );
    }

    #[test]
    fn no_attempt_begins_after_the_deadline() {
        let retry = Retry::fixed(secs(2)).attempts(9).within(secs(10));
        assert_eq!(retry.pause(1, secs(8), &error(), 1.0), Some(secs(2)));
        assert_eq!(retry.pause(1, secs(9), &error(), 1.0), None);
        assert_eq!(retry.pause(1, Duration::MAX, &error(), 1.0), None);
        let later = TaskError::retry_after(secs(11), "later");
        assert_eq!(retry.pause(1, secs(0), &later, 0.0), None);
    }

    #[test]
    fn hundreds_of_attempts_do_not_overflow() {
        let retry = Retry::exponential(secs(3600)).attempts(u32::MAX);
        assert_eq!(retry.pause(u32::MAX - 1, Duration::ZERO, &error(), 1.0), Some(secs(3600)));
        assert_eq!(Retry::never().pause(1, Duration::ZERO, &error(), 1.0), None);
    }
}
