//! The producer's side: sends tasks and reads their results.

mod approval_service;
mod approvals;
mod audit;
mod dead_letters;
mod enqueue;
mod follow;
mod forget;
mod revoke;
mod sealer;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::backend::{self, Backends, Origin, Queue};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::handle::Handle;
use crate::protocol::Arguments;
use crate::task::{Task, TaskId};

pub use approvals::{ApprovalHandle, Pending, Resolution};
pub use dead_letters::{DeadLetter, DeadLetters, Replay};
pub use enqueue::Enqueue;
pub use follow::Follow;

pub use crate::protocol::{Attempt, Child, Document, Message, Properties};

/// The number of tasks of a batch that are sent concurrently.
const BATCH_WINDOW: usize = 512;
/// The limit of AMQP.
const LONGEST_QUEUE_NAME: usize = 255;
/// How often a client requests the store to remember a queue.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// The maximum number of queues for which one process does this.
const QUEUES_REMEMBERED: usize = 1000;

/// Enqueues tasks and awaits their results. Cheap to clone; one per process is enough.
///
/// Its connections belong to the tokio runtime in which it was created, which must keep running.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    backends: Backends,
    origin: String,
    /// Queues that were checked to have their configured priorities.
    prioritised: Mutex<HashSet<String>>,
    /// When the store was last requested to remember each queue.
    remembered: Mutex<HashMap<String, Instant>>,
}

impl Client {
    /// Connects to the servers, or opens the database, that `config` names: a [`Config`], or the URL of a
    /// database such as `sqlite::memory:`.
    ///
    /// # Errors
    /// A timeout error if the servers do not answer within `config.connect_timeout`; the log has the cause
    /// for each. A configuration error if a URL is invalid. A storage error if a database cannot be opened.
    pub async fn connect<C>(config: C) -> Result<Self, Error>
    where
        C: TryInto<Config>,
        C::Error: Into<Error>,
    {
        let client = Self::start(config)?;
        let config = client.config();
        match tokio::time::timeout(config.connect_timeout, client.connected()).await {
            Ok(()) => Ok(client),
            Err(_) => {
                client.close().await;
                let peer = format!("{} and {}", config.broker_url, config.store_url);
                let cause = format!(
                    "no connection within {} s; are both servers running, and are these the right URLs?",
                    config.connect_timeout.as_secs_f64()
                );
                Err(Kind::Connection { peer, cause }.into())
            }
        }
    }

