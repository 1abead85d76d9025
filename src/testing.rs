//! Tests of your own handlers: a whole pool in one thread, in memory, with approvers scripted by the
//! test, and with a clock that jumps to the next timer.
//!
//! It uses the same [`Worker`] and the same [`Client`] as in production. Run it where tokio's clock is
//! paused: then an hour's timeout, a retry's backoff or hours without a decision pass at once:
//!
//! ```
//! use std::time::Duration;
//!
//! use countersign::testing::Pool;
//! use countersign::{Context, Task, TaskResult};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Refund { order: String, cents: u64 }
//!
//! impl Task for Refund {
//!     const NAME: &'static str = "billing.refund";
//!     type Output = String;
//! }
//!
//! async fn refund(ctx: Context, task: Refund) -> TaskResult<String> {
//!     let hold = ctx.step("hold", || async { TaskResult::Ok(format!("hold of {}", task.order)) }).await?;
//!     let two_hours = Duration::from_secs(2 * 60 * 60);
//!     let approval = ctx.approval("refund").title(format!("Refund {}?", task.order));
//!     if approval.expires_in(two_hours).await?.is_approved() {
//!         Ok(format!("{} cents by {hold}", task.cents))
//!     } else {
//!         Ok("refused".into())
//!     }
//! }
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
//! # runtime.unwrap().block_on(async {
//! // In a #[tokio::test(start_paused = true)]:
//! let pool = Pool::start(|worker| worker.handle(refund)).await?;
//! pool.on("refund", |request| Some(request.approve("ana")));
//!
//! let run = pool.run(Refund { order: "o-1".into(), cents: 500 }).await;
//! assert_eq!(run.result?, "500 cents by hold of o-1");
//! assert_eq!(run.requests[0].title, "Refund o-1?");
//! assert_eq!(run.steps, ["hold"]);
//!
//! pool.on("refund", |_| None);                   // no decision: the deadline passes
//! let run = pool.run(Refund { order: "o-2".into(), cents: 500 }).await;
//! assert_eq!(run.result?, "refused");
//! # Ok::<(), countersign::Error>(())
//! # }).unwrap();
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

use crate::approval::{ApprovalId, ApprovalRequest, Decision};
use crate::backend::{ApprovalRecord, StreamEntry};
use crate::client::Client;
use crate::error::{Error, Kind};
use crate::protocol::{Arguments, Envelope};
use crate::task::{Task, TaskId};
use crate::worker::{DrainReport, Worker};

/// The queue that [`Pool::run`] uses, and the pool's worker consumes.
pub const QUEUE: &str = "testing";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const FETCH_LIMIT: usize = 10_000;

type Script = Box<dyn Fn(&ApprovalRecord) -> Option<Decision> + Send>;

/// A client, a worker and scripted approvers, in one process and in memory.
pub struct Pool {
    client: Client,
    approvers: Arc<Approvers>,
    stop: oneshot::Sender<()>,
    worker: JoinHandle<Result<DrainReport, Error>>,
    listener: JoinHandle<()>,
}

/// The scripted approvers, and the requests that they received.
#[derive(Default)]
struct Approvers {
    scripts: Mutex<HashMap<String, Script>>,
    requests: Mutex<Vec<ApprovalRequest>>,
}

/// The run of one task to its end.
#[derive(Debug)]
#[non_exhaustive]
pub struct TaskRun<O> {
    /// The id of the task.
    pub id: TaskId,
    /// The task's result, or its failure.
    pub result: Result<O, Error>,
    /// All approval requests of the task, in the order in which the approvers saw them.
    pub requests: Vec<ApprovalRequest>,
    /// The names of the steps and sleeps that the task has recorded, in alphabetical order.
    pub steps: Vec<String>,
    /// The stream entries of the task.
    pub entries: Vec<StreamEntry>,
}

/// A task that a handler has enqueued to a queue that the pool does not consume.
#[derive(Debug)]
#[non_exhaustive]
pub struct Enqueued {
    /// The id of the task.
    pub id: TaskId,
    /// The task's registered name.
    pub name: String,
    /// The task's arguments.
    pub arguments: Arguments,
}

impl Enqueued {
    /// Returns its arguments as the type of a task.
    ///
    /// # Errors
    /// It is another task, or has other arguments.
    pub fn task<T: Task>(&self) -> Result<T, Error> {
        let fault = |cause: String| {
            let what = format!("task {}", self.name);
            Error::new(Kind::Codec { what, cause })
        };
        if self.name != T::NAME {
            return Err(fault(format!("it is not {}", T::NAME)));
        }
        self.arguments.read(T::NAME).map_err(|failure| fault(failure.to_string()))
    }
}

