//! The public builder of a worker.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::checks::Check;
use super::child_process::ChildProcess;
use super::drain::DrainReport;
use super::health::HealthHandle;
#[cfg(feature = "unstable")]
use super::report::{Observer, RunReport};
use super::setup::Setup;
use crate::backend::Queue;
use crate::client::Client;
use crate::error::Error;

/// A worker that is about to start: its queues, its concurrency, and its handlers.
///
/// `S` is the type of its state, which its handlers share; see [`Worker::with_state`]. A worker without
/// state is a `Worker`.
#[must_use = "a worker works when it is run"]
pub struct Worker<S = ()> {
    pub(super) setup: Setup,
    pub(super) state: Arc<S>,
}

impl Worker {
    /// Creates a worker on this client's connections, without any queue.
    pub fn new(client: &Client) -> Self {
        let setup = Setup::new(client);
        Self { setup, state: Arc::new(()) }
    }
}

impl<S> Worker<S> {
    /// Returns the client of this worker.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.setup.client
    }

    /// Adds a queue to consume.
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.setup.queues.push((Queue::configured(name, self.setup.client.config()), None));
        self
    }

    /// Adds a queue to consume, and runs at most `concurrency` of its tasks at once.
    pub fn queue_limited(mut self, name: impl Into<String>, concurrency: usize) -> Self {
        let queue = Queue::configured(name, self.setup.client.config());
        self.setup.queues.push((queue, Some(concurrency)));
        self
    }

    /// Sets how long a task without a handler here may wait for a worker that has one, before it is
    /// dead-lettered. Zero by default; a minute is suitable for rolling deploys.
    pub fn unknown_grace(mut self, grace: Duration) -> Self {
        self.setup.unknown_grace = grace;
        self
    }

    /// Cuts a drain short when `signal` completes: messages of running tasks are requeued at once.
    pub fn force_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.setup.force_shutdown = Box::pin(signal);
        self
    }

    /// Runs quarantined tasks in a child process that `start` describes, instead of holding all other
    /// tasks back while one runs. A task is quarantined when it was running during two crashes of
    /// workers.
    ///
    /// The child must build the same worker, call [`Worker::isolated`] on it, and stop when its standard
    /// input ends. [`run_worker`](crate::run_worker) does all of that.
    pub fn isolate(
        mut self,
        start: impl Fn() -> std::process::Command + Send + Sync + 'static,
    ) -> Self {
        self.setup.child_process = Some(ChildProcess::new(start));
        self
    }

    /// Makes this the child of a worker that isolates quarantined tasks: it consumes only quarantined
    /// tasks, one at a time, and ends when there have been none for ten seconds.
    pub fn isolated(mut self) -> Self {
        self.setup.child_process = None;
        self.setup.is_isolated = true;
        self.setup.concurrency = 1;
        self.setup.prefetch = Some(1);
        self.setup.name.push_str("-quarantine");
        self
    }

    /// Sets how many tasks run at once. Default: 16.
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.setup.concurrency = tasks;
        self
    }

    /// Sets how many unsettled messages of each queue the broker delivers in advance. Default: twice the
    /// concurrency.
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.setup.prefetch = Some(messages);
        self
    }

    /// Sets how long a drain waits for running tasks. Default: 30 seconds.
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.setup.drain_deadline = deadline;
        self
    }

    /// Sets the name of the worker in logs and in the broker's lists.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.setup.name = name.into();
        self
    }

    /// Adds a check of a dependency of the handlers. It runs whenever the checks are requested; see
    /// [`HealthHandle::run_checks`].
    ///
    /// ```
    /// # fn with_check(worker: countersign::Worker) -> countersign::Worker {
    /// worker.check("scratch space", || async { std::fs::metadata("/tmp").map(drop) })
    /// # }
    /// ```
    pub fn check<F, Fut, E>(mut self, name: &str, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        self.setup.checks.push(Check::new(name, check));
        self
    }

    /// Calls `report` at the end of every run. It must not block.
    #[cfg(feature = "unstable")]
    pub fn observe(mut self, report: impl Fn(RunReport) + Send + Sync + 'static) -> Self {
        self.setup.observer = Observer::new(report);
        self
    }

    /// Returns a handle that reports the health of this worker while it runs. Call it before
    /// [`Worker::run`].
    #[must_use]
    pub fn health(&self) -> HealthHandle {
        HealthHandle::new(self.setup.health.subscribe(), self.setup.checks.clone())
    }

    /// Runs until `shutdown` completes, then drains: stops consuming, requeues the messages that have not
    /// started, waits for running tasks (until the drain deadline), and closes the client. Returns the
    /// report of the drain.
    ///
    /// While a server is unreachable, the worker waits for it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), countersign::Error> {
    /// use countersign::{Client, Worker};
    ///
    /// let client = Client::connect("sqlite::memory:").await?;
    /// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    /// // In a program: `countersign::shutdown_signal()`.
    /// let shutdown = async { drop(stopped.await) };
    /// let worker = tokio::spawn(Worker::new(&client).queue("billing").run(shutdown));
    ///
    /// drop(stop);
    /// let report = worker.await.unwrap()?;
    /// assert!(report.is_clean(), "no task was stopped at the deadline");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A configuration error, before anything is consumed.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<DrainReport, Error> {
        self.setup.run(shutdown).await
    }
}

impl<S> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Worker").field(&self.setup).finish()
    }
}