    /// Starts connecting and returns at once; connection attempts continue until the servers answer. Workers
    /// use this.
    ///
    /// # Errors
    /// A configuration error if a URL is invalid. A storage error if a database cannot be opened.
    pub fn start<C>(config: C) -> Result<Self, Error>
    where
        C: TryInto<Config>,
        C::Error: Into<Error>,
    {
        let config = config.try_into().map_err(Into::into)?;
        let shared = Shared {
            backends: backend::connect(&config)?,
            config,
            origin: format!("gen{}@{}", std::process::id(), hostname()),
            prioritised: Mutex::default(),
            remembered: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Creates a client of a test's own backends.
    #[cfg(feature = "faults")]
    pub fn of(backends: Backends, config: Config) -> Self {
        let origin = format!("gen{}@{}", std::process::id(), hostname());
        let prioritised = Mutex::default();
        let remembered = Mutex::default();
        let shared = Shared { config, backends, origin, prioritised, remembered };
        Self { shared: Arc::new(shared) }
    }

    /// Requests the store, in the background and once a day, to remember a queue that tasks are sent to:
    /// operators see the queue even if no worker ever consumes it.
    fn remember_queue(&self, queue: &str) {
        if queue.is_empty() || queue.len() > LONGEST_QUEUE_NAME || queue.starts_with("amq.") {
            // The broker refuses such a queue.
            return;
        }
        let mut remembered = self.shared.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = match remembered.get(queue) {
            Some(at) => at.elapsed() >= REMEMBERED,
            None => remembered.len() < QUEUES_REMEMBERED,
        };
        if is_due {
            remembered.insert(queue.to_owned(), Instant::now());
            drop(remembered);
            self.backends().store.remember_queue(queue);
        }
    }

    /// Completes when both the broker and the store answer.
    pub async fn connected(&self) {
        self.shared.backends.broker.connected().await;
        self.shared.backends.store.connected().await;
    }

    /// Enqueues a task. Await the builder to send it; it returns once the broker has confirmed the message.
    #[expect(clippy::needless_pass_by_value, reason = "a task is moved, not borrowed")]
    pub fn enqueue<T: Task>(&self, task: T) -> Enqueue<T::Output> {
        let arguments = Arguments::of(&task)
            .map_err(|cause| Kind::Codec { what: T::NAME.into(), cause: cause.to_string() }.into());
        let queue = T::QUEUE.unwrap_or(&self.shared.config.queue);
        Enqueue::new(self, T::NAME, arguments, queue)
    }

    /// Enqueues a task by its name, for example one that is written in Python.
    ///
    /// ```no_run
    /// # async fn example(client: countersign::Client) -> Result<(), countersign::Error> {
    /// use countersign::Arguments;
    /// let sum = client.enqueue_named("demo.add", Arguments::of(&(1, 2))?).queue("demo").await?;
    /// assert_eq!(sum.result().await?, 3);
    /// # Ok(()) }
    /// ```
    pub fn enqueue_named(&self, name: &str, arguments: Arguments) -> Enqueue<Value> {
        Enqueue::new(self, name, Ok(arguments), &self.shared.config.queue)
    }

    /// Enqueues many tasks, 512 concurrently, without waiting for each confirm before sending the next.
    /// Returns the results in the order of the tasks; a failure does not affect the other tasks.
    ///
    /// If the future is dropped, tasks whose sending has begun may still be sent.
    ///
    /// ```no_run
    /// # async fn example(client: countersign::Client) {
    /// use countersign::Arguments;
    ///
    /// let echoes = (0..10_000).map(|n| {
    ///     let arguments = Arguments::of(&(n,)).unwrap_or_default();
    ///     client.enqueue_named("demo.echo", arguments).queue("demo")
    /// });
    /// let sent = client.enqueue_all(echoes).await;
    /// let failed = sent.iter().filter(|sent| sent.is_err()).count();
    /// println!("{failed} of {} were not accepted", sent.len());
    /// # }
    /// ```
    pub async fn enqueue_all<O>(
        &self,
        tasks: impl IntoIterator<Item = Enqueue<O>>,
    ) -> Vec<Result<Handle<O>, Error>>
    where
        O: DeserializeOwned + Send + 'static,
    {
        stream::iter(tasks).map(IntoFuture::into_future).buffered(BATCH_WINDOW).collect().await
    }

    /// Returns the stored document of a task; `None` if there is none: the task waits or runs, was never
    /// enqueued, or its result has expired.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn status(&self, id: &TaskId) -> Result<Option<Document>, Error> {
        self.shared.backends.store.read_result(id).await
    }

    /// Returns the dead letters of a queue.
    #[must_use]
    pub fn dead_letters(&self, queue: &str) -> DeadLetters {
        DeadLetters::new(self, queue)
    }

    /// Returns a handle to a task that any process has enqueued.
    pub fn handle<O: DeserializeOwned>(&self, id: impl Into<TaskId>) -> Handle<O> {
        Handle::new(id.into(), Origin::Foreign, Arc::clone(&self.shared.backends.store))
    }

    /// Ends every wait with an error, flushes pending publishes, and closes the connections.
    pub async fn close(&self) {
        self.shared.backends.broker.close().await;
        self.shared.backends.store.close().await;
    }

    /// Returns the settings that the client was created with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Checks that a queue has its configured priorities, and caches a positive result.
    async fn assure_priorities(&self, queue: &Queue) -> Result<(), Error> {
        let checked = || self.shared.prioritised.lock().unwrap_or_else(PoisonError::into_inner);
        if checked().contains(&queue.name) {
            return Ok(());
        }
        self.shared.backends.broker.declare(queue).await?;
        checked().insert(queue.name.clone());
        Ok(())
    }

    /// Returns the broker and the store, for code that uses the backend traits directly.
    #[cfg(feature = "unstable")]
    #[must_use]
    pub fn backends(&self) -> &Backends {
        &self.shared.backends
    }

    #[cfg(not(feature = "unstable"))]
    pub(crate) fn backends(&self) -> &Backends {
        &self.shared.backends
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("broker", &self.shared.config.broker_url)
            .field("store", &self.shared.config.store_url)
            .finish()
    }
}

pub(crate) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}
