//! The stored records of suspended tasks.

use rusqlite::params;
use tracing::warn;

use super::fault::TxResult;
use super::packed;
use super::txn::Txn;
use crate::approval::ApprovalId;
use crate::backend::suspensions::joined;
use crate::error::{Error, Kind};
use crate::lifecycle::suspension::{self, Claim, Suspension};
use crate::protocol::{Message, TaskDigest};
use crate::task::TaskId;

/// The format version of these records.
pub(super) const FORMAT: i64 = 1;
/// The version of a record whose message is packed. Processes of older versions do not read it.
pub(super) const PACKED: i64 = 2;

/// Stands for all requests of a task if it waits for each of them.
const SAME: &str = "=";

/// A record without its message.
#[derive(Debug)]
pub(super) struct Row {
    /// The version of the format that it was read in.
    pub(super) v: i64,
    pub(super) suspension: Suspension,
    pub(super) listed: Vec<ApprovalId>,
    pub(super) alarm: Option<i64>,
    pub(super) queue: String,
}

/// Deletes an ended record, so that the task runs as if it had never been suspended. The record of a
/// suspended task stays: another message may have its id.
pub(super) fn delete_ended(txn: &Txn<'_>, task: &TaskId) -> TxResult<()> {
    txn.execute("DELETE FROM parks WHERE task = ? AND ended", [task.as_str()])?;
    Ok(())
}

/// Deletes a suspension that has ended. Returns false if the task is suspended.
pub(super) fn forget(txn: &Txn<'_>, task: &TaskId) -> TxResult<bool> {
    let mut record = find(txn, task)?.map(|row| row.suspension);
    let is_ended = suspension::forget(&mut record);
    if let Some(Suspension { digest, .. }) = record.filter(|_| is_ended) {
        let update = "UPDATE parks SET digest = ? WHERE task = ?";
        let digest = digest.as_ref().map(TaskDigest::as_str);
        txn.execute(update, params![digest, task.as_str()])?;
    }
    Ok(is_ended)
}

/// Returns whether there is a record of the task.
pub(super) fn is_known(txn: &Txn<'_>, task: &TaskId) -> TxResult<bool> {
    Ok(find(txn, task)?.is_some())
}

/// Returns whether the task is suspended, so that it may still read its requests.
pub(super) fn is_suspended(txn: &Txn<'_>, task: &TaskId) -> TxResult<bool> {
    Ok(find(txn, task)?.is_some_and(|row| !row.suspension.ended))
}

/// Returns the number and the queue of a task's suspension, if it waits for this request.
pub(super) fn waiting(
    txn: &Txn<'_>,
    task: &TaskId,
    approval: &ApprovalId,
) -> TxResult<Option<(u64, String)>> {
    let found = find(txn, task)?;
    let waiting =
        found.filter(|row| !row.suspension.ended && row.suspension.waits.contains(approval));
    Ok(waiting.map(|row| (row.suspension.number, row.queue)))
}

pub(super) fn find(txn: &Txn<'_>, id: &TaskId) -> TxResult<Option<Row>> {
    let find = "SELECT v, number, waits, asked, holder, until, ended, alarm, queue, digest FROM parks \
                WHERE task = ? AND (expires IS NULL OR expires > ?)";
    txn.first(find, params![id.as_str(), txn.now], |row| {
        let holder: Option<String> = row.get(4)?;
        let until: Option<i64> = row.get(5)?;
        let suspension = Suspension {
            number: row.get::<_, i64>(1)?.unsigned_abs(),
            digest: row.get::<_, Option<String>>(9)?.map(TaskDigest::from),
            waits: ids(&row.get::<_, String>(2)?),
            claim: holder.map(|holder| Claim { holder, until: until.unwrap_or(0) }),
            ended: row.get(6)?,
        };
        let listed = match row.get_ref(3)?.as_str()? {
            SAME => suspension.waits.clone(),
            listed => ids(listed),
        };
        Ok(Row { v: row.get(0)?, suspension, listed, alarm: row.get(7)?, queue: row.get(8)? })
    })
}

