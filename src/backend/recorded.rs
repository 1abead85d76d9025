//! The proof that the outcome of a task is durable.

use crate::task::TaskId;

/// Proof that the outcome of a task is durable: its result is stored, or the broker has confirmed a copy.
#[derive(Debug)]
#[must_use = "a proof is there to be acked with"]
pub struct Recorded {
    pub(super) id: TaskId,
}

impl Recorded {
    pub(in crate::backend) fn new(id: TaskId) -> Self {
        Self { id }
    }
}
