//! How the processing of a delivery can end.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::approval::ApprovalId;
use crate::backend::{Crashes, Recorded};
use crate::error::Failure;
use crate::protocol::Document;

/// The closed set of outcomes of a delivery. One function, `TaskDelivery::settle`, turns each into a durable
/// effect and then the ack. An outcome that is durable already carries the proof.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The handler returned this result, as JSON.
    Done(Box<RawValue>),
    /// The handler failed without a retry, timed out or panicked.
    Failed(Failure),
    /// The handler failed, and is retried.
    Retry {
        /// The failure.
        failure: Failure,
        /// The retry delay.
        delay: Duration,
        /// When the first attempt began.
        first_attempt_at: Timestamp,
    },
    /// The task may not start before this time has passed.
    Postponed(Duration),
    /// The limits of its task type delay it for this long.
    Limited(Duration),
    /// The task has begun, and only a newer worker can continue it.
    Outdated,
    /// The task waits for decisions or a timer, and another message resumes it.
    Suspended {
        /// Proves that the suspension is stored, or that the task continues by another message.
        recorded: Recorded,
        /// The requests that the task waits for.
        requests: Vec<ApprovalId>,
    },
    /// The task must not run: it has expired or was revoked.
    Revoked(&'static str),
    /// The task has run before: this is its stored result.
    AlreadyEnded(Document),
    /// Another copy of its message runs it, or has run it.
    Repeated,
    /// Another task is suspended under its id; as text for people.
    Occupied(String),
    /// The task needs a feature that is not supported, and was not started.
    Refused(Failure),
    /// The task crashed its workers repeatedly.
    Poisoned(Crashes),
    /// The task was running when workers crashed: a process of its own must run it.
    Quarantined,
    /// This worker has no handler for its task type.
    Unknown,
    /// The worker drains; another worker will run the task.
    Released,
    /// The task should be suspended, and the broker refuses a message for it: it is retried later.
    SuspensionRefused,
    /// The broker has redelivered the message before the task could begin: another delivery runs it.
    Redelivered,
}

impl Outcome {
    /// Returns whether no run of the task can follow.
    pub(super) fn ends_its_task(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Failed(_) | Self::Revoked(_))
    }
}
