//! Background maintenance: renewing sessions, and deleting expired rows.

use std::time::Duration;

use super::fault::TxResult;
use super::session::Session;
use super::txn::Txn;
use super::{retention, session_rows};
use crate::approval::MAX_AUDIT_ENTRIES;

/// How often a maintenance pass runs.
pub(super) const MAINTENANCE: Duration = Duration::from_millis(2500);
/// The number of rows of a table that are deleted in one transaction.
const SLICE: usize = 200;
/// The number of unused pages that are kept for new data, in addition to a quarter of the file.
const UNUSED_PAGES: i64 = 1024;
/// The value of `PRAGMA auto_vacuum` for a file that can return pages to the file system.
const INCREMENTAL: i64 = 2;
/// The number of stored events by which other processes may lag behind.
const MAX_EVENTS: i64 = 4_000;

/// Runs one maintenance pass, every few seconds: renews this process's session, ends overdue sessions,
/// and deletes a slice of the expired rows. Returns true if there is more to delete.
pub(super) fn run(txn: &mut Txn<'_>, of: &Session) -> TxResult<bool> {
    session_rows::maintain(txn, of)?;
    let has_expired = forget(txn)?;
    Ok(shrink(txn)? || has_expired)
}

/// Returns unused pages to the file system, if there are many. Returns true if there are more. A file
/// of an earlier version keeps them, until `countersign db compact` has rewritten it.
fn shrink(txn: &Txn<'_>) -> TxResult<bool> {
    let number = |pragma| -> TxResult<i64> {
        Ok(txn.first(pragma, [], |row| row.get(0))?.unwrap_or_default())
    };
    let (free, pages) = (number("PRAGMA freelist_count")?, number("PRAGMA page_count")?);
    if free < UNUSED_PAGES || free < pages / 4 || number("PRAGMA auto_vacuum")? != INCREMENTAL {
        return Ok(false);
    }
    txn.all(&format!("PRAGMA incremental_vacuum({SLICE})"), [], |_| Ok(()))?;
    Ok(true)
}

fn forget(txn: &mut Txn<'_>) -> TxResult<bool> {
    let mut is_more = false;
    for (table, key) in [
        ("results", "seq"),
        ("marks", "name"),
        ("parks", "task"),
        ("questions", "id"),
        ("ballots", "id"),
    ] {
        let forget = format!(
            "DELETE FROM {table} WHERE {key} IN \
             (SELECT {key} FROM {table} WHERE expires < ? ORDER BY expires LIMIT {SLICE})"
        );
        is_more |= txn.execute(&forget, [txn.now])? == SLICE;
    }
    let left = "SELECT task FROM left_by WHERE expires < ? ORDER BY expires LIMIT 50";
    for task in txn.all(left, [txn.now], |row| row.get::<_, String>(0))? {
        is_more = true;
        retention::delete(txn, &task)?;
    }
    let seal_limit = i64::try_from(MAX_AUDIT_ENTRIES).unwrap_or(i64::MAX);
    for (table, key, limit) in [("rings", "seq", MAX_EVENTS), ("seals", "number", seal_limit)] {
        let forget = format!(
            "DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} \
             WHERE {key} <= (SELECT max({key}) FROM {table}) - ? ORDER BY {key} LIMIT {SLICE})"
        );
        is_more |= txn.execute(&forget, [limit])? == SLICE;
    }
    Ok(is_more)
}
