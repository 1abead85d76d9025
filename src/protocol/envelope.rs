//! A task message, decoded: what the rest of Countersign works with.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Arguments, Headers, Properties, body};
use crate::error::Failure;
use crate::task::TaskId;

/// One task on its way: who it is, what to run, with what, and within which limits.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Result key and revoke key.
    pub id: TaskId,
    /// The task's registered name.
    pub name: String,
    /// Positional and keyword arguments, each kept as the producer wrote it.
    pub arguments: Arguments,
    /// Celery's `embed`: callbacks, errbacks, chain and chord, kept as the producer wrote it.
    pub embed: Box<RawValue>,
    /// From 1. On the wire it is `retries`, from 0.
    pub attempt: u32,
    /// Not before this.
    pub eta: Option<Timestamp>,
    /// Not after this.
    pub expires: Option<Timestamp>,
    /// Time limits set by the producer; they override the handler's own.
    pub limits: Limits,
    /// Where it stands in a workflow.
    pub lineage: Lineage,
    /// The producer wants no result stored.
    pub ignore_result: bool,
    /// Where the producer listens: a Redis channel when it begins with `cs:reply:`.
    pub reply_to: Option<String>,
    /// 0 unless set.
    pub priority: u8,
    /// Who sent it, for logs.
    pub origin: Option<String>,
    /// The body is sent compressed.
    pub compressed: bool,
    /// Headers that are none of the above, kept when it is published again. `argsrepr` and
    /// `kwargsrepr` are among them, because a producer may have hidden a secret there.
    pub headers: Headers,
    /// Of these, only `app_id`, `kind` and `timestamp` are kept when it is published again; the
    /// others follow from the fields above, or are the broker's business.
    pub properties: Properties,
}

/// Time limits of one run, as the producer set them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// The handler is told.
    pub soft: Option<Duration>,
    /// The handler is dropped, and the task has failed.
    pub hard: Option<Duration>,
}

/// Where a task stands in a workflow.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "named as in Celery's headers")]
pub struct Lineage {
    pub root_id: Option<TaskId>,
    pub parent_id: Option<TaskId>,
    pub group_id: Option<String>,
    pub group_index: Option<i64>,
}

/// Why a message could not be read as a task.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct Unreadable {
    /// What a person reads in the dead letter.
    pub reason: String,
}

impl Envelope {
    /// A first attempt with a fresh id, bound by nothing.
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
            compressed: false,
            headers: Headers::new(),
            properties: Properties::default(),
        }
    }

    /// The W3C trace context that came with it.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.headers.get("traceparent").and_then(Value::as_str)
    }
}

impl Unreadable {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }

    /// What the waiter is told, where the message's id was readable.
    #[must_use]
    pub fn failure(&self) -> Failure {
        Failure::new("kombu.exceptions", "DecodeError", self.reason.as_str())
    }
}
