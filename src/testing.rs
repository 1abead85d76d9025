//! Tests of your own handlers: a whole pool in one thread, in memory, with people who answer as a
//! test says, and by a clock that jumps to whatever is waited for.
//!
//! It is the same [`Worker`] and the same [`Client`] as in production. Run it where tokio's clock is
//! paused, and an hour's timeout, a retry's backoff or hours without a decision are over at once:
//!
//! ```
//! use std::time::Duration;
//!
//! use countersign::testing::Pool;
//! use countersign::{Context, Policy, Task, TaskResult};
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
//!     let asked = ctx.approval("refund").ask(format!("Refund {}?", task.order));
//!     if asked.expires_in(two_hours).await?.is_approved() {
//!         Ok(format!("{} cents by {hold}", task.cents))
//!     } else {
//!         Ok("refused".into())
//!     }
//! }
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
//! # runtime.unwrap().block_on(async {
//! // In a #[tokio::test(start_paused = true)]:
//! let pool = Pool::start(|worker| worker.handle(refund, Policy::default())).await?;
//! pool.on("refund", |asked| Some(asked.approve("ana")));
//!
//! let ran = pool.run(Refund { order: "o-1".into(), cents: 500 }).await;
//! assert_eq!(ran.result?, "500 cents by hold of o-1");
//! assert_eq!(ran.asked[0].title, "Refund o-1?");
//! assert_eq!(ran.steps, ["hold"]);
//!
//! pool.on("refund", |_| None);                   // nobody answers: the deadline passes
//! let ran = pool.run(Refund { order: "o-2".into(), cents: 500 }).await;
//! assert_eq!(ran.result?, "refused");
//! # Ok::<(), countersign::Error>(())
//! # }).unwrap();
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

use crate::approval::{ApprovalId, Decision, Question};
use crate::backend::{Asked, StreamEntry};
use crate::client::Client;
use crate::error::{Error, Kind};
use crate::protocol::{Arguments, Envelope};
use crate::task::{Task, TaskId};
use crate::worker::{Drained, Worker};

/// The queue that [`Pool::run`] uses, and the pool's worker consumes.
pub const QUEUE: &str = "testing";
const START: Duration = Duration::from_secs(60);
const FETCHED: usize = 10_000;

type Answer = Box<dyn Fn(&Asked) -> Option<Decision> + Send>;

/// A client, a worker and people who decide, in one process and in memory.
pub struct Pool {
    client: Client,
    people: Arc<People>,
    stop: oneshot::Sender<()>,
    working: JoinHandle<Result<Drained, Error>>,
    listening: JoinHandle<()>,
}

/// Those who decide, and what they were asked.
#[derive(Default)]
struct People {
    answers: Mutex<HashMap<String, Answer>>,
    asked: Mutex<Vec<Question>>,
}

/// What came of one task.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ran<O> {
    /// Its id.
    pub id: TaskId,
    /// What it answered, or how it failed.
    pub result: Result<O, Error>,
    /// Everything that it asked, in the order in which people saw it.
    pub asked: Vec<Question>,
    /// The names of the steps and sleeps that it has recorded, in alphabetical order.
    pub steps: Vec<String>,
    /// What it has said while it ran.
    pub said: Vec<StreamEntry>,
}

/// A task that a handler has put on its way, to a queue that nobody consumes.
#[derive(Debug)]
#[non_exhaustive]
pub struct Enqueued {
    /// Its id.
    pub id: TaskId,
    /// The task's registered name.
    pub name: String,
    /// Its arguments.
    pub arguments: Arguments,
}

