//! The store's clock: with a file it never goes back, in memory it is the runtime's own.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::Instant;

use crate::clock;

const DAY: i64 = 24 * 60 * 60 * 1000;

/// A clock that returns milliseconds since the epoch.
#[derive(Debug)]
pub(super) struct Clock {
    began: i64,
    since: Instant,
    /// How far the machine's clock was set ahead since; `None` if the machine's clock is not used.
    ahead: Option<AtomicI64>,
}

impl Clock {
    /// Creates a clock that follows the machine's. When that is set back, this one does not go back:
    /// `latest` is the last time that an earlier process stored. A time more than a day ahead is taken
    /// to be wrong.
    pub(super) fn of_machine(latest: Option<i64>) -> Self {
        let clock = Self::of_runtime();
        let ahead = latest.map_or(0, |latest| latest.saturating_sub(clock.began));
        let ahead = if ahead > DAY { 0 } else { ahead.max(0) };
        Self { ahead: Some(AtomicI64::new(ahead)), ..clock }
    }

    /// Creates a clock that follows the runtime's: while a test has paused that, this one is paused, too.
    pub(super) fn of_runtime() -> Self {
        Self { began: clock::now().as_millisecond(), since: Instant::now(), ahead: None }
    }

    pub(super) fn now(&self) -> i64 {
        let passed = i64::try_from(self.since.elapsed().as_millis()).unwrap_or(i64::MAX);
        let steady = self.began.saturating_add(passed);
        let Some(ahead) = &self.ahead else { return steady };
        let jump = clock::now().as_millisecond().saturating_sub(steady);
        steady.saturating_add(ahead.fetch_max(jump, Ordering::Relaxed).max(jump).max(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_continues() {
        let wall = clock::now().as_millisecond();
        let hour = 60 * 60 * 1000;
        assert!(Clock::of_machine(Some(wall + hour)).now() >= wall + hour);
        assert!(Clock::of_machine(Some(wall - hour)).now() < wall + hour);
        assert!(Clock::of_machine(Some(wall + 2 * DAY)).now() < wall + hour);
    }
}
