//! The concurrency limits of a worker and its queues.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A limit on the number of tasks that run at once.
#[derive(Clone, Debug)]
pub(super) struct ConcurrencyLimit {
    semaphore: Arc<Semaphore>,
    size: usize,
}

/// The right to run one task: a permit of the worker, and one of its queue if the queue has a limit. The
/// permits are released when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Permit {
    permit: Option<Arc<OwnedSemaphorePermit>>,
    limit: ConcurrencyLimit,
    queue_permit: Option<Box<Self>>,
}

impl Permit {
    fn new(permit: OwnedSemaphorePermit, limit: &ConcurrencyLimit) -> Self {
        Self { permit: Some(Arc::new(permit)), limit: limit.clone(), queue_permit: None }
    }

    /// Returns the same permit, which also holds one of its queue.
    pub(super) fn with_queue_permit(self, queue_permit: Option<Self>) -> Self {
        Self { queue_permit: queue_permit.map(Box::new), ..self }
    }

    /// Releases the permits for other tasks, until [`Permit::reacquire`].
    pub(super) fn release(&mut self) {
        self.permit = None;
        if let Some(queue_permit) = &mut self.queue_permit {
            queue_permit.permit = None;
        }
    }

    /// Waits for the permits again, in the order in which consumers acquire them. Cancel safe.
    pub(super) async fn reacquire(&mut self) {
        if let Some(queue_permit) = &mut self.queue_permit {
            queue_permit.permit = queue_permit.limit.acquire().await.permit;
        }
        self.permit = self.limit.acquire().await.permit;
    }
}

impl ConcurrencyLimit {
    pub(super) fn new(size: usize) -> Self {
        let size = size.min(Semaphore::MAX_PERMITS);
        Self { semaphore: Arc::new(Semaphore::new(size)), size }
    }

    /// Returns a permit if one is free at this moment.
    pub(super) fn try_acquire(&self) -> Option<Permit> {
        let permit = Arc::clone(&self.semaphore).try_acquire_owned().ok()?;
        Some(Permit::new(permit, self))
    }

    /// Waits for a free permit. Cancel safe.
    pub(super) async fn acquire(&self) -> Permit {
        match Arc::clone(&self.semaphore).acquire_owned().await {
            Ok(permit) => Permit::new(permit, self),
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns the total number of permits.
    pub(super) fn size(&self) -> usize {
        self.size
    }
}
