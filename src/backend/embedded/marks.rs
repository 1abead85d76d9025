//! Marks: small values with a name and an expiry. Attempts, idempotency keys, workers and failures are
//! stored as marks.

use rusqlite::params;

use super::fault::TxResult;
use super::txn::Txn;

/// Writes a mark unless there is one; returns whether it did.
pub(super) fn claim(txn: &Txn<'_>, name: &str, value: &str, retention: i64) -> TxResult<bool> {
    let insert = "INSERT INTO marks (name, value, expires) VALUES (?1, ?2, ?3) \
                  ON CONFLICT (name) DO UPDATE SET value = ?2, expires = ?3 \
                  WHERE marks.expires < ?4";
    let expires = txn.now.saturating_add(retention);
    Ok(txn.execute(insert, params![name, value, expires, txn.now])? == 1)
}

pub(super) fn set(txn: &Txn<'_>, name: &str, value: &str, retention: i64) -> TxResult<()> {
    let insert = "INSERT INTO marks (name, value, expires) VALUES (?, ?, ?) \
                  ON CONFLICT (name) DO UPDATE SET value = excluded.value, \
                  expires = excluded.expires";
    txn.execute(insert, params![name, value, txn.now.saturating_add(retention)])?;
    Ok(())
}

pub(super) fn get(txn: &Txn<'_>, name: &str) -> TxResult<Option<String>> {
    let find = "SELECT value FROM marks WHERE name = ? AND expires >= ?";
    txn.first(find, params![name, txn.now], |row| row.get(0))
}

pub(super) fn delete(txn: &Txn<'_>, name: &str) -> TxResult<()> {
    txn.execute("DELETE FROM marks WHERE name = ?", [name])?;
    Ok(())
}
