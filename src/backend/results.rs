//! Results of tasks, and the waits for them.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{AuditAction, Recorded, sealed};
use crate::error::Error;
use crate::protocol::{Document, State};
use crate::task::TaskId;

/// The result of a task, to be stored.
#[derive(Clone, Debug)]
pub struct StoreResult {
    /// The result document.
    pub document: Document,
    /// The reply channel of the waiting process, in addition to Celery's own channel of the task.
    pub reply_to: Option<String>,
    /// When the task's message was received, if this was a first attempt whose message was not delivered
    /// before: the result then replaces a failure or a revocation of the same id that is older than this.
    pub received: Option<Timestamp>,
}

/// The outcome of [`Results::forget`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forget {
    /// All data of the task are deleted.
    Forgotten,
    /// The task may still run, and nothing was deleted. Contains its state, if there is one.
    Unfinished(Option<State>),
}

/// The process that published a task. It determines the channel on which its result arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process, with [`Results::reply_channel`] as the `reply_to`, under a new random id.
    Own,
    /// The same, under an id that the caller has chosen: an earlier task may have had it, so a notification
    /// only causes a read of the stored result.
    OwnGivenId,
    /// Another process: the store subscribes to the task's own channel.
    Foreign,
}

/// Keeps the results of tasks. A part of [`super::Store`], and sealed like it.
pub trait Results: sealed::Sealed {
    /// Stores a result and wakes its waiters, atomically. The first terminal result of a task is kept;
    /// a later one changes nothing and also returns a proof. As in Celery, only a success is final for
    /// an id that is reused: [`StoreResult::received`] says which older failure or revocation is
    /// replaced. A result expires after `result_expires`; a suspended state is kept until another state
    /// replaces it. Waits while the store is unreachable, without limit: drop the future to give up.
    fn store_result(&self, result: StoreResult) -> BoxFuture<'_, Result<Recorded, Error>>;

    /// Returns the proof for a task whose result is not to be stored.
    fn ignore_result(&self, id: &TaskId) -> Recorded;

    /// Returns the result document that is stored now.
    fn read_result(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<Document>, Error>>;

    /// Resolves with the task's terminal document: subscribes, reads, waits, and reads again after
    /// every reconnect. Fails with a timeout error after `timeout`. The receiver may be awaited on any
    /// executor; dropping it ends the wait.
    fn watch_result(
        &self,
        id: TaskId,
        origin: Origin,
        timeout: Option<Duration>,
    ) -> oneshot::Receiver<Result<Box<Document>, Error>>;

    /// Deletes a task's failure and writes the audit entry, atomically, and forgets that its first
    /// `attempts` attempts ran. Returns the state that was found. A success is kept, and so is a
    /// revocation unless the action is [`AuditAction::SUPERSEDE`]; no audit entry is written then.
    fn reopen(
        &self,
        action: AuditAction,
        attempts: u64,
    ) -> BoxFuture<'_, Result<Option<State>, Error>>;

    /// Deletes a task's result, journal, stream, attempt and crash marks, and the record of its
    /// suspension, unless it is suspended or its result is not terminal. If there is no result, a
    /// journal or a stream means that the task may be running. For eight days, late messages of the
    /// task are still distinguished from new ones. Gives up like [`Results::read_result`]; may be repeated.
    fn forget(&self, id: &TaskId) -> BoxFuture<'_, Result<Forget, Error>>;

    /// Returns the channel on which the results of this process's own tasks arrive.
    fn reply_channel(&self) -> &str;
}
