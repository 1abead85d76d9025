//! Attempts that were claimed, and runs that may have crashed a worker.

use futures_util::future::BoxFuture;

use super::sealed;
use crate::error::Error;
use crate::protocol::TaskDigest;
use crate::task::TaskId;

/// Recorded runs of a task whose end was not recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crashes {
    /// All of these runs.
    pub runs: u32,
    /// The runs during which no other task ran.
    pub alone: u32,
}

/// Keeps marks of attempts and of runs. A part of [`super::Store`], and sealed like it.
pub trait Attempts: sealed::Sealed {
    /// Claims an attempt of a task for one copy of its message; false when another copy has claimed it.
    /// An attempt of another task with the same id does not count.
    fn claim_attempt(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        attempt: u32,
    ) -> BoxFuture<'_, Result<bool, Error>>;

    /// Records that a task runs which may have crashed a worker: `alone`, or while other tasks run.
    fn record_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns the number of recorded runs that have not ended.
    fn crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<Crashes, Error>>;

    /// Removes one recorded run: its worker is alive but has lost the message. The count stays at or
    /// above zero.
    fn forget_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>>;

    /// Removes all recorded runs of a task that has ended.
    fn clear_crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<(), Error>>;
}
