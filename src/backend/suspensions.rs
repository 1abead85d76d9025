//! Suspended tasks.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Recorded, StoreResult, sealed};
use crate::approval::{ApprovalId, ApprovalOutcome, ApprovalRequest};
use crate::error::Error;
use crate::lifecycle::suspension;
use crate::protocol::{Document, Message, SuspendHeader, TaskDigest};
use crate::task::TaskId;

/// How long the record of a task's end is kept.
pub(in crate::backend) const ENDED_RETENTION: Duration =
    Duration::from_millis(suspension::ENDED_RETENTION.unsigned_abs());

/// The action for a message of a task that may have been suspended.
#[derive(Debug)]
pub enum ClaimResult {
    /// Run it: it was never suspended.
    Unclaimed,
    /// Run it under this number.
    Claimed {
        /// The number of the claim.
        number: u64,
        /// The task as it was suspended, where the store has it.
        message: Option<Box<Message>>,
        /// The task's result, if one is stored: the message must not run.
        result: Option<Box<Document>>,
        /// The outcomes of its approval requests.
        outcomes: Vec<ApprovalOutcome>,
    },
    /// Ack it: another message continues the task, or the task has ended.
    Over(Recorded),
    /// Try again after this time.
    Postpone(Duration),
    /// The record of the suspension does not exist any more: the task has failed, or has ended long
    /// ago. See [`crate::lifecycle::suspension::is_lost`].
    StateLost,
    /// A newer version of Countersign has suspended it.
    Newer,
    /// Its suspension has ended. The result shows whether this is a late copy or the same message sent
    /// again; the proof is for a message that stores no result.
    Ended(Recorded),
    /// Another task is suspended under its id. Contains that task, where the store has it.
    Occupied(Option<Box<Message>>),
}

/// A run to be suspended, or one whose next attempt is already published: that one has no approval requests.
#[derive(Clone, Debug)]
pub struct SuspendRequest {
    /// The task.
    pub id: TaskId,
    /// The number of the suspension.
    pub number: u64,
    /// The task's digest.
    pub digest: TaskDigest,
    /// The worker that runs it now.
    pub holder: String,
    /// How long a claim is valid.
    pub lease: Duration,
    /// The task as it will be resumed.
    pub message: Message,
    /// The queue whose workers resume it.
    pub queue: String,
    /// All approval requests that it waits for.
    pub requests: Vec<ApprovalRequest>,
    /// The task sleeps, and is resumed after this duration.
    pub alarm: Option<Duration>,
    /// Approval requests that it made before and does not wait for any more.
    pub abandoned: Vec<ApprovalId>,
}

/// The result of [`Suspensions::suspend`].
#[derive(Debug)]
pub enum SuspendResult {
    /// The task waits. Contains the time until the next deadline.
    Waiting(Recorded, Duration),
    /// These requests are decided: the run continues and keeps the claim.
    Ready(Vec<ApprovalOutcome>),
    /// Another message continues the task.
    Behind(Recorded),
}

/// Keeps suspended tasks. A part of [`super::Store`], and sealed like it.
///
/// Calls give up like those of [`super::Approvals`]. All may be repeated.
pub trait Suspensions: sealed::Sealed {
    /// Claims a task for one of its messages, and returns the action for the message; see
    /// [`crate::lifecycle::suspension::claim`]. The task's result is read in the same step. `digest` is the task's, if the message carries the task.
    fn claim_suspended(
        &self,
        id: &TaskId,
        header: SuspendHeader,
        digest: Option<&TaskDigest>,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<ClaimResult, Error>>;

    /// Claims a task that was never suspended, for a run that is about to send its first wake message;
    /// see [`crate::lifecycle::suspension::begin`].
    fn claim_first(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        starts_anew: bool,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<ClaimResult, Error>>;

    /// Suspends a run, and publishes its approval requests to approvers, atomically.
    fn suspend(&self, request: SuspendRequest) -> BoxFuture<'_, Result<SuspendResult, Error>>;

    /// Extends a claim by another `lease`. Returns false when another holder has the claim.
    fn renew_claim(
        &self,
        id: &TaskId,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<bool, Error>>;

    /// Releases a claim, so that other messages need not wait for its lease to end.
    fn release_claim(&self, id: &TaskId, holder: &str) -> BoxFuture<'_, Result<(), Error>>;

    /// Records that a suspended task has ended, and withdraws its open approval requests; returns their
    /// ids. Changes nothing when another task with its id is suspended by now.
    fn end_suspended(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>>;

    /// Stores the result of a suspended task as [`super::Results::store_result`] does, and records its end as
    /// [`Suspensions::end_suspended`] does, in one step. Waits while the store is unreachable, without limit:
    /// drop the future to give up.
    fn finish_suspended(
        &self,
        result: StoreResult,
        digest: &TaskDigest,
    ) -> BoxFuture<'_, Result<(Recorded, Vec<ApprovalId>), Error>>;
}

/// Joins ids to their stored form.
pub(in crate::backend) fn joined(ids: &[ApprovalId]) -> String {
    ids.iter().map(ApprovalId::as_str).collect::<Vec<_>>().join(" ")
}
