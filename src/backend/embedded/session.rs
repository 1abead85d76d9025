//! The session of a process: the row under which it holds messages. A process renews its row. When a
//! row is overdue, another process returns the messages of that session to their queues.
//!
//! A process may be stopped for any time and continue (a paused virtual machine, a laptop's sleep, a
//! stalled disk), so every transaction that writes under a session checks the row first.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use rand::Rng;
use tracing::warn;

use super::bells::Ring;
use super::txn::{Done, Txn};

/// How long a session lasts without being renewed, in milliseconds.
pub(super) const LEASE: i64 = 10_000;
/// A maintenance pass that comes this long after the one before is late, in milliseconds: this
/// process slept, or it waited for the lock. Other processes may have waited with it.
const LATE: i64 = 5_000;
/// After a late pass other processes have this long to renew their sessions.
const GRACE: i64 = 4_000;

/// What a process knows of its own session. The row in the database decides.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// 0: none.
    id: AtomicI64,
    /// When the last maintenance pass ran, by the store's clock. 0: never.
    last_pass: AtomicI64,
    /// Until when this process leaves overdue sessions alone.
    grace_until: AtomicI64,
    /// The last pass left overdue sessions alone.
    in_grace: AtomicBool,
}

impl Session {
    /// The number of the session, 0 if there is none.
    pub(super) fn id(&self) -> i64 {
        self.id.load(Ordering::Acquire)
    }

    fn set(&self, id: i64) {
        self.id.store(id, Ordering::Release);
    }

    /// Forgets this session, unless another one has been begun since.
    pub(super) fn lose(&self, id: i64) {
        let _ = self.id.compare_exchange(id, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether a maintenance pass at `now` may end overdue sessions. A late pass may not: processes
    /// that slept or waited as long as this one are alive, and renew their sessions first. Two late
    /// passes in a row do not extend the grace period, or nothing would ever be taken back.
    fn may_take_back(&self, now: i64) -> bool {
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

/// The session of this process. Begins one if there is none, and then ends those that are overdue.
///
/// Numbers are random, and so never used twice: a process that slept may still have the number of a
/// session that ended long ago. Processes of earlier versions let SQLite choose the next number.
pub(super) fn begin(txn: &mut Txn<'_>, of: &Session) -> Done<i64> {
    let id = of.id();
    // The transaction that began it may have been rolled back, or another process has ended it.
    if id != 0 && is_held(txn, of, id)? {
        return Ok(id);
    }
    let id = rand::rng().random_range(1 << 32..1 << 62);
    let until = if txn.shared().sessions_expire { txn.now + LEASE } else { i64::MAX };
    txn.execute("INSERT INTO sessions (id, until) VALUES (?, ?)", [id, until])?;
    of.set(id);
    take_back(txn)?;
    Ok(id)
}

/// Whether this session is still this process's, as the database says. Renews it when that is due.
/// False: another process has ended it, and has returned what was held under it.
pub(super) fn is_held(txn: &Txn<'_>, of: &Session, id: i64) -> Done<bool> {
    let until = txn.first("SELECT until FROM sessions WHERE id = ?", [id], |row| row.get(0))?;
    let Some(until): Option<i64> = until else {
        of.lose(id);
        return Ok(false);
    };
    if until - txn.now <= LEASE * 2 / 3 {
        txn.execute("UPDATE sessions SET until = ? WHERE id = ?", [txn.now + LEASE, id])?;
        super::upkeep::note_clock(txn)?;
    }
    Ok(true)
}

/// The part of a maintenance pass that is about sessions: renews this process's own, and ends those
/// that are overdue.
pub(super) fn maintain(txn: &mut Txn<'_>, of: &Session) -> Done<()> {
    let id = of.id();
    if id != 0 && !is_held(txn, of, id)? {
        txn.ring(Ring::Queues);
    }
    if of.may_take_back(txn.now) { take_back(txn) } else { Ok(()) }
}

/// Ends overdue sessions: what was held under them goes back to its queues. So does what is held
/// under no session at all: processes of earlier versions may hold messages under one that has ended.
fn take_back(txn: &mut Txn<'_>) -> Done<()> {
    let overdue = "SELECT id FROM sessions WHERE until < ?";
    for id in txn.all(overdue, [txn.now], |row| row.get(0))? {
        let returned = end(txn, id)?;
        warn!(
            session = id,
            returned, "a process has not renewed its session: its messages are delivered again"
        );
    }
    let orphaned = "UPDATE messages SET holder = NULL \
                    WHERE holder IS NOT NULL AND holder NOT IN (SELECT id FROM sessions)";
    let returned = txn.execute(orphaned, [])?;
    if returned > 0 {
        warn!(returned, "messages were held under a session that has ended: delivered again");
        txn.ring(Ring::Queues);
    }
    Ok(())
}

/// Ends a session: returns what was held under it to its queues, and says how much that was.
pub(super) fn end(txn: &mut Txn<'_>, id: i64) -> Done<usize> {
    if id == 0 {
        return Ok(0);
    }
    let returned = txn.execute("UPDATE messages SET holder = NULL WHERE holder = ?", [id])?;
    txn.execute("DELETE FROM consumers WHERE session = ?", [id])?;
    txn.execute("DELETE FROM sessions WHERE id = ?", [id])?;
    txn.ring(Ring::Queues);
    Ok(returned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_pass_leaves_other_sessions_alone_for_a_while() {
        let session = Session::default();
        let passes: Vec<_> =
            [1_000, 3_500, 20_000, 22_500, 25_000].map(|at| session.may_take_back(at)).into();
        assert_eq!(passes, [true, true, false, false, true]);
    }

    #[test]
    fn passes_that_are_always_late_take_back_all_the_same() {
        let session = Session::default();
        let taken = (1..20).filter(|pass| session.may_take_back(pass * 6_000)).count();
        assert!(taken >= 9, "{taken}");
    }
}
