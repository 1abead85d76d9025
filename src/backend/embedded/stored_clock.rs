//! The stored time of the clock, for processes that start after the machine's clock was set back.

use rusqlite::{Connection, params};

use super::fault::TxResult;
use super::txn::Txn;

/// The name of the mark that stores the clock.
const CLOCK: &str = "clock";

/// Returns the latest time of the store's clock that a process has stored.
pub(super) fn latest(connection: &Connection) -> Option<i64> {
    let find = "SELECT value FROM marks WHERE name = ?";
    let noted = connection.query_row(find, [CLOCK], |row| row.get::<_, String>(0));
    noted.ok()?.parse().ok()
}

/// Stores the time, for processes that start after the machine's clock was set back.
pub(super) fn store(txn: &Txn<'_>) -> TxResult<()> {
    let note = "INSERT OR REPLACE INTO marks (name, value, expires) VALUES (?, ?, ?)";
    txn.execute(note, params![CLOCK, txn.now.to_string(), i64::MAX])?;
    Ok(())
}
