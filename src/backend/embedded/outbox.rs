//! Resume messages that nobody is known to have sent. Whoever sends one clears its entry.

use rusqlite::params;

use super::parks::milliseconds;
use super::txn::{Done, Txn};
use crate::backend::Resume;
use crate::backend::approvals::{OVERDUE, SWEPT};
use crate::task::TaskId;

/// Leaves word that this task is to be resumed, once `at` has passed.
pub(super) fn leave(
    txn: &Txn<'_>,
    task: &TaskId,
    number: u64,
    queue: &str,
    at: i64,
) -> Done<Option<Resume>> {
    let entry = serde_json::json!([task.as_str(), number.to_string(), queue]).to_string();
    let leave = "INSERT INTO outbox (entry, at) VALUES (?1, ?2) \
                 ON CONFLICT (entry) DO UPDATE SET at = ?2";
    txn.execute(leave, params![entry, at])?;
    Ok(Resume::read(&entry))
}

/// It is sent.
pub(super) fn clear(txn: &Txn<'_>, resume: &Resume) -> Done<()> {
    txn.execute("DELETE FROM outbox WHERE entry = ?", [&resume.entry])?;
    Ok(())
}

/// Takes entries that nobody is known to have sent: a newer time keeps others off.
pub(super) fn overdue(txn: &Txn<'_>) -> Done<Vec<Resume>> {
    let take = "UPDATE outbox SET at = ?1 WHERE entry IN \
                (SELECT entry FROM outbox WHERE at <= ?2 ORDER BY at, entry LIMIT ?3) \
                RETURNING entry";
    let old = txn.now - milliseconds(OVERDUE);
    let read = |row: &rusqlite::Row<'_>| Ok(Resume::read(&row.get::<_, String>(0)?));
    let entries = txn.all(take, params![txn.now, old, SWEPT], read)?;
    Ok(entries.into_iter().flatten().collect())
}
