//! Retry policies: when a failed attempt is retried. Pure: the caller supplies the randomness.

use std::time::Duration;

use crate::error::{Retryable, TaskError};

/// How often, and after which delays, a task is retried.
///
/// ```
/// # use std::time::Duration;
/// use countersign::Retry;
///
/// let retry = Retry::exponential(Duration::from_secs(1))
///     .attempts(5)
///     .max_delay(Duration::from_secs(60))
///     .no_retry_on("ValueError");
/// # let _ = retry;
/// ```
///
/// An error decides by its type whether it is retried: by its exception's name, as above, or where the
/// handler creates it:
///
/// ```
/// # use std::time::Duration;
/// use countersign::{TaskError, TaskResult};
///
/// fn read(path: &str) -> TaskResult<String> {
///     std::fs::read_to_string(path).map_err(|error| match error.kind() {
///         std::io::ErrorKind::NotFound => TaskError::fatal(format!("no file {path}")),  // not retried
///         std::io::ErrorKind::WouldBlock => {
///             TaskError::retry_after(Duration::from_secs(5), "the file is locked")
///         }
///         _ => TaskError::from(error),                                                // by the policy
///     })
/// }
/// # assert!(read("/no/such/file").is_err());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    attempts: u32,
    base: Duration,
    factor: f64,
    max_delay: Duration,
    max_elapsed: Option<Duration>,
    no_retry_on: Vec<String>,
}

impl Retry {
    /// One attempt only. The default of a policy.
    #[must_use]
    pub fn never() -> Self {
        Self { attempts: 1, ..Self::exponential(Duration::from_secs(1)) }
    }

    /// Up to three attempts. The delay is drawn uniformly between zero and `base`, then twice that, four
    /// times, and so on: full jitter spreads tasks that failed together.
    #[must_use]
    pub fn exponential(base: Duration) -> Self {
        Self {
            attempts: 3,
            base,
            factor: 2.0,
            max_delay: Duration::from_secs(3600),
            max_elapsed: None,
            no_retry_on: Vec::new(),
        }
    }

    /// The delay before every attempt is drawn uniformly between zero and `delay`.
    #[must_use]
    pub fn fixed(delay: Duration) -> Self {
        Self { factor: 1.0, ..Self::exponential(delay) }
    }

    /// Sets the maximum number of attempts, including the first.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets the maximum delay. Default: an hour.
    #[must_use]
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// Sets the longest time after the start of the first attempt at which another attempt may begin;
    /// after that the task fails. Different workers may run the attempts, so the precision depends on their
    /// clocks.
    #[must_use]
    pub fn max_elapsed(mut self, limit: Duration) -> Self {
        self.max_elapsed = Some(limit);
        self
    }

    /// Does not retry an error whose exception type is `exc_type`.
    #[must_use]
    pub fn no_retry_on(mut self, exc_type: impl Into<String>) -> Self {
        self.no_retry_on.push(exc_type.into());
        self
    }

    /// Returns the delay before the next attempt, or `None` if there is none. The first attempt began
    /// `since_first` ago. `draw` is drawn uniformly from 0 to 1.
    pub(crate) fn next_delay(
        &self,
        attempt: u32,
        since_first: Duration,
        error: &TaskError,
        draw: f64,
    ) -> Option<Duration> {
        let delay = self.delay_by_attempt(attempt, error, draw)?;
        let begins = since_first.saturating_add(delay);
        self.max_elapsed.is_none_or(|limit| begins <= limit).then_some(delay)
    }

    fn delay_by_attempt(&self, attempt: u32, error: &TaskError, draw: f64) -> Option<Duration> {
        if attempt >= self.attempts || self.no_retry_on.contains(&error.failure().exc_type) {
            return None;
        }
        match error.retry {
            Retryable::Never => None,
            Retryable::After(delay) => Some(delay),
            Retryable::ByPolicy => {
                let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
                let longest = self.base.as_secs_f64() * self.factor.powi(exponent);
                let longest = longest.min(self.max_delay.as_secs_f64());
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
        TaskError::with_exception("builtins", "OSError", "gone")
    }

    #[test]
    fn delays_double_up_to_the_maximum() {
        let retry = Retry::exponential(secs(1)).attempts(6).max_delay(secs(5));
        let delays: Vec<_> =
            (1..=6).map(|n| retry.next_delay(n, Duration::ZERO, &error(), 1.0)).collect();
        let expected = [Some(1), Some(2), Some(4), Some(5), Some(5), None];
        assert_eq!(delays, expected.map(|delay| delay.map(secs)));
        assert_eq!(retry.next_delay(2, Duration::ZERO, &error(), 0.5), Some(secs(1)));
    }

    #[test]
    fn the_error_overrides_the_policy() {
        let retry = Retry::exponential(secs(1)).no_retry_on("KeyError");
        assert_eq!(retry.next_delay(1, Duration::ZERO, &TaskError::fatal("no"), 1.0), None);
        assert_eq!(
            retry.next_delay(1, Duration::ZERO, &TaskError::retry_after(secs(9), "later"), 0.1),
            Some(secs(9))
        );
        assert_eq!(
            retry.next_delay(3, Duration::ZERO, &TaskError::retry_after(secs(9), "later"), 0.1),
            None
        );
        assert_eq!(
            retry.next_delay(
                1,
                Duration::ZERO,
                &TaskError::with_exception("builtins", "KeyError", "k"),
                1.0
            ),
            None
        );
    }

    #[test]
    fn no_attempt_begins_after_the_deadline() {
        let retry = Retry::fixed(secs(2)).attempts(9).max_elapsed(secs(10));
        assert_eq!(retry.next_delay(1, secs(8), &error(), 1.0), Some(secs(2)));
        assert_eq!(retry.next_delay(1, secs(9), &error(), 1.0), None);
        assert_eq!(retry.next_delay(1, Duration::MAX, &error(), 1.0), None);
        let later = TaskError::retry_after(secs(11), "later");
        assert_eq!(retry.next_delay(1, secs(0), &later, 0.0), None);
    }

    #[test]
    fn hundreds_of_attempts_do_not_overflow() {
        let retry = Retry::exponential(secs(3600)).attempts(u32::MAX);
        assert_eq!(retry.next_delay(u32::MAX - 1, Duration::ZERO, &error(), 1.0), Some(secs(3600)));
        assert_eq!(Retry::never().next_delay(1, Duration::ZERO, &error(), 1.0), None);
    }
}
