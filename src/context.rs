//! What a handler knows of the run it is part of.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::error::{TaskError, TaskResult};
use crate::protocol::Envelope;
use crate::task::TaskId;
use crate::trace::TraceParent;

/// One run of one task, as its handler sees it. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    run: Arc<Run>,
}

struct Run {
    envelope: Arc<Envelope>,
    trace: TraceParent,
    cancelled: CancellationToken,
    /// How many protected sections it is in.
    protected: watch::Sender<usize>,
    /// How many all runs of the worker are in.
    sections: Arc<AtomicUsize>,
}

impl Context {
    pub(crate) fn new(
        envelope: Arc<Envelope>,
        cancelled: CancellationToken,
        sections: Arc<AtomicUsize>,
    ) -> Self {
        let trace =
            TraceParent::read(&envelope.headers).map_or_else(TraceParent::root, TraceParent::child);
        let protected = watch::Sender::new(0);
        Self { run: Arc::new(Run { envelope, trace, cancelled, protected, sections }) }
    }

    /// The task's id, the same in every run of it.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.run.envelope.id
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.run.envelope.attempt
    }

    /// A header that the producer set.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&serde_json::Value> {
        self.run.envelope.headers.get(name)
    }

    /// This run's place in its trace, as a W3C `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> String {
        self.run.trace.to_string()
    }

    /// Completes when this run ought to end: its soft limit has passed, or the worker's drain is
    /// about to give up waiting for it.
    pub async fn cancelled(&self) {
        self.run.cancelled.cancelled().await;
    }

    /// Whether this run ought to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.run.cancelled.is_cancelled()
    }

    /// Runs a critical section that is not cut: neither the task's hard limit nor a drain's
    /// deadline ends it, only its own `limit`. Keep it short; the worker's exit waits for it.
    ///
    /// A crash of the process cuts it all the same.
    ///
    /// # Errors
    /// The section took longer than `limit`, and was dropped.
    pub async fn protect<T>(
        &self,
        limit: Duration,
        section: impl Future<Output = T>,
    ) -> TaskResult<T> {
        let _inside = Inside::enter(&self.run);
        timeout(limit, section).await.map_err(|_| {
            TaskError::fatal(format!("a protected section took longer than {limit:?}"))
        })
    }

    /// Completes when this run is in no protected section.
    pub(crate) async fn unprotected(&self) {
        let _ = self.run.protected.subscribe().wait_for(|sections| *sections == 0).await;
    }

    pub(crate) fn is_protected(&self) -> bool {
        *self.run.protected.borrow() > 0
    }

    pub(crate) fn trace(&self) -> TraceParent {
        self.run.trace
    }

    pub(crate) fn cancel(&self) {
        self.run.cancelled.cancel();
    }
}

/// Leaves the section however it ends.
struct Inside<'r>(&'r Run);

impl<'r> Inside<'r> {
    fn enter(run: &'r Run) -> Self {
        run.sections.fetch_add(1, Ordering::Relaxed);
        run.protected.send_modify(|sections| *sections += 1);
        Self(run)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.protected.send_modify(|sections| *sections -= 1);
        self.0.sections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("id", self.id()).field("attempt", &self.attempt()).finish()
    }
}
