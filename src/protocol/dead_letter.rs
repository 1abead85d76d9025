//! The headers that record why a message was dead-lettered, in addition to its own headers.

use serde_json::Value;

use super::{Headers, History, Message, SuspendHeader};

/// The reason why the message could not be run.
pub const REASON: &str = "x-countersign-reason";
/// The queue that the message was consumed from.
pub const SOURCE: &str = "x-countersign-queue";
/// The time of dead-lettering.
pub const DIED_AT: &str = "x-countersign-at";
/// The time when a worker first had no handler for the message.
pub const UNKNOWN_SINCE: &str = "x-countersign-unknown-since";

/// The reason why the properties or headers of a message could not be read.
pub const UNREADABLE: &str = "x-countersign-unreadable";
/// Their bytes, in base64.
pub const RAW_HEADERS: &str = "x-countersign-raw-headers";

/// The contents of a dead letter's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterHeaders {
    /// The task's name, if it has a readable one.
    pub task: Option<String>,
    /// The reason why the message could not be run.
    pub reason: Option<String>,
    /// The queue that the message was consumed from.
    pub queue: Option<String>,
    /// The time of dead-lettering, in ISO 8601.
    pub died_at: Option<String>,
    /// The last attempt, from 1.
    pub attempt: Option<u64>,
    /// The failures of the previous attempts; for a task during which workers crashed, the number of crashes.
    pub history: History,
}

impl DeadLetterHeaders {
    /// Reads the headers; ignores a header with a wrong type.
    #[must_use]
    pub fn read(headers: &Headers) -> Self {
        let text = |name| headers.get(name).and_then(Value::as_str).map(str::to_owned);
        Self {
            task: text("task"),
            reason: text(REASON).or_else(|| text(UNREADABLE)),
            queue: text(SOURCE),
            died_at: text(DIED_AT),
            attempt: headers.get("retries").and_then(Value::as_u64).map(|n| n.saturating_add(1)),
            history: History::read(headers),
        }
    }
}

impl Message {
    /// Returns the message of a dead letter for another run: a first attempt, without the headers that
    /// dead-lettering added.
    #[must_use]
    pub fn revived(mut self) -> Self {
        self.strip_history();
        SuspendHeader::remove(&mut self.headers);
        History::remove(&mut self.headers);
        for name in [REASON, SOURCE, DIED_AT, UNKNOWN_SINCE, UNREADABLE, RAW_HEADERS] {
            self.headers.remove(name);
        }
        if self.headers.get("retries").is_some_and(Value::is_number) {
            self.headers.insert("retries".into(), Value::from(0));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::error::Failure;
    use crate::protocol::{Attempt, Properties};

    #[test]
    fn a_dead_letter_is_revived_as_a_first_attempt() {
        let Value::Object(mut headers) = json!({
            "id": "x", "task": "t", "retries": 3, "mine": "kept", "x-death": [],
            REASON: "no handler for t", SOURCE: "q", DIED_AT: "2026-11-21T00:00:00Z",
        }) else {
            unreachable!()
        };
        let failure = Failure::new("builtins", "ValueError", "no");
        let attempt = Attempt::failed(3, &failure, Timestamp::UNIX_EPOCH, Some("w"));
        History::add(&mut headers, attempt.clone());
        let dead_letter = DeadLetterHeaders::read(&headers);
        assert_eq!(dead_letter.history.attempts, [attempt]);
        assert_eq!(dead_letter.reason.as_deref(), Some("no handler for t"));
        assert_eq!(dead_letter.attempt, Some(4));
        let properties = Properties::default();
        let message =
            Message { id: "x".into(), headers: headers.into(), body: Bytes::new(), properties };
        let headers = Value::Object(message.revived().headers.into());
        assert_eq!(headers, json!({"id": "x", "task": "t", "retries": 0, "mine": "kept"}));
    }
}
