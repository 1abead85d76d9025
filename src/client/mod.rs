//! The producer's side: put tasks on their way, and find out what became of them.

mod approvals;
mod audit;
mod clerk;
mod dead_letters;
mod enqueue;
mod follow;
mod forget;
mod revoke;
mod sealer;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, stream};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::backend::{self, Backends, Origin, Queue};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::handle::Handle;
use crate::protocol::{Arguments, Document};
use crate::task::{Task, TaskId};

pub use approvals::{Pending, Requested, Resolution};
pub use dead_letters::{DeadLetter, DeadLetters, Replay};
pub use enqueue::Enqueue;
pub use follow::Follow;

/// Tasks of a batch that are on their way to the broker at once.
const BATCH_WINDOW: usize = 512;

/// Enqueues tasks and awaits their results. Cheap to clone; one a process is enough.
///
/// Its connections belong to the tokio runtime in which it was made, which must keep running.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    backends: Backends,
    origin: String,
    /// Queues known to have the priorities that they are configured to have.
    prioritised: Mutex<HashSet<String>>,
}

impl Client {
    /// Connects to the servers, or opens the database, that `config` names: a [`Config`], or the URL
    /// of a database such as `sqlite::memory:`.
    ///
    /// # Errors
    /// A timeout error when they do not answer within `config.connect_timeout`; what was wrong
    /// with each is in the log. A configuration error when a URL cannot be read. A storage error
    /// when a database cannot be opened.
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

    /// Starts connecting and returns at once; connections are tried until the servers answer.
    /// What a worker does.
    ///
    /// # Errors
    /// A configuration error when a URL cannot be read. A storage error when a database cannot be
    /// opened.
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
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A client of backends that a test has made.
    #[cfg(feature = "faults")]
    pub fn of(backends: Backends, config: Config) -> Self {
        let origin = format!("gen{}@{}", std::process::id(), hostname());
        let shared = Shared { config, backends, origin, prioritised: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Completes when broker and store both answer.
    pub async fn connected(&self) {
        self.shared.backends.broker.connected().await;
        self.shared.backends.store.connected().await;
    }

    /// Puts a task on its way. Await the builder to send it; it returns once the broker has taken
    /// responsibility for the task.
    #[expect(clippy::needless_pass_by_value, reason = "a task is given away, not lent")]
    pub fn enqueue<T: Task>(&self, task: T) -> Enqueue<T::Output> {
        let arguments = Arguments::of(&task)
            .map_err(|cause| Kind::Codec { what: T::NAME.into(), cause: cause.to_string() }.into());
        let queue = T::QUEUE.unwrap_or(&self.shared.config.queue);
        Enqueue::new(self, T::NAME, arguments, queue)
    }

    /// Puts a task on its way by its name: one that is written in Python, for example.
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

    /// Puts many tasks on their way, 512 at a time, without waiting for each confirm before the
    /// next. Returns what became of each, in their order: one that fails leaves the others alone.
    ///
    /// Dropped, it leaves on their way what it has begun to send.
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
    /// println!("{failed} of {} were not taken", sent.len());
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

    /// What is stored of a task right now; `None` while nothing is: it waits or runs, or nobody
    /// has enqueued it, or its result has expired.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn status(&self, id: &TaskId) -> Result<Option<Document>, Error> {
        self.shared.backends.store.read(id).await
    }

    /// The messages of a queue that no worker could run.
    #[must_use]
    pub fn dead_letters(&self, queue: &str) -> DeadLetters {
        DeadLetters::new(self, queue)
    }

    /// A handle to a task that anybody put on its way.
    pub fn handle<O: DeserializeOwned>(&self, id: impl Into<TaskId>) -> Handle<O> {
        Handle::new(id.into(), Origin::Foreign, Arc::clone(&self.shared.backends.store))
    }

    /// Ends every wait with an error, flushes what is being sent, and closes the connections.
    pub async fn close(&self) {
        self.shared.backends.broker.close().await;
        self.shared.backends.store.close().await;
    }

    /// The settings it was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Makes sure that a queue tells priorities apart, as it is configured to. Once it has been
    /// seen to, it is not asked again.
    async fn assure_priorities(&self, queue: &Queue) -> Result<(), Error> {
        let known = || self.shared.prioritised.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(&queue.name) {
            return Ok(());
        }
        self.shared.backends.broker.declare(queue).await?;
        known().insert(queue.name.clone());
        Ok(())
    }

    /// What is behind it, for whoever builds on the seams.
    #[must_use]
    pub fn backends(&self) -> &Backends {
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