impl Pool {
    /// Starts a pool with the handlers that `build` adds. It consumes [`QUEUE`], and any queue that
    /// `build` adds.
    ///
    /// # Errors
    /// The errors of [`Worker::run`].
    pub async fn start<S: Send + Sync + 'static>(
        build: impl FnOnce(Worker) -> Worker<S>,
    ) -> Result<Self, Error> {
        let client = Client::connect("sqlite::memory:").await?;
        let worker = build(Worker::new(&client).name("testing").queue(QUEUE));
        let health = worker.health();
        let (stop, stopped) = oneshot::channel();
        let worker = tokio::spawn(worker.run(async {
            // If the pool is dropped without a drain, this ends its worker too.
            let _ = stopped.await;
        }));
        let approvers = Arc::new(Approvers::default());
        let new_requests = client.backends().store.new_requests();
        let listener = tokio::spawn(Arc::clone(&approvers).listen(client.clone(), new_requests));
        let pool = Self { client, approvers, stop, worker, listener };
        if let Err(error) = health.ready(START_TIMEOUT).await {
            // The error of the worker itself is clearer.
            return Err(pool.drain().await.err().unwrap_or(error));
        }
        Ok(pool)
    }

    /// Returns the client of this pool, for handlers and for the test.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sets the decision on requests that the handler calls `name` from now on; `None`: no decision.
    pub fn on(
        &self,
        name: &str,
        decide: impl Fn(&ApprovalRecord) -> Option<Decision> + Send + 'static,
    ) {
        lock(&self.approvers.scripts).insert(name.to_owned(), Box::new(decide));
    }

    /// Runs one task to its end, through its retries, sleeps and approvals.
    pub async fn run<T: Task>(&self, task: T) -> TaskRun<T::Output> {
        let id = TaskId::random();
        let result = match self.client.enqueue(task).queue(QUEUE).id(id.as_str()).await {
            Ok(handle) => handle.result().await,
            Err(error) => Err(error),
        };
        let store = &self.client.backends().store;
        let history = store.task_history(&id, None).await.unwrap_or_default();
        let mut steps: Vec<_> = history.steps.into_keys().collect();
        steps.sort();
        let entries = self.entries(&id).await;
        let is_its = |request: &&ApprovalRequest| request.task.as_ref() == Some(&id);
        let requests = lock(&self.approvers.requests).iter().filter(is_its).cloned().collect();
        TaskRun { id, result, requests, steps, entries }
    }

    async fn entries(&self, id: &TaskId) -> Vec<StreamEntry> {
        let mut entries: Vec<StreamEntry> = Vec::new();
        loop {
            let after = entries.last().map_or(0, |entry| entry.number);
            match self.client.backends().store.read_entries(id, after).await {
                Ok(more) if !more.is_empty() => entries.extend(more),
                _ => return entries,
            }
        }
    }

    /// Removes and returns the tasks that handlers have enqueued to a queue that the pool does not
    /// consume, in the order of the queue.
    ///
    /// # Errors
    /// The pool was drained.
    pub async fn enqueued(&self, queue: &str) -> Result<Vec<Enqueued>, Error> {
        let backends = self.client.backends();
        let (fetched, flushed) = backends.broker.fetch(queue, FETCH_LIMIT).await?;
        let mut enqueued = Vec::with_capacity(fetched.len());
        for delivery in fetched {
            let read = Envelope::decode(&delivery.message, self.client.config().max_arguments);
            if let Ok(Envelope { id, name, arguments, .. }) = read {
                enqueued.push(Enqueued { id, name, arguments });
            }
            let removed = backends.store.ignore_result(delivery.id());
            let _ = delivery.ack(removed);
        }
        flushed.wait().await;
        Ok(enqueued)
    }

    /// Drains the pool as SIGTERM drains a worker; returns the report of the drain.
    ///
    /// # Errors
    /// The errors of [`Worker::run`].
    pub async fn drain(self) -> Result<DrainReport, Error> {
        let _ = self.stop.send(());
        self.listener.abort();
        self.worker.await.map_err(|_| Kind::Closed)?
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Approvers {
    /// Receives each approval request, and decides it.
    async fn listen(
        self: Arc<Self>,
        client: Client,
        mut new_requests: broadcast::Receiver<Option<ApprovalId>>,
    ) {
        loop {
            let id = match new_requests.recv().await {
                Ok(Some(id)) => id,
                Ok(None) | Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            let Ok(record) = client.approval(&id).await else { continue };
            let decision =
                lock(&self.scripts).get(&record.request.name).and_then(|decide| decide(&record));
            lock(&self.requests).push(record.request);
            if let Some(decision) = decision {
                // If the decision of the test is refused, the deadline passes.
                let _ = client.decide(&decision).await;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
