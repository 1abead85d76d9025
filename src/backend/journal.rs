//! Journals: the results of the finished steps of tasks.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{RunOwner, sealed};
use crate::error::Error;
use crate::protocol::TaskDigest;
use crate::task::TaskId;

/// The data that earlier runs of a task have stored.
#[derive(Clone, Debug, Default)]
pub struct TaskHistory {
    /// The journal's entries, by step name.
    pub steps: HashMap<String, Bytes>,
    /// The steps that have written to the task's stream.
    pub streamed: HashSet<String>,
}

/// Keeps journals. A part of [`super::Store`], and sealed like it.
pub trait Journals: sealed::Sealed {
    /// Returns the data that earlier runs of a task have stored; with a digest, only those of the task with
    /// that digest. Waits while the store is unreachable, without limit: drop the future to give up.
    fn task_history(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<TaskHistory, Error>>;

    /// Records the result of a step. The first record is kept: returns the existing one, or `None` when
    /// this one was written. A journal of another task with the same id is replaced; a fresh run also
    /// replaces the journal of the same task after it has ended. Waits like [`Journals::task_history`]. If
    /// the future is dropped, the entry may be recorded nevertheless.
    fn record_step(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        step: &str,
        entry: Bytes,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Error>>;

    /// Records that the task has ended, before its result is stored: a later message with the same id
    /// and arguments does not use the steps of this one. They are kept as long as the result. Retries
    /// until the store has answered; fails only when the store is closed.
    fn end_history(&self, id: &TaskId, digest: &TaskDigest) -> BoxFuture<'_, Result<(), Error>>;
}
