//! The broker: moves messages between queues, producers and consumers.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Connection, Control, Deliveries, Fetched, Queue, Recorded};
use crate::error::Error;
use crate::protocol::Message;

/// The state of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The number of messages that wait for a consumer.
    pub ready: u64,
    /// The number of consumers of the queue.
    pub consumers: u64,
}

/// A message, its queue and its delay.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The message; it is published as persistent and mandatory.
    pub message: Message,
    /// The target queue; declared if it does not exist yet.
    pub queue: Queue,
    /// The approximate delay before delivery: rounded up to 100, 250 or 500 ms below a second, and down
    /// to whole seconds above. The exact time is in the message's `eta`. A queue with an expiry delivers to
    /// its other queue; RabbitMQ then rounds the delay up to the time of that expiry.
    pub delay: Option<Duration>,
    /// How long publishing is retried. After that, it is unknown whether the broker has the message.
    pub timeout: Duration,
}

/// Moves messages. Sealed: only the backends of this crate can create a [`Recorded`].
pub trait Broker: Connection + fmt::Debug + Send + Sync {
    /// Publishes a message, and waits until the broker has taken responsibility for it (publisher confirm).
    ///
    /// If the connection breaks before the confirm, the message is published again with the same id: it
    /// may arrive twice, but it is not lost. If the future is dropped before the confirm, the message
    /// is not published again, and may have arrived.
    ///
    /// # Errors
    /// Unroutable, backpressure, timeout (outcome unknown), closed.
    fn publish(&self, request: PublishRequest) -> BoxFuture<'_, Result<Recorded, Error>>;

    /// Declares the queue if it does not exist, and checks that an existing one has the type and the
    /// arguments of `queue`.
    ///
    /// # Errors
    /// [`Error::is_queue_mismatch`] when it exists with different arguments; a connection error.
    fn declare(&self, queue: &Queue) -> BoxFuture<'_, Result<(), Error>>;

    /// Takes messages off the head of a queue, oldest first, without a consumer: at most `count`, and
    /// no more once their size reaches 64 MiB. A message that is dropped unsettled returns to the
    /// queue: a classic queue restores its position; a quorum queue counts one more delivery. Returns
    /// no messages if the queue does not exist.
    fn fetch(&self, queue: &str, count: usize) -> BoxFuture<'_, Result<Fetched, Error>>;

    /// Returns the state of a queue; `None` when it does not exist.
    fn inspect(&self, queue: &str) -> BoxFuture<'_, Result<Option<QueueState>, Error>>;

    /// Deletes the ready messages of a queue, not the unsettled deliveries; returns the number deleted.
    fn purge(&self, queue: &str) -> BoxFuture<'_, Result<u64, Error>>;

    /// Deletes a queue that has no consumers, with its ready messages; returns their number, or `None`
    /// when the queue does not exist. Delayed messages are dead-lettered when they are due.
    ///
    /// # Errors
    /// The queue has consumers; the user lacks the permission; a connection error.
    fn delete(&self, queue: &Queue) -> BoxFuture<'_, Result<Option<u64>, Error>>;

    /// Starts a consumer with a prefetch of `prefetch` unsettled messages. Declares the queue if it
    /// does not exist. The consumer continues over reconnects until it is stopped.
    fn consume(&self, queue: &Queue, prefetch: u16) -> Deliveries;

    /// Returns the version of the server, for example `3.10.8`, or of the database.
    ///
    /// # Errors
    /// The server does not answer, or does not report its version.
    fn version(&self) -> BoxFuture<'_, Result<String, Error>>;

    /// Subscribes to the messages that are broadcast to Celery's workers. Other subscribers receive
    /// them, too.
    fn control(&self, node: &str) -> Control;

    /// Returns the permission that the broker refuses to the user of this process, if any: one line
    /// with the object and the permission.
    fn refusal(&self) -> Option<String> {
        None
    }
}
