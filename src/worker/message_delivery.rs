//! A delivered message, and the ways to settle it that need no copy.

use std::sync::Arc;

use tracing::error;

use super::state::WorkerState;
use crate::backend::{Delivery, Queue, Recorded};
use crate::task::TaskId;

/// A delivered message that this worker must settle: ack, requeue or dead-letter.
pub(super) struct MessageDelivery {
    pub(super) state: Arc<WorkerState>,
    /// The queue whose tasks the consumer runs. The message may have come from one of its companion
    /// queues.
    pub(super) queue: Queue,
    pub(super) delivery: Delivery,
}

impl MessageDelivery {
    /// Returns the id of its task.
    pub(super) fn id(&self) -> &TaskId {
        self.delivery.id()
    }

    /// Acks the message.
    pub(super) fn ack(self, recorded: Recorded) {
        ack(self.delivery, recorded);
    }

    /// Requeues the message.
    pub(super) fn requeue(self) {
        let _ = self.delivery.release();
    }

    /// Requeues a message whose processing had started, and reports its task as abandoned.
    pub(super) fn abandon(self) {
        self.state.report_abandoned(self.delivery.id());
        self.requeue();
    }
}

/// Acks a message.
pub(super) fn ack(delivery: Delivery, recorded: Recorded) {
    match delivery.ack(recorded) {
        Ok(_settled) => {}
        Err(delivery) => {
            error!(
                task.id = %delivery.id(),
                "cannot ack the message, requeueing it: the stored outcome is of another task"
            );
            let _ = delivery.release();
        }
    }
}
