//! One task on its way: what may be said about it, and how it is sent.

use std::fmt;
use std::future::{IntoFuture, ready};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::Client;
use crate::backend::{KeyedTask, Origin, Parcel, Queue};
use crate::clock;
use crate::error::{Error, Kind};
use crate::handle::Handle;
use crate::protocol::{Arguments, Envelope, Headers, Message};
use crate::task::TaskId;
use crate::trace::{Place, TraceParent};

/// A task about to be sent. Nothing happens until it is awaited.
#[must_use = "a task is sent when its builder is awaited"]
pub struct Enqueue<O> {
    client: Client,
    envelope: Result<Envelope, Error>,
    queue: String,
    delay: Option<Duration>,
    key: Option<String>,
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
            envelope.reply_to = Some(client.shared.backends.store.reply_channel().to_owned());
            Place::inherit(&mut envelope.headers, &mut envelope.lineage);
            envelope
        });
        Self {
            client: client.clone(),
            envelope,
            queue: queue.to_owned(),
            delay: None,
            key: None,
            output: PhantomData,
        }
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
        let eta = clock::now().saturating_add(delay);
        self.set(|envelope| envelope.eta = eta.ok())
    }

    /// Not to be started before this time. One that has passed means now.
    pub fn eta(self, eta: Timestamp) -> Self {
        let ahead = Duration::try_from(eta.duration_since(clock::now()));
        self.delay(ahead.unwrap_or_default())
    }

    /// With this id instead of a random one. An id is used for one task only.
    pub fn id(self, id: impl Into<TaskId>) -> Self {
        let id = id.into();
        self.set(|envelope| envelope.id = id)
    }

    /// Before tasks of its queue with a lower one; 0 is the lowest, and what holds without it. The
    /// queue must be configured for it, here and at its workers: `max_priority` of `[queues.NAME]`
    /// in `countersign.toml`.
    pub fn priority(self, priority: u8) -> Self {
        self.set(|envelope| envelope.priority = priority)
    }

    /// At most once under this key and its task's name: while the key is remembered
    /// (`client.idempotency_expires`), enqueueing again gives a handle to the first task. One that
    /// was not known to be taken by the broker (a crash, a time-out) is sent again with the same
    /// id, and what it is sent with is what was given last.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Not to be started any more after this long; its result is then `REVOKED`.
    pub fn expires_in(self, after: Duration) -> Self {
        let at = clock::now().saturating_add(after);
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

    /// Priorities and keys take a look at a server before the task is sent.
    fn asks_first(&self) -> bool {
        self.key.is_some() || self.envelope.as_ref().is_ok_and(|envelope| envelope.priority > 0)
    }

    async fn ask_and_send(self) -> Result<Handle<O>, Error> {
        let Self { client, envelope, queue, delay, key, .. } = self;
        let mut envelope = envelope?;
        let queue = Queue::configured(queue, client.config());
        if envelope.priority > 0 {
            check_priority(&client, &envelope, &queue).await?;
        }
        let Some(key) = key.map(|key| format!("{}:{key}", envelope.name)) else {
            return send(parcel(&client, &envelope, queue, delay)?, client).await;
        };
        let store = Arc::clone(&client.backends().store);
        let keep = client.config().idempotency_expires;
        let KeyedTask { id, sent } = store.claim_key(&key, &envelope.id, keep).await?;
        if sent {
            return Ok(Handle::new(id, Origin::Foreign, store));
        }
        envelope.id = id;
        let handle = send(parcel(&client, &envelope, queue, delay)?, client).await?;
        if let Err(error) = store.mark_sent(&key, handle.id(), keep).await {
            // It is on its way: a repeat sends it again under the same id, and that is allowed.
            let id = handle.id();
            tracing::warn!(task.id = %id, "its idempotency key is not marked as sent: {error}");
        }
        Ok(handle)
    }
}

fn parcel(
    client: &Client,
    envelope: &Envelope,
    queue: Queue,
    delay: Option<Duration>,
) -> Result<Parcel, Error> {
    Ok(Parcel {
        message: sized(client, envelope)?,
        queue,
        delay: delay.filter(|delay| !delay.is_zero()),
        timeout: client.config().publish_timeout,
    })
}

async fn send<O: DeserializeOwned>(parcel: Parcel, client: Client) -> Result<Handle<O>, Error> {
    let id = parcel.message.id.clone();
    let _ = client.backends().broker.publish(parcel).await?;
    Ok(Handle::new(id, Origin::Own, Arc::clone(&client.backends().store)))
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

/// A queue without priorities would take the message, and forget its priority in silence.
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
        if self.asks_first() {
            return Box::pin(self.ask_and_send());
        }
        // Encoded here, so that what is kept while it is sent is small: many are sent at a time.
        let Self { client, envelope, queue, delay, .. } = self;
        let queue = Queue::configured(queue, client.config());
        match envelope.and_then(|envelope| parcel(&client, &envelope, queue, delay)) {
            Ok(parcel) => Box::pin(send(parcel, client)),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}
