//! The stored result documents.

use bytes::Bytes;
use rusqlite::params;

use super::fault::TxResult;
use super::txn::Txn;
use crate::protocol::Document;
use crate::task::TaskId;

/// Returns the document of a task as it is stored now.
pub(super) fn read(txn: &Txn<'_>, id: &TaskId) -> TxResult<Option<Document>> {
    let find = "SELECT json FROM results WHERE id = ? AND (expires IS NULL OR expires >= ?)";
    let json = txn.first(find, params![id.as_str(), txn.now], |row| row.get::<_, Vec<u8>>(0))?;
    let document = json.map(|json| Document::parse(id.clone(), Bytes::from(json)));
    Ok(document.transpose()?)
}
