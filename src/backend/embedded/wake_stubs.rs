//! The stored wake messages of suspended tasks. The record of the suspension has the task already, so its
//! wake message is stored as a stub: the headers of the suspension, and the digest of the task. When it is
//! leased, the task is read from the record.
//!
//! A stub whose record is gone is delivered as it is, a message without arguments. An older process that
//! leases a stub finds a record of a newer format, and leaves the message to newer processes.

use std::io;

use bytes::Bytes;
use rusqlite::params;
use serde_json::{Value, json};

use super::fault::TxResult;
use super::message_head;
use super::packed;
use super::suspension_records::PACKED;
use super::txn::Txn;
use crate::protocol::{Envelope, Headers, Message, Properties, SuspendHeader, SuspendKind};
use crate::protocol::{MessageHeaders, TaskDigest};
use crate::task::TaskId;

/// The body of every stub: no arguments, with white space that no other message has.
const BODY: &[u8] = b"[[ ], { }, { }]";
/// The most bytes of arguments that are read; a larger task is stored with its wake message.
const MAX_ARGUMENTS: usize = 64 * 1024 * 1024;
/// The header with the digest of the task.
const DIGEST: &str = "x-countersign-stub";
/// The headers of a stub that its task has, too.
const SHARED: [&str; 3] = ["lang", "task", "id"];

/// A wake message that can be stored as a stub.
#[derive(Debug)]
pub(super) struct WakeStub {
    digest: TaskDigest,
    head: Vec<u8>,
    /// The task, for a record that does not have it yet.
    packed: Vec<u8>,
}

impl WakeStub {
    /// Returns the stub of a wake message; `None` for any other message.
    pub(super) fn of(message: &Message) -> Option<Self> {
        let header = SuspendHeader::read(message).ok()??;
        if header.kind != SuspendKind::Wake {
            return None;
        }
        let digest = Envelope::decode(message, MAX_ARGUMENTS).ok()?.digest();
        let headers = [
            ("lang", json!("rust")),
            ("task", json!(message.headers.text("task"))),
            ("id", json!(message.id)),
            (DIGEST, json!(digest)),
        ];
        let headers: Headers =
            headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut stub = header.on(Message {
            id: message.id.clone(),
            headers: headers.into(),
            body: Bytes::new(),
            properties: Properties::default(),
        });
        if let Some(sent_at) = SuspendHeader::sent_at(message) {
            stub = SuspendHeader::sent(stub, sent_at);
        }
        if message.is_returned() {
            stub.mark_returned();
        }
        let mut task = message.clone();
        SuspendHeader::remove(&mut task.headers);
        task.strip_history();
        let packed = packed::pack(&task).ok()?;
        Some(Self { digest, head: message_head::encode(&stub), packed })
    }

    /// Returns the head and the body of the stub, if the record of this task's suspension has the task now.
    pub(super) fn store(
        &self,
        txn: &Txn<'_>,
        id: &TaskId,
    ) -> TxResult<Option<(&[u8], &'static [u8])>> {
        let stub = Some((&*self.head, BODY));
        let find = "SELECT packed IS NOT NULL, message IS NOT NULL FROM parks \
                    WHERE task = ? AND digest = ? AND v <= ? AND NOT ended \
                    AND (expires IS NULL OR expires > ?)";
        let key = params![id.as_str(), self.digest.as_str(), PACKED, txn.now];
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        match txn.first(find, key, read)? {
            Some((true, _)) => Ok(stub),
            Some((false, false)) => {
                let update = "UPDATE parks SET packed = ?, v = ? WHERE task = ?";
                txn.execute(update, params![self.packed, PACKED, id.as_str()])?;
                Ok(stub)
            }
            // A record of an older version has the message in another form.
            Some((false, true)) | None => Ok(None),
        }
    }
}

/// Returns the packed task of a stub that is leased; `None` for any other message.
pub(super) fn task(txn: &Txn<'_>, head: &[u8], body: &[u8]) -> TxResult<Option<Vec<u8>>> {
    if body != BODY {
        return Ok(None);
    }
    let Ok(stub) = message_head::decode(head, Bytes::new()) else { return Ok(None) };
    let find = "SELECT packed FROM parks WHERE task = ? AND digest = ? AND NOT ended";
    let key = params![stub.id.as_str(), stub.headers.text(DIGEST)];
    Ok(txn.first(find, key, |row| row.get(0))?.flatten())
}

/// Returns the wake message of a stub.
///
/// # Errors
/// The packed task cannot be read.
pub(super) fn restore(stub: &Message, packed: &[u8]) -> io::Result<Message> {
    let mut message = packed::unpack(packed)?;
    let headers: &mut MessageHeaders = &mut message.headers;
    let own = stub.headers.iter();
    let own = own.filter(|(name, _)| *name != DIGEST && !SHARED.contains(&name.as_str()));
    headers.extend(own.map(|(name, value): (&String, &Value)| (name.clone(), value.clone())));
    Ok(message)
}
