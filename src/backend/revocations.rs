//! Revoked tasks.

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::sealed;
use crate::error::Error;
use crate::task::{Revoke, TaskId};

/// A stored mark that revokes a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The task.
    pub id: TaskId,
    /// How the mark affects a run in progress.
    pub revoke: Revoke,
}

/// Keeps the marks of revoked tasks. A part of [`super::Store`], and sealed like it.
pub trait Revocations: sealed::Sealed {
    /// Marks tasks as revoked, and notifies all workers. The marks are durable for a week; beyond
    /// 50,000, the oldest are dropped. Gives up like [`super::Results::read_result`] when the store does
    /// not answer.
    fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns a channel that receives all existing marks first, in one batch even if there are none, then
    /// new ones as they are made. After a reconnect all marks are sent again. Ends when the store is closed.
    fn watch_revocations(&self) -> mpsc::Receiver<Vec<Revocation>>;
}
