//! The rows of sessions: starting a session, renewing it, and ending it.

use rand::Rng;
use tracing::warn;

use super::fault::TxResult;
use super::notifications::Event;
use super::session::Session;
use super::stored_clock;
use super::txn::Txn;

/// How long a session lasts without being renewed, in milliseconds.
pub(super) const LEASE: i64 = 10_000;

/// Returns the session of this process. Starts one if there is none, and then ends those that are overdue.
///
/// Numbers are random, and so never reused: a process that slept may still have the number of a session
/// that ended long ago. Processes of earlier versions let SQLite choose the next number.
pub(super) fn begin(txn: &mut Txn<'_>, of: &Session) -> TxResult<i64> {
    let id = of.id();
    // The transaction that started it may have been rolled back, or another process has ended it.
    if id != 0 && is_held(txn, of, id)? {
        return Ok(id);
    }
    let id = rand::rng().random_range(1 << 32..1 << 62);
    let until = if txn.shared().sessions_expire { txn.now + LEASE } else { i64::MAX };
    txn.execute("INSERT INTO sessions (id, until) VALUES (?, ?)", [id, until])?;
    of.set(id);
    reclaim(txn)?;
    Ok(id)
}

/// Returns whether this process still has this session, by the database. Renews it when that is due.
/// False: another process has ended it, and has returned its messages to their queues.
pub(super) fn is_held(txn: &Txn<'_>, of: &Session, id: i64) -> TxResult<bool> {
    let until = txn.first("SELECT until FROM sessions WHERE id = ?", [id], |row| row.get(0))?;
    let Some(until): Option<i64> = until else {
        of.lose(id);
        return Ok(false);
    };
    if until - txn.now <= LEASE * 2 / 3 {
        txn.execute("UPDATE sessions SET until = ? WHERE id = ?", [txn.now + LEASE, id])?;
        stored_clock::store(txn)?;
    }
    Ok(true)
}

/// The part of a maintenance pass for sessions: renews this process's own, and ends those that are overdue.
pub(super) fn maintain(txn: &mut Txn<'_>, of: &Session) -> TxResult<()> {
    let id = of.id();
    if id != 0 && !is_held(txn, of, id)? {
        txn.notify(Event::Queues);
    }
    if of.may_reclaim(txn.now) { reclaim(txn) } else { Ok(()) }
}

/// Ends overdue sessions: their messages return to the queues. So do messages that are held under no
/// existing session: processes of earlier versions may hold messages under one that has ended.
fn reclaim(txn: &mut Txn<'_>) -> TxResult<()> {
    let overdue = "SELECT id FROM sessions WHERE until < ?";
    for id in txn.all(overdue, [txn.now], |row| row.get(0))? {
        let returned = end(txn, id)?;
        warn!(
            session = id,
            returned, "a process has not renewed its session; its messages are redelivered"
        );
    }
    let orphaned = "UPDATE messages SET holder = NULL \
                    WHERE holder IS NOT NULL AND holder NOT IN (SELECT id FROM sessions)";
    let returned = txn.execute(orphaned, [])?;
    if returned > 0 {
        warn!(returned, "messages were held under an ended session; they are redelivered");
        txn.notify(Event::Queues);
    }
    Ok(())
}

/// Ends a session: returns its messages to their queues, and returns their number.
pub(super) fn end(txn: &mut Txn<'_>, id: i64) -> TxResult<usize> {
    if id == 0 {
        return Ok(0);
    }
    let returned = txn.execute("UPDATE messages SET holder = NULL WHERE holder = ?", [id])?;
    txn.execute("DELETE FROM consumers WHERE session = ?", [id])?;
    txn.execute("DELETE FROM sessions WHERE id = ?", [id])?;
    txn.notify(Event::Queues);
    Ok(returned)
}
