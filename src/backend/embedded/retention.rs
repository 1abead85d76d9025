//! How long the data that the runs of a task store are kept, and their end.

use rusqlite::params;

use super::fault::TxResult;
use super::txn::Txn;
use crate::task::TaskId;

const HOUR: i64 = 60 * 60 * 1000;
const WEEK: i64 = 7 * 24 * HOUR;

/// How long the data of a task are kept, in milliseconds from now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    /// How long results are kept; `None`: without limit.
    pub(super) results: Option<i64>,
}

impl Retention {
    /// For a task that has not ended: after its last write.
    pub(super) fn running(self) -> i64 {
        self.results.unwrap_or(0).saturating_add(WEEK)
    }

    /// For a task that has ended: after its end.
    pub(super) fn ended(self) -> i64 {
        self.results.map_or(WEEK, |results| results.max(HOUR))
    }
}

/// Keeps the data of a task at least this much longer, with a precision of one hour.
pub(super) fn extend(txn: &Txn<'_>, task: &TaskId, retention: i64) -> TxResult<()> {
    let keep = "INSERT INTO left_by (task, expires) VALUES (?1, ?2) \
                ON CONFLICT (task) DO UPDATE SET expires = ?2 WHERE expires < ?2 - ?3";
    let expires = txn.now.saturating_add(retention);
    txn.execute(keep, params![task.as_str(), expires, HOUR])?;
    Ok(())
}

/// Deletes the journal and the stream of a task.
pub(super) fn delete(txn: &Txn<'_>, task: &str) -> TxResult<()> {
    for table in ["steps", "entries", "heads", "left_by"] {
        txn.execute(&format!("DELETE FROM {table} WHERE task = ?"), [task])?;
    }
    Ok(())
}

/// Returns whether a task has a journal or a stream.
pub(super) fn has_task_data(txn: &Txn<'_>, task: &TaskId) -> TxResult<bool> {
    let find = "SELECT 1 FROM left_by WHERE task = ?1 AND expires >= ?2 AND \
                (EXISTS (SELECT 1 FROM steps WHERE task = ?1) \
                OR EXISTS (SELECT 1 FROM heads WHERE task = ?1))";
    Ok(txn.first(find, params![task.as_str(), txn.now], |_| Ok(()))?.is_some())
}
