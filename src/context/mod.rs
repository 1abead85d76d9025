//! What a handler knows of the run it is part of.

mod approval;
mod desk;
mod run;
mod sleep;
mod step;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::error::{TaskError, TaskResult};
use crate::protocol::Envelope;
use crate::task::TaskId;
use crate::trace::TraceParent;

pub use approval::{Approval, Decided, Verdict};
pub(crate) use run::{Run, Surroundings};
pub use stream::Output;

/// One run of one task, as its handler sees it. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    run: Arc<Run>,
}

impl Context {
    /// `is_rerun`: earlier runs of this task may have left something.
    pub(crate) fn new(
        envelope: Arc<Envelope>,
        is_rerun: bool,
        cancelled: CancellationToken,
        around: Arc<Surroundings>,
    ) -> Self {
        Self { run: Arc::new(Run::new(envelope, is_rerun, cancelled, around)) }
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
        let _inside = self.run.enter_protected(limit);
        timeout(limit, section).await.map_err(|_| {
            TaskError::fatal(format!("a protected section took longer than {limit:?}"))
        })
    }

    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    pub(crate) fn trace(&self) -> TraceParent {
        self.run.trace
    }

    pub(crate) fn cancel(&self) {
        self.run.cancelled.cancel();
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("id", self.id()).field("attempt", &self.attempt()).finish()
    }
}
