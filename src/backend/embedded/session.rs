//! The session of a process: the row under which it holds messages. A process renews its row. When a
//! row is overdue, another process returns the messages of that session to their queues.
//!
//! A process may be stopped for any time and continue (a paused virtual machine, a laptop's sleep, a
//! stalled disk), so every transaction that writes under a session checks the row first.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// A maintenance pass that starts this long after the previous one is late, in milliseconds: this
/// process slept, or it waited for the lock. Other processes may have waited with it.
const LATE: i64 = 5_000;
/// After a late pass other processes have this long to renew their sessions, in milliseconds.
const GRACE: i64 = 4_000;

/// A process's own session, as far as the process knows. The row in the database is authoritative.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// The number of the session. 0: none.
    id: AtomicI64,
    /// When the last maintenance pass ran, by the store's clock. 0: never.
    last_pass: AtomicI64,
    /// Until when this process does not end overdue sessions.
    grace_until: AtomicI64,
    /// Whether the last pass did not end overdue sessions.
    in_grace: AtomicBool,
}

impl Session {
    /// Returns the number of the session, 0 if there is none.
    pub(super) fn id(&self) -> i64 {
        self.id.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, id: i64) {
        self.id.store(id, Ordering::Release);
    }

    /// Forgets this session, unless another one has been started since.
    pub(super) fn lose(&self, id: i64) {
        let _ = self.id.compare_exchange(id, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Returns whether a maintenance pass at `now` may end overdue sessions. A late pass may not:
    /// processes that slept or waited as long as this one are alive, and renew their sessions first.
    /// Two late passes in a row do not extend the grace period, or no session would ever be ended.
    pub(super) fn may_reclaim(&self, now: i64) -> bool {
        let last = self.last_pass.swap(now, Ordering::AcqRel);
        let is_late = last != 0 && now - last > LATE;
        if is_late && !self.in_grace.load(Ordering::Acquire) {
            self.grace_until.store(now + GRACE, Ordering::Release);
        }
        let in_grace = now < self.grace_until.load(Ordering::Acquire);
        self.in_grace.store(in_grace, Ordering::Release);
        !in_grace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_pass_reclaims_nothing_during_the_grace_period() {
        let session = Session::default();
        let passes: Vec<_> =
            [1_000, 3_500, 20_000, 22_500, 25_000].map(|at| session.may_reclaim(at)).into();
        assert_eq!(passes, [true, true, false, false, true]);
    }

    #[test]
    fn passes_that_are_always_late_still_reclaim() {
        let session = Session::default();
        let reclaimed = (1..20).filter(|pass| session.may_reclaim(pass * 6_000)).count();
        assert!(reclaimed >= 9, "{reclaimed}");
    }
}
