//! The producer's side: put tasks on their way, and find out what became of them.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::backend::{self, Backends, Origin, Parcel, Queue};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::handle::Handle;
use crate::protocol::{Arguments, Envelope, Headers};
use crate::task::{Task, TaskId};
use crate::trace::TraceParent;

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
}

impl Client {
    /// Connects to the servers that `config` names.
    ///
    /// # Errors
    /// A timeout error when they do not answer within `config.connect_timeout`; what was wrong
    /// with each is in the log. A configuration error when a URL cannot be read.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let client = Self::start(config)?;
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
    /// A configuration error when a URL cannot be read.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let shared = Shared {
            config: config.clone(),
            backends: backend::connect(config)?,
            origin: format!("gen{}@{}", std::process::id(), hostname()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Completes when broker and store both answer.
    pub async fn connected(&self) {
        self.shared.backends.broker.connected().await;
        self.shared.backends.store.connected().await;
    }

    /// Puts a task on its way. Await the builder to send it; it returns once the broker has taken
    /// responsibility for the task.
    #[expect(clippy::needless_pass_by_value, reason = "a task is given away, not lent")]
    pub fn enqueue<T: Task>(&self, task: T) -> Enqueue<'_, T::Output> {
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
    pub fn enqueue_named(&self, name: &str, arguments: Arguments) -> Enqueue<'_, Value> {
        Enqueue::new(self, name, Ok(arguments), &self.shared.config.queue)
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

/// A task about to be sent. Nothing happens until it is awaited.
#[must_use = "a task is sent when its builder is awaited"]
#[derive(Debug)]
pub struct Enqueue<'c, O> {
    client: &'c Client,
    envelope: Result<Envelope, Error>,
    queue: String,
    delay: Option<Duration>,
    output: PhantomData<fn() -> O>,
}

impl<'c, O: DeserializeOwned + Send + 'static> Enqueue<'c, O> {
    fn new(
        client: &'c Client,
        name: &str,
        arguments: Result<Arguments, Error>,
        queue: &str,
    ) -> Self {
        let envelope = arguments.map(|arguments| {
            let mut envelope = Envelope::new(name, arguments);
            envelope.origin = Some(client.shared.origin.clone());
            envelope.reply_to = Some(client.shared.backends.store.reply_channel().to_owned());
            TraceParent::for_new_task().write(&mut envelope.headers);
            envelope
        });
        Self { client, envelope, queue: queue.to_owned(), delay: None, output: PhantomData }
    }

    fn set(mut self, change: impl FnOnce(&mut Envelope)) -> Self {
        if let Ok(envelope) = &mut self.envelope {
            change(envelope);
        }
        self
    }

    /// Into this queue.
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.queue = name.into();
        self
    }

    /// Not to be started before this long has passed.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        let eta = Timestamp::now().saturating_add(delay);
        self.set(|envelope| envelope.eta = eta.ok())
    }

    /// Not to be started before this time. One that has passed means now.
    pub fn eta(self, eta: Timestamp) -> Self {
        let ahead = Duration::try_from(eta.duration_since(Timestamp::now()));
        self.delay(ahead.unwrap_or_default())
    }

    /// With this id instead of a random one. An id is used for one task only.
    pub fn id(self, id: impl Into<TaskId>) -> Self {
        let id = id.into();
        self.set(|envelope| {
            envelope.lineage.root_id = Some(id.clone());
            envelope.id = id;
        })
    }

    /// Not to be started any more after this long; its result is then `REVOKED`.
    pub fn expires_in(self, after: Duration) -> Self {
        let at = Timestamp::now().saturating_add(after);
        self.set(|envelope| envelope.expires = at.ok())
    }

    /// With time limits of its own, in place of the handler's policy.
    pub fn time_limits(self, soft: Option<Duration>, hard: Option<Duration>) -> Self {
        self.set(|envelope| {
            envelope.limits.soft = soft;
            envelope.limits.hard = hard;
        })
    }

    /// No result is wanted: none is stored.
    pub fn ignore_result(self) -> Self {
        self.set(|envelope| envelope.ignore_result = true)
    }

    /// With more headers, which every handler of the task can read.
    pub fn headers(self, headers: Headers) -> Self {
        self.set(|envelope| envelope.headers.extend(headers))
    }

    /// As part of this trace (a W3C `traceparent`). Without it a task enqueued by a handler
    /// continues the handler's trace, and any other begins a new one.
    pub fn traceparent(self, traceparent: &str) -> Self {
        match TraceParent::parse(traceparent) {
            Some(trace) => self.set(|envelope| trace.child().write(&mut envelope.headers)),
            None => self,
        }
    }

    async fn send(self) -> Result<Handle<O>, Error> {
        let shared = &self.client.shared;
        let envelope = self.envelope?;
        let id = envelope.id.clone();
        let message = envelope.encode();
        let size = message.body.len();
        let limit = shared.config.max_arguments;
        if size > limit {
            let (what, setting) = ("the task's arguments", "limits.arguments");
            return Err(Kind::TooLarge { what, size, limit, setting }.into());
        }
        let parcel = Parcel {
            message,
            queue: Queue::new(self.queue),
            delay: self.delay.filter(|delay| !delay.is_zero()),
            timeout: shared.config.publish_timeout,
        };
        let _ = shared.backends.broker.publish(parcel).await?;
        Ok(Handle::new(id, Origin::Own, Arc::clone(&shared.backends.store)))
    }
}

impl<'c, O: DeserializeOwned + Send + 'static> IntoFuture for Enqueue<'c, O> {
    type Output = Result<Handle<O>, Error>;
    type IntoFuture = BoxFuture<'c, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
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
