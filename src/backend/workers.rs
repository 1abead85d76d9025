//! Live workers, and the queues that they have consumed.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::sealed;
use crate::error::Error;
use crate::task::TaskId;

/// How long a queue is remembered after a worker last consumed it.
pub(in crate::backend) const SEEN_QUEUE_RETENTION: Duration =
    Duration::from_secs(30 * 24 * 60 * 60);

/// A worker's heartbeat record. The store keeps it until the next one is overdue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its name.
    pub name: String,
    /// The host that it runs on.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// The queues that it consumes.
    pub queues: Vec<String>,
    /// The task types that it has handlers for. Empty when an older version wrote this record.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// The most tasks that it may run at once.
    pub concurrency: usize,
    /// The number of tasks that it runs now.
    pub running: usize,
    /// The tasks that have run for at least a second, the oldest first: at most [`WorkerInfo::MAX_TASKS`].
    #[serde(default)]
    pub long_running: Vec<RunningTask>,
    /// The number of tasks that have ended since it started.
    pub finished: u64,
    /// Whether it is draining and takes no new tasks.
    pub draining: bool,
    /// When it started.
    pub started: Timestamp,
    /// When it wrote this record.
    pub at: Timestamp,
}

impl WorkerInfo {
    /// The most running tasks that a worker lists.
    pub const MAX_TASKS: usize = 1000;

    /// Returns a key that distinguishes it from every other running worker, even one of the same name.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}#{}#{}", self.name, self.host, self.pid)
    }
}

/// A task that a worker runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTask {
    /// Its id.
    pub id: TaskId,
    /// Its type.
    pub name: String,
    /// The queue that it came from.
    pub queue: String,
    /// The attempt.
    pub attempt: u32,
    /// When this run began.
    pub started: Timestamp,
}

/// Keeps the registrations of live workers, and the names of queues. A part of [`super::Store`], and
/// sealed like it.
pub trait Workers: sealed::Sealed {
    /// Registers a worker for the duration `keep`.
    fn register_worker(
        &self,
        worker: WorkerInfo,
        keep: Duration,
    ) -> BoxFuture<'_, Result<(), Error>>;

    /// Removes the registration of a worker.
    fn unregister_worker(&self, worker: WorkerInfo) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns all registered workers.
    fn list_workers(&self) -> BoxFuture<'_, Result<Vec<WorkerInfo>, Error>>;

    /// Returns the queues that a worker has consumed, or one of our clients has sent tasks to, in the
    /// last 30 days. Queues that only Celery's producers use are not included.
    fn seen_queues(&self) -> BoxFuture<'_, Result<Vec<String>, Error>>;

    /// Remembers a queue that tasks are sent to, in the background: returns at once, and does not
    /// report failures.
    fn remember_queue(&self, queue: &str);
}