/// Writes a whole record, and replaces any existing one.
pub(super) fn insert(txn: &Txn<'_>, id: &TaskId, row: &Row, packed: Option<&[u8]>) -> TxResult<()> {
    let Row { suspension, listed, alarm, queue, .. } = row;
    let Suspension { number, digest, waits, claim, ended } = suspension;
    // A record with a message is appended. One that is only claimed gets a number before all others: it is
    // replaced soon, and would leave gaps between records that stay.
    let put = "INSERT OR REPLACE INTO parks (rowid, task, v, number, waits, asked, holder, until, ended, \
               alarm, queue, packed, digest, wake_queue, wake_at, wake_number, wake_sent) \
               SELECT CASE WHEN ?11 IS NULL THEN \
               min(0, coalesce((SELECT rowid FROM parks ORDER BY rowid LIMIT 1), 0)) - 1 END, \
               ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, \
               old.wake_queue, old.wake_at, old.wake_number, old.wake_sent \
               FROM (SELECT ?1 AS task) AS new \
               LEFT JOIN parks AS old ON old.task = new.task AND NOT old.ended";
    let is_same = packed.is_some() && listed == waits;
    let asked = if is_same { SAME.to_owned() } else { joined(listed) };
    txn.execute(
        put,
        params![
            id.as_str(),
            packed.map_or(FORMAT, |_| PACKED),
            number.cast_signed(),
            joined(waits),
            asked,
            claim.as_ref().map(|claim| claim.holder.as_str()),
            claim.as_ref().map(|claim| claim.until),
            ended,
            alarm,
            queue,
            packed,
            digest.as_ref().map(TaskDigest::as_str)
        ],
    )?;
    Ok(())
}

/// Updates the fields that the rules may change in a record of the same task.
pub(super) fn update(
    txn: &Txn<'_>,
    id: &TaskId,
    suspension: &Suspension,
    alarm: Option<i64>,
) -> TxResult<()> {
    let Suspension { number, digest: _, waits, claim, ended } = suspension;
    let update = "UPDATE parks SET number = ?2, waits = ?3, holder = ?4, until = ?5, ended = ?6, \
                  alarm = ?7, asked = CASE WHEN asked = '=' THEN waits ELSE asked END \
                  WHERE task = ?1";
    txn.execute(
        update,
        params![
            id.as_str(),
            number.cast_signed(),
            joined(waits),
            claim.as_ref().map(|claim| claim.holder.as_str()),
            claim.as_ref().map(|claim| claim.until),
            ended,
            alarm
        ],
    )?;
    Ok(())
}

/// Returns the stored message of a suspended task. One that cannot be decoded counts as none: the wake
/// message carries the task, too.
pub(super) fn message(txn: &Txn<'_>, id: &TaskId) -> TxResult<Option<Message>> {
    let find = "SELECT message, packed FROM parks WHERE task = ?";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let stored = txn.first(find, [id.as_str()], read)?;
    let Some((json, packed)): Option<(Option<String>, Option<Vec<u8>>)> = stored else {
        return Ok(None);
    };
    let message = decode(id, json.as_deref(), packed.as_deref()).transpose();
    Ok(message.unwrap_or_else(|error| {
        warn!(cause = %error, "cannot decode the message of a suspended task; its wake message continues it");
        None
    }))
}

/// Decodes the stored message of a task: packed, or as JSON by an older version.
pub(super) fn decode(
    id: &TaskId,
    json: Option<&str>,
    packed: Option<&[u8]>,
) -> Option<Result<Message, Error>> {
    if let Some(packed) = packed {
        let what = || format!("the stored message of suspended task {id}");
        return Some(
            packed::unpack(id, packed)
                .map_err(|error| Kind::Codec { what: what(), cause: error.to_string() }.into()),
        );
    }
    json.map(|json| Message::from_json(id.clone(), json))
}

fn ids(text: &str) -> Vec<ApprovalId> {
    text.split(' ').filter_map(ApprovalId::parse).collect()
}
