//! The stored result documents.

use bytes::Bytes;
use rusqlite::params;
use tracing::warn;

use super::fault::TxResult;
use super::txn::Txn;
use crate::protocol::{Document, State};
use crate::task::TaskId;

/// Returns the document of a task as it is stored now.
pub(super) fn read(txn: &Txn<'_>, id: &TaskId) -> TxResult<Option<Document>> {
    let find = "SELECT json FROM results WHERE id = ? AND (expires IS NULL OR expires >= ?)";
    let json = txn.first(find, params![id.as_str(), txn.now], |row| row.get::<_, Vec<u8>>(0))?;
    let document = json.map(|json| Document::parse(id.clone(), Bytes::from(json)));
    Ok(document.transpose()?)
}

/// Returns the document of a task if its state is final. An unreadable one counts as absent.
pub(super) fn read_final(txn: &Txn<'_>, id: &TaskId) -> TxResult<Option<Document>> {
    let find = "SELECT json, state FROM results WHERE id = ? AND (expires IS NULL OR expires >= ?)";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?));
    let stored = txn.first(find, params![id.as_str(), txn.now], read)?;
    let is_final = |stored: &(Vec<u8>, String)| State::named(&stored.1).is_terminal();
    let parsed = stored.filter(is_final).map(|(json, _)| Document::parse(id.clone(), json.into()));
    Ok(parsed.and_then(|document| {
        document
            .inspect_err(|error| warn!(task.id = %id, "the stored result is unreadable: {error}"))
            .ok()
    }))
}
