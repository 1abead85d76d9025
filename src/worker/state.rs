//! The state that the tasks of a running worker share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::child_process::ChildProcess;
use super::concurrency_limit::ConcurrencyLimit;
use super::handler::RegisteredHandler;
use super::health::Health;
use super::isolation_lock::IsolationLock;
use super::middleware::Middleware;
use super::report::Observer;
use super::revoked::Revoked;
use super::runs::Runs;
use super::store_clock::StoreClock;
use crate::backend::{Backends, Queue};
use crate::client::Client;
use crate::config::Config;
use crate::context::RunServices;
use crate::task::TaskId;

/// The delay before a failed request to the store is repeated.
pub(super) const STORE_RETRY_DELAY: Duration = Duration::from_millis(500);

/// The state that the tasks of a running worker share.
pub(super) struct WorkerState {
    pub(super) client: Client,
    pub(super) backends: Backends,
    pub(super) config: Config,
    pub(super) name: String,
    /// The consumed queues, each with its own concurrency limit if it has one.
    pub(super) queues: Vec<(Queue, Option<ConcurrencyLimit>)>,
    pub(super) prefetch: u16,
    pub(super) concurrency_limit: ConcurrencyLimit,
    /// The process that runs quarantined tasks. Without it they run in this process, alone.
    pub(super) child_process: Option<ChildProcess>,
    /// Whether this worker is the child that runs quarantined tasks.
    pub(super) is_isolated: bool,
    /// How long a message may stay unsettled, from its delivery.
    pub(super) max_unsettled: Duration,
    pub(super) drain_deadline: Duration,
    /// The longest time that a step of any handler may take once its run is to be dropped.
    pub(super) step_grace: Duration,
    /// How long a task without a handler here is requeued for other workers.
    pub(super) unknown_grace: Duration,
    pub(super) isolation_lock: IsolationLock,
    pub(super) revoked: Arc<Revoked>,
    pub(super) runs: Runs,
    pub(super) store_clock: StoreClock,
    pub(super) observer: Observer,
    pub(super) handlers: HashMap<&'static str, RegisteredHandler>,
    pub(super) middlewares: Arc<[Middleware]>,
    /// Tracks the deliveries that are processed now.
    pub(super) tasks: TaskTracker,
    /// Cancelled when runs should end by themselves.
    pub(super) cancel_runs: CancellationToken,
    /// Cancelled when runs are dropped.
    pub(super) drop_runs: CancellationToken,
    /// Cancelled when every wait for a server ends.
    pub(super) end_waits: CancellationToken,
    pub(super) health: watch::Sender<Option<Health>>,
    pub(super) draining: AtomicBool,
    pub(super) finished: AtomicU64,
    /// The number of runs that were in a protected section or a step at the drain deadline.
    pub(super) protected: AtomicU64,
    pub(super) run_services: Arc<RunServices>,
    /// Tasks that had started, and whose messages were returned to their queues.
    pub(super) abandoned: Mutex<Vec<TaskId>>,
}

impl WorkerState {
    /// Returns when the steps and protected sections that run now end by their own limits, if the runs
    /// are dropped at `drop_at`. Returns `drop_at` itself when there are none.
    pub(super) fn sections_end(&self, drop_at: Instant) -> Instant {
        if self.run_services.critical_sections.load(Ordering::Relaxed) == 0 {
            return drop_at;
        }
        let protected =
            *self.run_services.protected_until.lock().unwrap_or_else(PoisonError::into_inner);
        (drop_at + self.step_grace).max(protected.unwrap_or(drop_at))
    }

    /// Reports a task as abandoned: it had started, and its message is returned to its queue.
    pub(super) fn report_abandoned(&self, id: &TaskId) {
        debug!(task.id = %id, "returned to its queue");
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
    }
}