impl Enqueued {
    /// Its arguments as the type of a task.
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
    /// Starts a pool with the handlers that `build` adds. It consumes [`QUEUE`], and what `build`
    /// adds to that.
    ///
    /// # Errors
    /// As those of [`Worker::run`].
    pub async fn start(build: impl FnOnce(Worker) -> Worker) -> Result<Self, Error> {
        let client = Client::connect("sqlite::memory:").await?;
        let worker = build(Worker::new(&client).name("testing").queue(QUEUE));
        let vitals = worker.vitals();
        let (stop, stopped) = oneshot::channel();
        let working = tokio::spawn(worker.run(async {
            // Dropped without a drain, the pool ends its worker all the same.
            let _ = stopped.await;
        }));
        let people = Arc::new(People::default());
        let rings = client.backends().store.questions();
        let listening = tokio::spawn(Arc::clone(&people).listen(client.clone(), rings));
        let pool = Self { client, people, stop, working, listening };
        if let Err(error) = vitals.ready(START).await {
            // What it says itself is clearer.
            return Err(pool.drain().await.err().unwrap_or(error));
        }
        Ok(pool)
    }

    /// The client of this pool, for handlers and for the test.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How questions that the handler calls `name` are answered from now on: by a decision, or by
    /// nobody.
    pub fn on(&self, name: &str, answer: impl Fn(&Asked) -> Option<Decision> + Send + 'static) {
        lock(&self.people.answers).insert(name.to_owned(), Box::new(answer));
    }

    /// Runs one task to its end, through its retries, sleeps and approvals.
    pub async fn run<T: Task>(&self, task: T) -> Ran<T::Output> {
        let id = TaskId::random();
        let result = match self.client.enqueue(task).queue(QUEUE).id(id.as_str()).await {
            Ok(handle) => handle.result().await,
            Err(error) => Err(error),
        };
        let store = &self.client.backends().store;
        let kept = store.kept(&id, None).await.unwrap_or_default();
        let mut steps: Vec<_> = kept.steps.into_keys().collect();
        steps.sort();
        let said = self.said(&id).await;
        let is_its = |question: &&Question| question.task.as_ref() == Some(&id);
        let asked = lock(&self.people.asked).iter().filter(is_its).cloned().collect();
        Ran { id, result, asked, steps, said }
    }

    async fn said(&self, id: &TaskId) -> Vec<StreamEntry> {
        let mut said: Vec<StreamEntry> = Vec::new();
        loop {
            let after = said.last().map_or(0, |entry| entry.number);
            match self.client.backends().store.entries(id, after).await {
                Ok(more) if !more.is_empty() => said.extend(more),
                _ => return said,
            }
        }
    }

    /// Takes out of a queue that the pool does not consume what handlers have enqueued there, in
    /// its order.
    ///
    /// # Errors
    /// The pool was drained.
    pub async fn enqueued(&self, queue: &str) -> Result<Vec<Enqueued>, Error> {
        let backends = self.client.backends();
        let (fetched, flushed) = backends.broker.fetch(queue, FETCHED).await?;
        let mut enqueued = Vec::with_capacity(fetched.len());
        for delivery in fetched {
            let read = Envelope::decode(&delivery.message, self.client.config().max_arguments);
            if let Ok(Envelope { id, name, arguments, .. }) = read {
                enqueued.push(Enqueued { id, name, arguments });
            }
            let taken = backends.store.ignore(delivery.id());
            let _ = delivery.ack(taken);
        }
        flushed.wait().await;
        Ok(enqueued)
    }

    /// Ends the pool as a worker ends at SIGTERM; says what that did.
    ///
    /// # Errors
    /// As those of [`Worker::run`].
    pub async fn drain(self) -> Result<Drained, Error> {
        let _ = self.stop.send(());
        self.listening.abort();
        self.working.await.map_err(|_| Kind::Closed)?
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl People {
    /// Looks at each question that is asked, and answers it.
    async fn listen(
        self: Arc<Self>,
        client: Client,
        mut rings: broadcast::Receiver<Option<ApprovalId>>,
    ) {
        loop {
            let id = match rings.recv().await {
                Ok(Some(id)) => id,
                Ok(None) | Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            let Ok(asked) = client.approval(&id).await else { continue };
            let decision =
                lock(&self.answers).get(&asked.question.name).and_then(|answer| answer(&asked));
            lock(&self.asked).push(asked.question);
            if let Some(decision) = decision {
                // A test that decides wrongly sees the deadline pass.
                let _ = client.decide(&decision).await;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
