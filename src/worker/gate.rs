//! What must be free before a task starts.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The slots of a worker.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    slots: Arc<Semaphore>,
    size: usize,
}

/// The right to run one task. It is free again when the last clone of it is dropped.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "held, not read")]
pub(super) struct Slot {
    permit: Arc<OwnedSemaphorePermit>,
    /// One of its queue's own, if that has a limit.
    of_queue: Option<Arc<OwnedSemaphorePermit>>,
}

impl Slot {
    /// The same slot, which also holds one of its queue.
    pub(super) fn within(self, queue: Option<Self>) -> Self {
        Self { of_queue: queue.map(|queue| queue.permit), ..self }
    }
}

impl Gate {
    pub(super) fn new(size: usize) -> Self {
        let size = size.min(Semaphore::MAX_PERMITS);
        Self { slots: Arc::new(Semaphore::new(size)), size }
    }

    /// A slot, if one is free at this moment.
    pub(super) fn try_acquire(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(Slot { permit: Arc::new(permit), of_queue: None })
    }

    /// Waits for a free slot. Cancel safe.
    pub(super) async fn acquire(&self) -> Slot {
        match Arc::clone(&self.slots).acquire_owned().await {
            Ok(permit) => Slot { permit: Arc::new(permit), of_queue: None },
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// How many slots there are.
    pub(super) fn size(&self) -> usize {
        self.size
    }
}
