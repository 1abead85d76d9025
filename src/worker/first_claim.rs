//! The claim of a run whose task is not known to be suspended: before its first suspension, and before an
//! early ack.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::sleep;
use tracing::warn;

use super::claim::{Lease, occupied_reason};
use super::results::{prior_result, remove_older_result};
use super::state::{STORE_RETRY_DELAY, WorkerState};
use crate::backend::{ClaimResult, Queue, Recorded};
use crate::protocol::{Document, Envelope};

/// The parameters of the claim.
pub(super) struct FirstClaim {
    pub(super) state: Arc<WorkerState>,
    pub(super) queue: Queue,
    pub(super) envelope: Arc<Envelope>,
    /// When its message was received, if it was never delivered before and is the first of its task.
    pub(super) received: Option<Timestamp>,
    pub(super) holder: String,
}

/// The result of a first claim.
pub(super) enum FirstClaimResult {
    /// The run holds the claim. Its suspensions come after this number.
    Claimed(u64, Lease),
    /// Another message continues the task, or the task has ended.
    Over(Recorded),
    /// Another copy of the message has the claim.
    Elsewhere,
    /// Another copy of the message has ended the task. The run holds the claim.
    AlreadyEnded(Box<Document>),
    /// Another task is suspended under its id.
    Occupied(String),
}

impl FirstClaim {
    /// Claims the task. Retries without a limit. Cancel safe: an abandoned claim ends with its lease.
    ///
    /// The suspension that is replaced may be that of another copy of this message which has ended in the
    /// meantime: its result is then stored. The result of an earlier task with this id is removed: the task
    /// continues by other messages, which treat a stored result as their own.
    pub(super) async fn claim(self) -> FirstClaimResult {
        let (store, id) = (&self.state.backends.store, &self.envelope.id);
        let lease = self.state.config.lease;
        let digest = self.envelope.digest();
        // Where no result is stored, only the record shows that a copy of this message has ended.
        let starts_anew = self.received.is_some() || !self.envelope.ignore_result;
        let result = loop {
            match store.claim_first(id, &digest, starts_anew, &self.holder, lease).await {
                Ok(result) => break result,
                Err(error) => {
                    warn!(task.id = %id, "cannot claim the task: {error}; trying again");
                }
            }
            sleep(STORE_RETRY_DELAY).await;
        };
        match result {
            ClaimResult::Claimed { number, result, .. } => {
                let lease = Lease::renewed(&self.state, id, self.holder.clone());
                let own = match result {
                    None => None,
                    Some(document) => self.without_older(document).await,
                };
                own.map_or(FirstClaimResult::Claimed(number, lease), FirstClaimResult::AlreadyEnded)
            }
            ClaimResult::Over(recorded) => FirstClaimResult::Over(recorded),
            ClaimResult::Occupied(suspended) => {
                FirstClaimResult::Occupied(occupied_reason(id, suspended.as_deref()))
            }
            _ => FirstClaimResult::Elsewhere,
        }
    }

    /// Removes the stored result if it is that of an earlier task with this id. Returns the result of this
    /// task. Retries without a limit.
    async fn without_older(&self, stored: Box<Document>) -> Option<Box<Document>> {
        let Some(received) = self.received else { return Some(stored) };
        let Self { state, queue, envelope, .. } = self;
        while let Err(error) = remove_older_result(state, queue, envelope, received).await {
            let id = &envelope.id;
            warn!(task.id = %id, "cannot look for an older result of this id: {error}; trying again");
            sleep(STORE_RETRY_DELAY).await;
        }
        prior_result(state, envelope).await.map(Box::new)
    }
}
