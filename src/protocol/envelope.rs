//! A decoded task message, which the rest of Countersign works with.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{Arguments, MessageHeaders, Properties, body};
use crate::error::Failure;
use crate::task::TaskId;

/// One task: its id, name, arguments and limits.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The task's id, used as the key of its result and of revocations.
    pub id: TaskId,
    /// The task's registered name.
    pub name: String,
    /// Positional and keyword arguments, each kept as the producer wrote it.
    pub arguments: Arguments,
    /// Celery's `embed`: callbacks, errbacks, chain and chord, kept as the producer wrote it.
    pub embed: Box<RawValue>,
    /// The attempt, from 1. On the wire it is `retries`, from 0.
    pub attempt: u32,
    /// The task starts no earlier than this.
    pub eta: Option<Timestamp>,
    /// The task starts no later than this.
    pub expires: Option<Timestamp>,
    /// Time limits set by the producer; they override the handler's own.
    pub limits: Limits,
    /// The task's position in a workflow.
    pub lineage: Lineage,
    /// The producer requests that no result is stored.
    pub ignore_result: bool,
    /// Where the producer waits for the result: a Redis channel if it begins with `cs:reply:`.
    pub reply_to: Option<String>,
    /// The priority; 0 by default.
    pub priority: u8,
    /// The sender, for logs.
    pub origin: Option<String>,
    /// Which headers are written.
    pub form: EnvelopeForm,
    /// Whether the body is sent compressed.
    pub compressed: bool,
    /// All other headers, which are kept when the task is published again. `argsrepr` and `kwargsrepr` are
    /// among them, because a producer may have redacted secrets there.
    pub headers: MessageHeaders,
    /// Only `app_id`, `kind` and `timestamp` are kept when the task is published again; the other properties
    /// follow from the fields above, or belong to the broker.
    pub properties: Properties,
}

/// Which headers a task message has. Every worker reads both forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeForm {
    /// The headers that have a value, without the text of the arguments (`argsrepr`, `kwargsrepr`) and
    /// `shadow`. Flower and logs of Celery workers then show no arguments.
    #[default]
    Lean,
    /// Every header that a Celery client writes.
    Celery,
}

/// Time limits of one run, as the producer set them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// After this time the handler is notified.
    pub soft: Option<Duration>,
    /// After this time the handler is dropped, and the task has failed.
    pub hard: Option<Duration>,
}

/// The position of a task in a workflow.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "unstable", expect(missing_docs, reason = "named as in Celery's headers"))]
pub struct Lineage {
    pub root_id: Option<TaskId>,
    pub parent_id: Option<TaskId>,
    pub group_id: Option<String>,
    pub group_index: Option<i64>,
}

/// The reason why a message could not be decoded as a task.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct DecodeError {
    /// The reason as shown in the dead letter.
    pub reason: String,
}

impl Envelope {
    /// Creates a first attempt with a random id and no limits.
    pub fn new(name: impl Into<String>, arguments: Arguments) -> Self {
        Self {
            id: TaskId::random(),
            name: name.into(),
            arguments,
            embed: body::no_embed(),
            attempt: 1,
            eta: None,
            expires: None,
            limits: Limits::default(),
            lineage: Lineage::default(),
            ignore_result: false,
            reply_to: None,
            priority: 0,
            origin: None,
            form: EnvelopeForm::default(),
            compressed: false,
            headers: MessageHeaders::default(),
            properties: Properties::default(),
        }
    }

    /// Returns the W3C trace context of the message.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.headers.text("traceparent")
    }
}

impl DecodeError {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }

    /// Returns the failure to store for the waiter if the message's id was readable.
    #[must_use]
    pub fn failure(&self) -> Failure {
        Failure::new("kombu.exceptions", "DecodeError", self.reason.as_str())
    }
}
