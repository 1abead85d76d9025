//! The outbox: resume messages that are not known to be sent.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::sealed;
use crate::error::Error;
use crate::task::TaskId;

/// After this time, a process that publishes its own resume message has done so.
pub(in crate::backend) const OVERDUE: Duration = Duration::from_secs(1);
/// The most outbox entries, and the most overdue requests, that one sweep processes.
pub(in crate::backend) const SWEEP_LIMIT: u32 = 500;

/// A decision that a task waits for: it must be announced to the workers of its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The task.
    pub task: TaskId,
    /// The number of the suspension that it resumes from.
    pub number: u64,
    /// The queue whose workers resume it.
    pub queue: String,
    pub(in crate::backend) entry: String,
}

impl Resume {
    /// Parses an entry of the outbox: task, number and queue, as JSON strings.
    pub(in crate::backend) fn read(entry: &str) -> Option<Self> {
        let (task, number, queue): (TaskId, String, String) = serde_json::from_str(entry).ok()?;
        let number = number.parse().ok()?;
        Some(Self { task, number, queue, entry: entry.to_owned() })
    }
}

/// Keeps the outbox. A part of [`super::Store`], and sealed like it.
///
/// Calls give up like those of [`super::Approvals`]. All may be repeated.
pub trait Outbox: sealed::Sealed {
    /// Deletes the outbox entry of a resume message that the broker has confirmed.
    fn resume_sent(&self, resume: &Resume) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns the resume messages that the caller must publish: entries of the outbox that are older
    /// than a second, and new ones for the tasks whose requests are overdue by the store's clock. Other
    /// callers do not get them for a while. Closed requests are removed from the list of open ones.
    fn overdue_resumes(&self) -> BoxFuture<'_, Result<Vec<Resume>, Error>>;
}
