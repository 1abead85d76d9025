//! The headers that Countersign adds to messages of suspended tasks.

use serde_json::{Value, json};

use super::{DecodeError, Headers, Message, MessageHeaders, Properties};
use crate::task::TaskId;

const HEADER: &str = "x-countersign-ticket";
/// When a wake message was sent, in milliseconds by the store's clock. Version 0.1 does not write it.
const SENT: &str = "x-countersign-sent";
/// The exclusive limit of numbers: below it they are exact as doubles in Lua scripts.
const NUMBER_LIMIT: u64 = 1 << 53;

/// Why a message was sent, and the suspension of its task that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SuspendHeader {
    /// Why the message was sent.
    pub kind: SuspendKind,
    /// The number of the suspension; 0 for a message from before the first one.
    pub number: u64,
}

/// Why a message was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SuspendKind {
    /// Sent by the producer, or for another attempt.
    Original,
    /// Sent after a decision.
    Resume,
    /// Sent before the suspension, delayed until its deadline.
    Wake,
}

impl SuspendHeader {
    /// Reads the suspend header of `message`; `None` for a message of a task that was never suspended.
    ///
    /// # Errors
    /// If the header's value is invalid.
    pub fn read(message: &Message) -> Result<Option<Self>, DecodeError> {
        let Some(field) = message.headers.field(HEADER) else { return Ok(None) };
        let header = field.text().and_then(|text| {
            let (kind, number) = text.split_once(' ')?;
            let kind = match kind {
                "original" => SuspendKind::Original,
                "resume" => SuspendKind::Resume,
                "wake" => SuspendKind::Wake,
                _ => return None,
            };
            let number = number.parse().ok().filter(|number| *number < NUMBER_LIMIT)?;
            Some(Self { kind, number })
        });
        let unreadable =
            || DecodeError::new(format!("header `{HEADER}` is not a valid suspend header"));
        header.map(Some).ok_or_else(unreadable)
    }

    /// Adds the header to a message.
    #[must_use]
    pub fn on(self, mut message: Message) -> Message {
        let kind = match self.kind {
            SuspendKind::Original => "original",
            SuspendKind::Resume => "resume",
            SuspendKind::Wake => "wake",
        };
        let text = format!("{kind} {}", self.number);
        message.headers.insert(HEADER.into(), Value::String(text));
        message
    }

    /// Removes both headers.
    pub fn remove(headers: &mut MessageHeaders) {
        headers.discard([HEADER, SENT]);
    }

    /// Adds the send time to a wake message.
    #[must_use]
    pub fn sent(mut message: Message, at: i64) -> Message {
        message.headers.insert(SENT.into(), Value::from(at));
        message
    }

    /// Returns when a wake message was sent, if it has that header.
    #[must_use]
    pub fn sent_at(message: &Message) -> Option<i64> {
        message.headers.get(SENT).and_then(Value::as_i64)
    }

    /// Returns the message that resumes a task. It has no arguments: they are in the store.
    #[must_use]
    pub fn resume(id: &TaskId, number: u64) -> Message {
        let headers: [(_, Value); 3] =
            [("lang", json!("rust")), ("task", json!("countersign.resume")), ("id", json!(id))];
        let message = Message {
            id: id.clone(),
            headers: Headers::from_iter(headers.map(|(name, value)| (name.to_owned(), value)))
                .into(),
            body: "[[], {}, {}]".into(),
            properties: Properties {
                content_type: Some("application/json".into()),
                content_encoding: Some("utf-8".into()),
                correlation_id: Some(id.to_string()),
                ..Properties::default()
            },
        };
        Self { kind: SuspendKind::Resume, number }.on(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_decoded_and_a_forged_one_is_an_error() {
        let id = TaskId::from("x");
        let message = SuspendHeader::resume(&id, 7);
        let header = SuspendHeader { kind: SuspendKind::Resume, number: 7 };
        assert_eq!(SuspendHeader::read(&message).unwrap(), Some(header));
        for forged in [
            json!(7),
            json!("wake"),
            json!("wake -1"),
            json!("wake 99999999999999999999"),
            json!("x 1"),
        ] {
            let mut message = message.clone();
            message.headers.insert(HEADER.into(), forged);
            assert!(SuspendHeader::read(&message).is_err());
        }
        let mut message = SuspendHeader::sent(message, 5);
        assert_eq!(SuspendHeader::sent_at(&message), Some(5));
        SuspendHeader::remove(&mut message.headers);
        assert_eq!(SuspendHeader::read(&message).unwrap(), None);
        assert_eq!(SuspendHeader::sent_at(&message), None);
    }
}
