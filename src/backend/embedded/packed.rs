//! The compressed messages of suspended tasks. A message of a few hundred bytes has almost no repetitions of
//! its own, so it is compressed as the continuation of a dictionary: the parts that most messages share.
//!
//! A packed message is a format byte and a raw deflate stream. The stream continues one of the dictionary and
//! the id of the task. It contains the length of the head, the head, and the body.

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::message_head;
use crate::protocol::Message;
use crate::task::TaskId;

/// The format, and its dictionary. Another dictionary needs another format.
const FORMAT: u8 = 1;
/// The likeliest parts come last, where distances are shortest.
const DICTIONARY: &[u8] = br#""app_id":"","kind":"","timestamp":17"expiration":"","message_id":"",
"compression":"application/x-gzip","argsrepr":"()","kwargsrepr":"{}","shadow":null,"stamps":{},
"stamped_headers":null,"replaced_task_nesting":0,"timelimit":[null,null],"retries":0,"parent_id":null,
"group":null,"group_index":null,"expires":null,"eta":null,"ignore_result":false,"eta":"202
00+00:00","expires":"202"reply_to":"{"id":"","headers":{"group":"","group_index":0,"id":"","lang":"rust",
"origin":"","parent_id":"","retries":1,"root_id":"","task":"","timelimit":[null,null],"traceparent":"00-
-01-00"},"properties":{"content_type":"application/json","content_encoding":"utf-8","correlation_id":"",
"reply_to":"","priority":0}}[[],{},{"callbacks": null, "errbacks": null, "chain": null, "chord": null}]"#;

/// Compresses a message of this task.
pub(super) fn pack(id: &TaskId, message: &Message) -> io::Result<Vec<u8>> {
    let head = message_head::encode(message);
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(DICTIONARY)?;
    encoder.write_all(id.as_str().as_bytes())?;
    encoder.flush()?;
    let shared = encoder.get_ref().len();
    let length = u32::try_from(head.len()).map_err(io::Error::other)?;
    encoder.write_all(&length.to_le_bytes())?;
    encoder.write_all(&head)?;
    encoder.write_all(&message.body)?;
    let mut packed = encoder.finish()?;
    packed.drain(..shared);
    packed.insert(0, FORMAT);
    Ok(packed)
}

/// Decompresses the message of this task.
///
/// # Errors
/// It has an unknown format, or is damaged.
pub(super) fn unpack(id: &TaskId, packed: &[u8]) -> io::Result<Message> {
    let Some((&FORMAT, stream)) = packed.split_first() else {
        return Err(io::Error::other("the message was packed by a newer version"));
    };
    let dictionary = [DICTIONARY, id.as_str().as_bytes()].concat();
    let mut start = Vec::new();
    // As stored blocks, none of which is the last one of the stream.
    for block in dictionary.chunks(usize::from(u16::MAX)) {
        let length = u16::try_from(block.len()).map_err(io::Error::other)?;
        start.push(0);
        start.extend(length.to_le_bytes());
        start.extend((!length).to_le_bytes());
        start.extend(block);
    }
    let mut plain = Vec::new();
    DeflateDecoder::new(start.as_slice().chain(stream)).read_to_end(&mut plain)?;
    let mut plain = Bytes::from(plain).split_off(dictionary.len());
    let damaged = || io::Error::other("the packed message is damaged");
    let (length, _) = plain.split_first_chunk().ok_or_else(damaged)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(io::Error::other)?;
    let _ = plain.split_to(size_of::<u32>());
    if length > plain.len() {
        return Err(damaged());
    }
    let head = plain.split_to(length);
    let message = message_head::decode(&head, plain).map_err(io::Error::other)?;
    Ok(Message { id: id.clone(), ..message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Arguments, Envelope};

    fn message(arguments: &impl serde::Serialize) -> Message {
        Envelope::new("demo.refund", Arguments::of(arguments).unwrap()).encode()
    }

    #[test]
    fn a_packed_message_is_read_unchanged_and_small() {
        let message = message(&("order-17", 20_000));
        let packed = pack(&message.id, &message).unwrap();
        assert_eq!(unpack(&message.id, &packed).unwrap(), message);
        assert!(packed.len() * 2 < message.to_json().len(), "{}", packed.len());
    }

    #[test]
    fn a_large_message_is_read_unchanged() {
        let text: String =
            (0..200_000_u32).map(|n| char::from(b'a' + (n % 1009 * n % 23) as u8)).collect();
        let message = message(&(text,));
        assert_eq!(unpack(&message.id, &pack(&message.id, &message).unwrap()).unwrap(), message);
    }

    #[test]
    fn a_damaged_message_is_an_error() {
        let message = message(&(1,));
        let (id, packed) = (&message.id, pack(&message.id, &message).unwrap());
        for damaged in [&[][..], &[0], &[FORMAT], &packed[..packed.len() / 2], &packed[1..]] {
            assert!(unpack(id, damaged).is_err());
        }
        let mut other = packed;
        other[0] = FORMAT + 1;
        assert!(unpack(id, &other).unwrap_err().to_string().contains("newer version"));
    }
}
