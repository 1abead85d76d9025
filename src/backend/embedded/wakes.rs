//! The wake messages of suspended tasks. The record of a suspension has the task already, so its wake message
//! is no row of its own while it is delayed: the record has its number, queue and time. When it is due, it
//! becomes a message of its queue.
//!
//! A record has one wake message. One with a higher number replaces it, because the task continues by that
//! one. The end of the task removes it, because late wake messages are acked.

use rusqlite::{Row, params};
use tracing::warn;

use super::fault::TxResult;
use super::message_head;
use super::packed;
use super::suspension_records::PACKED;
use super::txn::Txn;
use crate::protocol::{Envelope, Message, SuspendHeader, SuspendKind, TaskDigest};
use crate::task::TaskId;

/// The most bytes of arguments that are read: a larger task is stored with its wake message.
const MAX_ARGUMENTS: usize = 64 * 1024 * 1024;
/// The most wake messages that are delivered in one transaction.
const SLICE: usize = 500;

/// A wake message that a record can have.
#[derive(Debug)]
pub(super) struct Wake {
    digest: TaskDigest,
    number: i64,
    sent_at: Option<i64>,
    /// The task, for a record that does not have it yet.
    packed: Vec<u8>,
}

impl Wake {
    /// Returns `None` for any other message, and for one that may have run.
    pub(super) fn of(message: &Message) -> Option<Self> {
        let header = SuspendHeader::read(message).ok()??;
        if header.kind != SuspendKind::Wake || message.is_returned() {
            return None;
        }
        let digest = Envelope::decode(message, MAX_ARGUMENTS).ok()?.digest();
        let (number, sent_at) = (header.number.cast_signed(), SuspendHeader::sent_at(message));
        let mut task = message.clone();
        SuspendHeader::remove(&mut task.headers);
        task.strip_history();
        let packed = packed::pack(&task.id, &task).ok()?;
        Some(Self { digest, number, sent_at, packed })
    }

    /// Stores the message in the record of its task. Returns false if that is not possible: the caller stores
    /// it in its queue.
    pub(super) fn store(&self, txn: &Txn<'_>, id: &TaskId, queue: i64, due: i64) -> TxResult<bool> {
        // A record of an older version has the message as JSON.
        let put = "UPDATE parks SET v = ?4, packed = coalesce(packed, ?5), wake_queue = ?6, \
                   wake_sent = ?7, wake_number = ?3, \
                   wake_at = CASE WHEN wake_number = ?3 THEN min(wake_at, ?8) ELSE ?8 END \
                   WHERE task = ?1 AND digest = ?2 AND NOT ended AND v <= ?4 AND message IS NULL \
                   AND (wake_number IS NULL OR wake_number <= ?3) \
                   AND (expires IS NULL OR expires > ?9)";
        let Self { digest, number, sent_at, packed } = self;
        let values = params![
            id.as_str(),
            digest.as_str(),
            number,
            PACKED,
            packed,
            queue,
            sent_at,
            due,
            txn.now
        ];
        Ok(txn.execute(put, values)? > 0)
    }
}

/// A wake message that is due.
struct DueWake {
    id: TaskId,
    number: i64,
    sent_at: Option<i64>,
    packed: Vec<u8>,
}

impl DueWake {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (id, number) = (TaskId::from(row.get::<_, String>(0)?), row.get(1)?);
        Ok(Self { id, number, sent_at: row.get(2)?, packed: row.get(3)? })
    }

    fn message(&self) -> std::io::Result<Message> {
        let (kind, number) = (SuspendKind::Wake, self.number.unsigned_abs());
        let wake = SuspendHeader { kind, number }.on(packed::unpack(&self.id, &self.packed)?);
        Ok(match self.sent_at {
            Some(sent_at) => SuspendHeader::sent(wake, sent_at),
            None => wake,
        })
    }
}

/// Moves the wake messages to this queue that are due.
pub(super) fn deliver(txn: &Txn<'_>, queue: i64) -> TxResult<()> {
    let due = "SELECT task, wake_number, wake_sent, packed FROM parks \
               WHERE wake_queue = ? AND wake_at <= ? ORDER BY wake_at LIMIT ?";
    let slice = i64::try_from(SLICE).unwrap_or(i64::MAX);
    for wake in txn.all(due, params![queue, txn.now, slice], DueWake::read)? {
        let taken = "UPDATE parks SET wake_queue = NULL, wake_at = NULL, wake_number = NULL, \
                     wake_sent = NULL WHERE task = ?";
        txn.execute(taken, [wake.id.as_str()])?;
        match wake.message() {
            Ok(message) => {
                let insert = "INSERT INTO messages (queue, rank, head, body) VALUES (?, 0, ?, ?)";
                let head = message_head::encode(&message);
                txn.execute(insert, params![queue, head, &message.body[..]])?;
            }
            Err(error) => warn!(task.id = %wake.id, "cannot decode a wake message: {error}"),
        }
    }
    Ok(())
}

/// Returns when the next wake message to this queue is due.
pub(super) fn next(txn: &Txn<'_>, queue: i64) -> TxResult<Option<i64>> {
    let next = "SELECT min(wake_at) FROM parks WHERE wake_queue = ?";
    Ok(txn.first(next, [queue], |row| row.get::<_, Option<i64>>(0))?.flatten())
}
