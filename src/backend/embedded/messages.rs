//! The rows of queues, and of the messages in them.

use bytes::Bytes;
use rusqlite::params;

use super::fault::TxResult;
use super::message_head;
use super::notifications::Event;
use super::txn::Txn;
use super::wakes::{self, Wake};
use crate::backend::{PublishRequest, Queue, Recorded};
use crate::protocol::{Message, MessageHeaders, Properties};
use crate::task::TaskId;

/// A stored message that was taken out of its queue.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) seq: i64,
    pub(super) redelivered: bool,
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Leased {
    /// Decodes the message. One that another program has written is delivered unchanged; the worker
    /// that reads it dead-letters it.
    pub(super) fn read(self) -> Message {
        let body = Bytes::from(self.body);
        message_head::decode(&self.head, body.clone()).unwrap_or_else(|_| Message {
            id: TaskId::random(),
            headers: MessageHeaders::default(),
            body,
            properties: Properties::default(),
        })
    }
}

/// Stores a message in its queue; a delayed wake message in the record of its task, if possible.
pub(super) fn put(
    txn: &mut Txn<'_>,
    request: &PublishRequest,
    head: &[u8],
    wake: Option<&Wake>,
) -> TxResult<Recorded> {
    let PublishRequest { message, queue, delay, .. } = request;
    let target = queue.expiry.as_ref().map_or(queue, |expiry| &*expiry.to);
    let (queue, max_priority) = queue_row(txn, target)?;
    let Message { id, body, properties, .. } = message;
    let priority = properties.priority.map_or(0, i64::from).min(max_priority);
    let delay = delay.map(|delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    let due = delay.filter(|delay| *delay > 0).map(|delay| txn.now.saturating_add(delay));
    let insert = "INSERT INTO messages (queue, rank, due, head, body) VALUES (?, ?, ?, ?, ?)";
    let is_stored = match (wake, due) {
        (Some(wake), Some(due)) => wake.store(txn, id, queue, due)?,
        _ => false,
    };
    if !is_stored {
        txn.execute(insert, params![queue, -priority, due, head, &body[..]])?;
    }
    txn.notify(Event::Queue(queue));
    Ok(Recorded::new(id.clone()))
}

/// Returns a queue's number, if it exists.
pub(super) fn queue_id(txn: &Txn<'_>, name: &str) -> TxResult<Option<i64>> {
    txn.first("SELECT id FROM queues WHERE name = ?", [name], |row| row.get(0))
}

/// Returns a queue's number and highest priority. Creates the queue if it does not exist.
pub(super) fn queue_row(txn: &Txn<'_>, queue: &Queue) -> TxResult<(i64, i64)> {
    let find = "SELECT id, max_priority FROM queues WHERE name = ?";
    if let Some(found) = txn.first(find, [&queue.name], |row| Ok((row.get(0)?, row.get(1)?)))? {
        return Ok(found);
    }
    let max_priority = i64::from(queue.max_priority.unwrap_or(0));
    let insert = "INSERT INTO queues (name, max_priority) VALUES (?, ?)";
    txn.execute(insert, params![queue.name, max_priority])?;
    Ok((txn.inserted(), max_priority))
}

/// Makes delayed messages ready whose time has come.
pub(super) fn promote(txn: &Txn<'_>, queue: i64) -> TxResult<()> {
    wakes::deliver(txn, queue)?;
    txn.execute("UPDATE messages SET due = NULL WHERE queue = ? AND due <= ?", [queue, txn.now])?;
    Ok(())
}

/// Takes messages off the head of a queue, until there are `count` or they exceed `bytes`.
pub(super) fn lease(
    txn: &Txn<'_>,
    queue: i64,
    session: i64,
    count: usize,
    mut bytes: usize,
) -> TxResult<Vec<Leased>> {
    let mut select = txn.prepare(
        "SELECT seq, handed_out, head, body FROM messages \
         WHERE queue = ? AND due IS NULL AND holder IS NULL ORDER BY rank, seq LIMIT ?",
    )?;
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let mut rows = select.query(params![queue, count])?;
    let mut leased = Vec::new();
    while let Some(row) = rows.next()? {
        let (head, body): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
        let size = head.len() + body.len();
        if size > bytes && !leased.is_empty() {
            break;
        }
        bytes = bytes.saturating_sub(size);
        let redelivered = row.get::<_, i64>(1)? > 0;
        leased.push(Leased { seq: row.get(0)?, redelivered, head, body });
    }
    drop(rows);
    let hold = "UPDATE messages SET holder = ?, handed_out = handed_out + 1 WHERE seq = ?";
    let mut hold = txn.prepare(hold)?;
    for Leased { seq, .. } in &leased {
        hold.execute([session, *seq])?;
    }
    Ok(leased)
}
