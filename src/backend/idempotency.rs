//! Idempotency keys.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::sealed;
use crate::error::Error;
use crate::task::TaskId;

/// The task that an idempotency key refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyEntry {
    /// The id of the task.
    pub id: TaskId,
    /// Whether the broker has confirmed the task.
    pub sent: bool,
}

/// Keeps idempotency keys. A part of [`super::Store`], and sealed like it.
pub trait IdempotencyKeys: sealed::Sealed {
    /// Assigns `key` to task `id` for the duration `keep`. If the key is assigned already, returns the
    /// task that it refers to.
    fn claim_key(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<IdempotencyEntry, Error>>;

    /// Records that the task of a key was confirmed, unless the key refers to another task by now.
    fn mark_key_sent(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<(), Error>>;
}
