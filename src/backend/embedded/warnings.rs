//! Warnings that repeat. The first one is logged at once, the next ones at growing intervals.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// The number of different warnings that are remembered.
const REMEMBERED: usize = 64;

/// The warnings that were logged recently.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<HashMap<String, Logged>>);

#[derive(Debug)]
struct Logged {
    at: Instant,
    /// Until this much later the same warning is only counted.
    interval: Duration,
    omitted: u64,
}

impl Warnings {
    /// Logs that `what` failed, and why: the first time, and then after 5 s, 10 s, 20 s and so on up to
    /// 5 min. Includes the number of failures in between.
    pub(super) fn warn(&self, what: &str, cause: &dyn fmt::Display) {
        let text = format!("{what}: {cause}");
        match self.count(&text, Instant::now()) {
            Some(0) => warn!("{text}"),
            Some(omitted) => warn!(repeated = omitted, "{text}"),
            None => {}
        }
    }

    /// Decides whether to log now: returns how many were omitted since the last log line, or `None`.
    fn count(&self, text: &str, now: Instant) -> Option<u64> {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A failure that did not repeat for twice its interval counts as resolved.
        logged.retain(|_, it| now.duration_since(it.at) <= it.interval * 2);
        if let Some(entry) = logged.get_mut(text) {
            if now.duration_since(entry.at) < entry.interval {
                entry.omitted += 1;
                return None;
            }
            entry.at = now;
            entry.interval = (entry.interval * 2).min(LONGEST);
            return Some(std::mem::take(&mut entry.omitted));
        }
        if logged.len() < REMEMBERED {
            logged.insert(text.to_owned(), Logged { at: now, interval: FIRST, omitted: 0 });
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_warning_is_logged_at_growing_intervals() {
        let (warnings, started) = (Warnings::default(), Instant::now());
        let at = |tenths: u64| {
            warnings.count("disk full", started + Duration::from_millis(tenths * 100))
        };
        let logged: Vec<_> =
            (0..1200).filter_map(|at_| at(at_).map(|omitted| (at_, omitted))).collect();
        assert_eq!(logged, [(0, 0), (50, 49), (150, 99), (350, 199), (750, 399)]);
        assert_eq!(warnings.count("another", started), Some(0));
    }

    #[test]
    fn a_new_failure_after_a_success_is_logged_at_once() {
        let (warnings, started) = (Warnings::default(), Instant::now());
        assert_eq!(warnings.count("disk full", started), Some(0));
        assert_eq!(warnings.count("disk full", started + Duration::from_secs(60)), Some(0));
    }
}
