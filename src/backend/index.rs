//! Lookups for operators: queues that tasks are sent to, suspended tasks, failed tasks, and ids by prefix.

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::sealed;
use crate::approval::ApprovalId;
use crate::error::Error;
use crate::task::TaskId;

/// The most failed tasks that Redis lists. Each can be looked up by its id while its result is kept.
pub(in crate::backend) const FAILED_LISTED: u32 = 10_000;

/// A task that failed and is not retried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTask {
    /// Its id.
    pub id: TaskId,
    /// Its type.
    pub name: String,
    /// The queue that it came from.
    pub queue: String,
    /// The worker that ran it.
    pub worker: String,
    /// The attempt that failed.
    pub attempt: u32,
    /// The error, shortened.
    pub error: String,
    /// When it failed.
    pub at: Timestamp,
    /// Whether its result is stored, too. A stored result with another state is newer than this record.
    pub has_result: bool,
}

/// A task that waits for a decision or a timer, and occupies no worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuspendedTask {
    /// Its id.
    pub id: TaskId,
    /// Its type, if its stored message can be decoded.
    pub name: Option<String>,
    /// The queue whose workers resume it.
    pub queue: String,
    /// The approval requests that it waits for.
    pub approvals: Vec<ApprovalId>,
    /// When its sleep ends.
    pub wakes_at: Option<Timestamp>,
}

/// Records and finds tasks and queues for operators. A part of [`super::Store`], and sealed like it.
///
/// Every call fails with a connection error when the store does not answer. Over Redis the calls that
/// list suspended tasks or resolve a prefix scan every key of the database, for at most ten seconds:
/// they are for operators.
pub trait TaskIndex: sealed::Sealed {
    /// Records that a task failed. The record expires with results.
    fn record_failure(&self, failed: FailedTask) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns the latest recorded failures, newest first, at most `limit`.
    fn failed_tasks(&self, limit: usize) -> BoxFuture<'_, Result<Vec<FailedTask>, Error>>;

    /// Returns the recorded failure of a task.
    fn failed_task(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<FailedTask>, Error>>;

    /// Returns suspended tasks, in no particular order, at most `limit`.
    fn suspended_tasks(&self, limit: usize) -> BoxFuture<'_, Result<Vec<SuspendedTask>, Error>>;

    /// Returns the suspension of a task; `None` when it is not suspended.
    fn suspended_task(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<SuspendedTask>, Error>>;

    /// Returns the tasks with a result or a suspension whose ids start with `prefix`, at most `limit`.
    fn task_ids(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<TaskId>, Error>>;

    /// Returns the approval requests whose ids start with `prefix`, at most `limit`.
    fn approval_ids(
        &self,
        prefix: &str,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>>;
}
