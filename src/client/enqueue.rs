//! Options of one task, and how it is sent.

use std::fmt;
use std::future::{IntoFuture, ready};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::Client;
use crate::backend::{IdempotencyEntry, Origin, PublishRequest, Queue};
use crate::clock;
use crate::error::{Error, Kind};
use crate::handle::Handle;
use crate::protocol::{Arguments, Envelope, Headers, Message};
use crate::task::TaskId;
use crate::trace::{TraceParent, TraceScope};

/// A task to be sent. Nothing happens until it is awaited.
#[must_use = "a task is sent when its builder is awaited"]
pub struct Enqueue<O> {
    client: Client,
    envelope: Result<Envelope, Error>,
    queue: String,
    delay: Option<Duration>,
    key: Option<String>,
    origin: Origin,
    output: PhantomData<fn() -> O>,
}

impl<O: DeserializeOwned + Send + 'static> Enqueue<O> {
    pub(super) fn new(
        client: &Client,
        name: &str,
        arguments: Result<Arguments, Error>,
        queue: &str,
    ) -> Self {
        let envelope = arguments.map(|arguments| {
            let mut envelope = Envelope::new(name, arguments);
            envelope.origin = Some(client.shared.origin.clone());
            envelope.form = client.config().envelope;
            envelope.reply_to = Some(client.shared.backends.store.reply_channel().to_owned());
            TraceScope::inherit(&mut envelope.headers, &mut envelope.lineage);
            envelope
        });
        Self {
            client: client.clone(),
            envelope,
            queue: queue.to_owned(),
            delay: None,
            key: None,
            origin: Origin::Own,
            output: PhantomData,
        }
    }

    fn set(mut self, change: impl FnOnce(&mut Envelope)) -> Self {
        if let Ok(envelope) = &mut self.envelope {
            change(envelope);
        }
        self
    }

    /// Sets the queue.
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.queue = name.into();
        self
    }

    /// Starts the task no earlier than after this delay.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        let eta = clock::now().saturating_add(delay);
        self.set(|envelope| envelope.eta = eta.ok())
    }

    /// Starts the task no earlier than at this time. A time in the past starts it at once.
    pub fn eta(self, eta: Timestamp) -> Self {
        let delay = Duration::try_from(eta.duration_since(clock::now()));
        self.delay(delay.unwrap_or_default())
    }

    /// Sets the id, which is random by default. An id must be used for one task only.
    pub fn id(mut self, id: impl Into<TaskId>) -> Self {
        let id = id.into();
        self.origin = Origin::OwnGivenId;
        self.set(|envelope| envelope.id = id)
    }

    /// Sets the priority: the task is delivered before tasks of its queue with a lower one. The lowest and
    /// default priority is 0. The queue must be configured for priorities, by producers and workers:
    /// `max_priority` of `[queues.NAME]` in `countersign.toml`.
    pub fn priority(self, priority: u8) -> Self {
        self.set(|envelope| envelope.priority = priority)
    }

    /// Sends the task at most once for this key and the task's name: as long as the key is remembered
    /// (`client.idempotency_expires`), enqueueing again returns a handle to the first task. If it is unknown
    /// whether the broker accepted the first task (after a crash or a timeout), it is sent again under the
    /// same id, with the arguments and options given last.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Starts the task no later than after this time; an expired task has the result `REVOKED`.
    pub fn expires_in(self, after: Duration) -> Self {
        let at = clock::now().saturating_add(after);
        self.set(|envelope| envelope.expires = at.ok())
    }

    /// Sets time limits for this task, in place of the handler's policy.
    pub fn time_limits(self, soft: Option<Duration>, hard: Option<Duration>) -> Self {
        self.set(|envelope| {
            envelope.limits.soft = soft;
            envelope.limits.hard = hard;
        })
    }

    /// Stores no result.
    pub fn ignore_result(self) -> Self {
        self.set(|envelope| envelope.ignore_result = true)
    }

    /// Adds headers, which every handler of the task can read.
    pub fn headers(self, headers: Headers) -> Self {
        self.set(|envelope| envelope.headers.extend(headers))
    }

    /// Continues this trace (a W3C `traceparent`). By default a task enqueued by a handler continues the
    /// handler's trace, and any other task begins a new one.
    pub fn traceparent(self, traceparent: &str) -> Self {
        match TraceParent::parse(traceparent) {
            Some(trace) => self.set(|envelope| trace.child().write(&mut envelope.headers)),
            None => self,
        }
    }

    /// Priorities and idempotency keys need a request to a server before the task is sent.
    fn needs_request(&self) -> bool {
        self.key.is_some() || self.envelope.as_ref().is_ok_and(|envelope| envelope.priority > 0)
    }

    async fn check_and_send(self) -> Result<Handle<O>, Error> {
        let Self { client, envelope, queue, delay, key, origin, .. } = self;
        let mut envelope = envelope?;
        let queue = Queue::configured(queue, client.config());
        if envelope.priority > 0 {
            check_priority(&client, &envelope, &queue).await?;
        }
        let Some(key) = key.map(|key| format!("{}:{key}", envelope.name)) else {
            return send(publish_request(&client, &envelope, queue, delay)?, client, origin).await;
        };
        let store = Arc::clone(&client.backends().store);
        let keep = client.config().idempotency_expires;
        let IdempotencyEntry { id, sent } = store.claim_key(&key, &envelope.id, keep).await?;
        if sent {
            return Ok(Handle::new(id, Origin::Foreign, store));
        }
        envelope.id = id;
        let publish = publish_request(&client, &envelope, queue, delay)?;
        let handle = send(publish, client, Origin::OwnGivenId).await?;
        if let Err(error) = store.mark_key_sent(&key, handle.id(), keep).await {
            // The task was sent. A repeated call sends it again under the same id, which is allowed.
            let id = handle.id();
            tracing::warn!(task.id = %id, "cannot mark its idempotency key as sent: {error}");
        }
        Ok(handle)
    }
}

