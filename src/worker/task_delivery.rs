//! A delivered task: its message, decoded, and the claim of the task.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tracing::warn;

use super::claim::Claim;
use super::message_delivery::MessageDelivery;
use super::results;
use super::state::WorkerState;
use crate::backend::{Delivery, Queue};
use crate::clock;
use crate::protocol::Envelope;

/// A delivered task that this worker must settle. The methods that settle it are in `settle` and
/// `final_result`; they consume it, boxed, so that their futures stay small.
pub(super) struct TaskDelivery {
    pub(super) state: Arc<WorkerState>,
    /// The queue whose tasks the consumer runs. The message may have come from one of its companion
    /// queues; see [`Claim::source_queue`].
    pub(super) queue: Queue,
    pub(super) delivery: Delivery,
    pub(super) envelope: Arc<Envelope>,
    pub(super) claim: Claim,
}

impl TaskDelivery {
    pub(super) fn new(message: MessageDelivery, envelope: Envelope, claim: Claim) -> Self {
        let MessageDelivery { state, queue, delivery } = message;
        Self { state, queue, delivery, envelope: Arc::new(envelope), claim }
    }

    /// Returns the message, to settle it without regard to its task.
    pub(super) fn into_message(self) -> MessageDelivery {
        self.split().0
    }

    /// Returns the parts: the message, to be settled while the others are used.
    pub(super) fn split(self) -> (MessageDelivery, Arc<Envelope>, Claim) {
        let Self { state, queue, delivery, envelope, claim } = self;
        (MessageDelivery { state, queue, delivery }, envelope, claim)
    }

    /// Returns when the message was received if it was never delivered before and is the first of its
    /// task.
    pub(super) fn first_received(&self) -> Option<Timestamp> {
        let is_first =
            !self.delivery.redelivered && self.envelope.attempt == 1 && !self.claim.has_header();
        let ago = SignedDuration::try_from(self.delivery.received.elapsed()).ok()?;
        is_first.then(|| clock::now().saturating_sub(ago).ok()).flatten()
    }

    /// Removes the failure or revocation of an earlier task with this id before the task continues by
    /// another message; see [`results::remove_older_result`]. An error is only logged.
    pub(super) async fn remove_older_result(&self) {
        let Self { state, queue, envelope, .. } = self;
        let Some(received) = self.first_received() else { return };
        let removing = results::remove_older_result(state, queue, envelope, received);
        if let Some(Err(error)) = state.end_waits.run_until_cancelled(removing).await {
            warn!(task.id = %envelope.id, "cannot look for an older result of this id: {error}");
        }
    }

    /// Releases the claim of the task.
    pub(super) async fn release_claim(&mut self) {
        self.claim.release(&self.state, &self.envelope.id).await;
    }
}
