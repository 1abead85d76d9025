//! How a task can end, as far as one worker is concerned.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::error::Failure;
use crate::protocol::Document;

/// The closed set of what can become of a delivery. One function, `worker::settle`, turns each
/// into a durable effect and then the ack.
#[derive(Debug)]
pub enum Outcome {
    /// The handler answered; its answer as JSON.
    Done(Box<RawValue>),
    /// The handler gave up, timed out or panicked.
    Failed(Failure),
    /// The handler gave up, and is tried again.
    Retry {
        /// How it gave up.
        failure: Failure,
        /// After this long.
        pause: Duration,
        /// When its first attempt began.
        first_began: Timestamp,
    },
    /// It may not start before this long has passed.
    Postponed(Duration),
    /// It began, and only a newer worker can go on with it.
    Outdated,
    /// It waits for decisions, and is resumed by one.
    Parked,
    /// It must not run: it expired, or somebody took it back.
    Revoked(&'static str),
    /// It has run before: this is its result.
    Known(Document),
    /// Another copy of its message runs it, or has.
    Repeated,
    /// Another task is suspended under its id; as text for people.
    Occupied(String),
    /// It asks for something that cannot be done here, and was not started.
    Refused(Failure),
    /// It ended its worker again and again.
    Convicted {
        /// So many times.
        runs: u32,
        /// So many of them while nothing else ran.
        alone: u32,
    },
    /// It was running during crashes of workers: a process of its own is to run it.
    Quarantined,
    /// No handler of this worker has its name.
    Unknown,
    /// The worker drains, and another one will run it.
    Released,
    /// It was to be suspended, and the broker refuses what that takes: it is tried again later.
    Withheld,
    /// The broker has taken its message back before it could begin: another delivery runs it.
    TakenBack,
}

impl Outcome {
    /// Whether nothing of the task runs after it.
    #[must_use]
    pub fn ends_its_task(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Failed(_) | Self::Revoked(_))
    }
}
