//! The context of a handler: access to the run that it is part of.

mod approval;
mod entry_sequence;
mod pending_waits;
mod run;
mod sleep;
mod state;
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
pub(crate) use run::{Run, RunServices};
pub use state::{ContextWith, FromContext};
pub use stream::Output;

/// One run of one task, as its handler sees it. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    run: Arc<Run>,
}

impl Context {
    /// Creates the context of a run. `is_rerun`: earlier runs of this task may have stored data.
    pub(crate) fn new(
        envelope: Arc<Envelope>,
        is_rerun: bool,
        cancelled: CancellationToken,
        services: Arc<RunServices>,
    ) -> Self {
        Self { run: Arc::new(Run::new(envelope, is_rerun, cancelled, services)) }
    }

    /// Returns the id of the task. It is the same in every run.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.run.envelope.id
    }

    /// Returns the registered name of the task.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.run.envelope.name
    }

    /// Returns the number of this attempt, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.run.envelope.attempt
    }

    /// Returns a header that the producer set.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&serde_json::Value> {
        self.run.envelope.headers.get(name)
    }

    /// Returns the position of this run in its trace, as a W3C `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> String {
        self.run.trace.to_string()
    }

    /// Completes when this run should end: its soft limit has passed, its task was terminated, or the
    /// deadline of the worker's drain is near.
    pub async fn cancelled(&self) {
        self.run.cancelled.cancelled().await;
    }

    /// Returns whether this run should end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.run.cancelled.is_cancelled()
    }

    /// Runs a critical section that is not interrupted: neither the task's hard limit nor a drain's
    /// deadline ends it, only its own `limit`. Keep it short; the worker's exit waits for it.
    ///
    /// A crash of the process still interrupts it.
    ///
    /// # Errors
    /// The section took longer than `limit`, and was dropped.
    pub async fn protect<T>(
        &self,
        limit: Duration,
        section: impl Future<Output = T>,
    ) -> TaskResult<T> {
        let _guard = self.run.enter_protected(limit);
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