fn publish_request(
    client: &Client,
    envelope: &Envelope,
    queue: Queue,
    delay: Option<Duration>,
) -> Result<PublishRequest, Error> {
    Ok(PublishRequest {
        message: sized(client, envelope)?,
        queue,
        delay: delay.filter(|delay| !delay.is_zero()),
        timeout: client.config().publish_timeout,
    })
}

async fn send<O: DeserializeOwned>(
    publish: PublishRequest,
    client: Client,
    origin: Origin,
) -> Result<Handle<O>, Error> {
    let id = publish.message.id.clone();
    client.remember_queue(&publish.queue.name);
    let _ = client.backends().broker.publish(publish).await?;
    Ok(Handle::new(id, origin, Arc::clone(&client.backends().store)))
}

fn sized(client: &Client, envelope: &Envelope) -> Result<Message, Error> {
    let message = envelope.encode();
    let (size, limit) = (message.body.len(), client.config().max_arguments);
    if size > limit {
        let (what, setting) = ("the task's arguments", "limits.arguments");
        return Err(Kind::TooLarge { what, size, limit, setting }.into());
    }
    Ok(message)
}

/// A queue without priorities would accept the message and ignore its priority silently.
async fn check_priority(client: &Client, envelope: &Envelope, queue: &Queue) -> Result<(), Error> {
    let priority = envelope.priority;
    if queue.max_priority.is_none_or(|highest| highest < priority) {
        let levels = match queue.max_priority {
            Some(highest) => format!("is configured for at most {highest}"),
            None => "is not configured for any".to_owned(),
        };
        let (id, queue) = (envelope.id.clone(), queue.name.clone());
        return Err(Kind::Priority { id, queue, priority, levels }.into());
    }
    client.assure_priorities(queue).await
}

impl<O> fmt::Debug for Enqueue<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enqueue").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl<O: DeserializeOwned + Send + 'static> IntoFuture for Enqueue<O> {
    type Output = Result<Handle<O>, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        if self.needs_request() {
            return Box::pin(self.check_and_send());
        }
        // Encode before sending to keep the pending future small: many tasks are sent concurrently.
        let Self { client, envelope, queue, delay, origin, .. } = self;
        let queue = Queue::configured(queue, client.config());
        match envelope.and_then(|envelope| publish_request(&client, &envelope, queue, delay)) {
            Ok(publish) => Box::pin(send(publish, client, origin)),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}
