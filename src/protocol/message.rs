//! One message as the broker carries it, independent of any client library.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::headers::{RETURNED, is_history};
use super::{Headers, MessageHeaders};
use crate::error::{Error, Kind};
use crate::task::TaskId;

/// The maximum size in bytes of headers to publish. A received table that is larger than a frame (128 KiB)
/// cannot be read, and brokers add headers on the way.
pub const HEADER_LIMIT: usize = 64 * 1024;

/// One message: properties, headers and body, undecoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The task's id: header `id`, else `correlation_id`, else `message_id`, else a random id, so that a
    /// proof of recording can always be matched with its delivery.
    pub id: TaskId,
    /// Application headers.
    pub headers: MessageHeaders,
    /// Body.
    pub body: Bytes,
    /// AMQP basic properties.
    pub properties: Properties,
}

/// The AMQP basic properties that travel with a task, and are kept when it is published again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "named as in AMQP 0-9-1 section 4.2.6")]
pub struct Properties {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    /// Milliseconds, as text.
    pub expiration: Option<String>,
    pub message_id: Option<String>,
    pub app_id: Option<String>,
    pub user_id: Option<String>,
    pub kind: Option<String>,
    pub priority: Option<u8>,
    /// Seconds since the epoch.
    pub timestamp: Option<u64>,
}

/// A message in storage without AMQP.
#[derive(Serialize, Deserialize)]
struct StoredMessage {
    headers: MessageHeaders,
    properties: Properties,
    body: String,
}

#[cfg_attr(not(feature = "unstable"), doc(hidden))]
impl Message {
    /// Returns the whole message as JSON text; [`Message::from_json`] reads it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let (headers, properties) = (self.headers.clone(), self.properties.clone());
        let stored = StoredMessage { headers, properties, body: STANDARD.encode(&self.body) };
        serde_json::to_string(&stored).unwrap_or_default()
    }

    /// Parses the output of [`Message::to_json`] for this task.
    ///
    /// # Errors
    /// If the text is not such a message.
    pub fn from_json(id: TaskId, json: &str) -> Result<Self, Error> {
        let unreadable = |cause: String| {
            let what = format!("the stored message of suspended task {id}");
            Error::new(Kind::Codec { what, cause })
        };
        let StoredMessage { headers, properties, body } =
            serde_json::from_str(json).map_err(|error| unreadable(error.to_string()))?;
        let body = STANDARD.decode(body).map_err(|error| unreadable(error.to_string()))?;
        Ok(Self { id, headers, body: body.into(), properties })
    }

    /// Returns whether the id was read from the message, and is not random.
    #[must_use]
    pub fn names_its_task(&self) -> bool {
        let Properties { correlation_id, message_id, .. } = &self.properties;
        let named = self.headers.text("id");
        named.or(correlation_id.as_deref()).or(message_id.as_deref()) == Some(self.id.as_str())
    }

    /// Drops the largest headers until the rest fits into `limit` bytes; returns their names. Headers that
    /// identify the task are dropped last.
    pub fn fit_headers(&mut self, limit: usize) -> Vec<String> {
        let mut dropped = Vec::new();
        let mut size = self.header_bytes();
        let mut sizes: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| {
                (name != "id" && name != "task", 1 + name.len() + field(value), name.clone())
            })
            .collect();
        sizes.sort();
        while size > limit
            && let Some((_, bytes, name)) = sizes.pop()
        {
            size -= bytes;
            self.headers.remove(&name);
            dropped.push(name);
        }
        dropped
    }

    /// Removes the headers that brokers add when they dead-letter the message: RabbitMQ 3.10 would treat it
    /// as cycling and drop it.
    pub fn strip_history(&mut self) {
        self.headers.retain(|name, _| !is_history(name));
    }

    /// Marks a copy of a message that a worker had received, and may have begun to run. The broker does not
    /// flag the copy as redelivered.
    pub fn mark_returned(&mut self) {
        self.headers.insert(RETURNED.into(), Value::Bool(true));
    }

    /// Returns whether the message is such a copy.
    #[must_use]
    pub fn is_returned(&self) -> bool {
        self.headers.field(RETURNED).is_some()
    }

    /// Returns how often the broker has returned the message to its queue, if the queue counts that.
    #[must_use]
    pub fn delivery_count(&self) -> Option<u64> {
        self.headers.field("x-delivery-count")?.value().as_u64()
    }

    /// Returns an upper bound of the size of the headers as an AMQP table, in bytes. Messages over
    /// [`HEADER_LIMIT`] must not be published.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        4 + table(&self.headers)
    }
}

fn table(entries: &Headers) -> usize {
    entries.iter().map(|(name, value)| 1 + name.len() + field(value)).sum()
}

/// A type byte, then the value; texts, arrays and tables begin with a four byte length.
fn field(value: &Value) -> usize {
    match value {
        Value::Null => 1,
        Value::Bool(_) => 2,
        Value::Number(_) => 9,
        Value::String(text) => 5 + text.len(),
        Value::Array(items) => 5 + items.iter().map(field).sum::<usize>(),
        Value::Object(entries) => 5 + table(entries),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_largest_headers_are_dropped_except_the_id() {
        let Value::Object(headers) = json!({"id": "x".repeat(300), "a": "y".repeat(200), "b": "z"})
        else {
            unreachable!()
        };
        let properties = Properties::default();
        let mut message = Message {
            id: TaskId::from("x"),
            headers: headers.into(),
            body: Bytes::new(),
            properties,
        };
        assert_eq!(message.fit_headers(400), ["a"]);
        assert!(message.header_bytes() <= 400 && message.headers.contains_key("id"));
        assert!(message.fit_headers(400).is_empty());
    }

    #[test]
    fn a_header_table_is_sized_as_amqp_encodes_it() {
        let Value::Object(headers) = json!({"a": "bc", "n": 1, "z": null, "l": [true], "t": {}})
        else {
            unreachable!()
        };
        let message = Message {
            id: TaskId::from("x"),
            headers: headers.into(),
            body: Bytes::new(),
            properties: Properties::default(),
        };
        let a = 2 + 5 + 2;
        let (n, z, l, t) = (2 + 9, 2 + 1, 2 + 5 + 2, 2 + 5);
        assert_eq!(message.header_bytes(), 4 + a + n + z + l + t);
    }
}
