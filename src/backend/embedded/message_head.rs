//! The stored part of a message without its body, as JSON.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::protocol::{Message, MessageHeaders, Properties};
use crate::task::TaskId;

#[derive(Serialize)]
struct Head<'m> {
    id: &'m TaskId,
    headers: &'m MessageHeaders,
    properties: &'m Properties,
}

#[derive(Deserialize)]
struct StoredHead {
    id: TaskId,
    headers: MessageHeaders,
    properties: Properties,
}

/// Encodes the part of a message without its body.
pub(super) fn encode(message: &Message) -> Vec<u8> {
    let Message { id, headers, properties, .. } = message;
    serde_json::to_vec(&Head { id, headers, properties }).unwrap_or_default()
}

/// Decodes a message.
///
/// # Errors
/// The head was written by another program, or is damaged.
pub(super) fn decode(head: &[u8], body: Bytes) -> serde_json::Result<Message> {
    let StoredHead { id, headers, properties } = serde_json::from_slice(head)?;
    Ok(Message { id, headers, body, properties })
}
