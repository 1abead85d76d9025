//! Why a message is among the dead letters: headers of ours beside its own.

use serde_json::Value;

use super::{Headers, History, Message, Ticket};

/// Why it could not be run.
pub const REASON: &str = "x-countersign-reason";
/// The queue it came from.
pub const SOURCE: &str = "x-countersign-queue";
/// When it died.
pub const DIED_AT: &str = "x-countersign-at";
/// When a worker first had no handler for it.
pub const UNKNOWN_SINCE: &str = "x-countersign-unknown-since";

/// On a message whose properties or headers could not be read: why not.
pub const UNREADABLE: &str = "x-countersign-unreadable";
/// Their bytes, in base64.
pub const RAW_HEADERS: &str = "x-countersign-raw-headers";

/// What a dead letter says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epitaph {
    /// The task's name, if it has a readable one.
    pub task: Option<String>,
    /// Why it could not be run.
    pub reason: Option<String>,
    /// The queue it came from.
    pub queue: Option<String>,
    /// When it died, in ISO 8601.
    pub died_at: Option<String>,
    /// The attempt that was the last, from 1.
    pub attempt: Option<u64>,
    /// How the attempts before that failed; of one that killed its workers, how often.
    pub history: History,
}

impl Epitaph {
    /// Reads what is there; a header of a wrong type says nothing.
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
    /// The message of a dead letter as it is to be run again: a first attempt, without what was
    /// written at its death.
    #[must_use]
    pub fn revived(mut self) -> Self {
        self.strip_history();
        Ticket::remove(&mut self.headers);
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
        let epitaph = Epitaph::read(&headers);
        assert_eq!(epitaph.history.attempts, [attempt]);
        assert_eq!(epitaph.reason.as_deref(), Some("no handler for t"));
        assert_eq!(epitaph.attempt, Some(4));
        let properties = Properties::default();
        let message = Message { id: "x".into(), headers, body: Bytes::new(), properties };
        let headers = Value::Object(message.revived().headers);
        assert_eq!(headers, json!({"id": "x", "task": "t", "retries": 0, "mine": "kept"}));
    }
}
