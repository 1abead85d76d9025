//! The two seams. A [`Broker`] moves messages, a [`Store`] remembers what came of them.
//!
//! Whoever may act holds a value that says so: [`Recorded`] proves that a task's outcome is
//! durable, and [`Delivery::ack`] takes one. Only the folders below this one can make it.

#[cfg(feature = "embedded")]
mod embedded;
#[cfg(all(feature = "embedded", feature = "faults"))]
pub use embedded::{Chances, Life, Stage};
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(all(feature = "rabbitmq", feature = "faults"))]
pub use rabbitmq::{guard_frames, read_message};
#[cfg(feature = "rabbitmq")]
mod redis;

/// What the command line does with the file of a database.
#[cfg(all(feature = "embedded", feature = "cli"))]
pub(crate) mod database {
    pub(crate) use crate::backend::embedded::{back_up, check, compact, file_of};
}

mod approvals;
mod audit;
mod capability;
mod delivery;
mod kept;
mod presence;
mod queue;
#[cfg(any(feature = "embedded", feature = "rabbitmq"))]
mod waiters;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::error::{Error, Kind};
use crate::protocol::{Document, Message, State, TaskDigest};
use crate::task::{Revoke, TaskId};

pub use approvals::{Approvals, Asked, Found, Parked, Parking, Resume, Taken};
pub use audit::{Audit, Sealing};
pub use capability::Capability;
#[cfg(any(feature = "embedded", feature = "rabbitmq"))]
pub(in crate::backend) use delivery::Receipt;
pub use delivery::{Control, Deliveries, Delivery, Fetched, Flushed, Settled};
pub use kept::{Kept, Line, RunOwner, Said, Scope, StreamEntry};
pub use presence::{Presence, StoreServer};
pub use queue::Queue;

/// A broker and a store that belong together.
#[derive(Clone, Debug)]
pub struct Backends {
    /// Moves messages.
    pub broker: Arc<dyn Broker>,
    /// Remembers what came of them.
    pub store: Arc<dyn Store>,
    /// What they cannot do; all else that the seams promise, they do.
    pub lacks: &'static [Capability],
}

/// Starts the backends that the URLs of `config` name. The only place that names concrete ones.
///
/// A database is opened here; connecting to servers goes on in the background, for as long as it
/// takes.
///
/// # Errors
/// A configuration error when a URL cannot be read, or this build has no such backend; a storage
/// error when a database cannot be opened.
pub fn connect(config: &Config) -> Result<Backends, Error> {
    if config.is_embedded() {
        return open_database(config);
    }
    connect_servers(config)
}

#[cfg(feature = "embedded")]
fn open_database(config: &Config) -> Result<Backends, Error> {
    embedded::open(config.broker_url.reveal(), config)
}

#[cfg(not(feature = "embedded"))]
fn open_database(_: &Config) -> Result<Backends, Error> {
    let fault = "this build has no database: build countersign with feature `embedded`";
    Err(Kind::Config(vec![fault.into()]).into())
}

#[cfg(feature = "rabbitmq")]
fn connect_servers(config: &Config) -> Result<Backends, Error> {
    let faults = |fault| Error::new(Kind::Config(vec![fault]));
    let name = format!("countersign {}", env!("CARGO_PKG_VERSION"));
    let rabbit = rabbitmq::RabbitSettings::new(
        config.broker_url.reveal(),
        config.tls_ca_pem.as_deref(),
        config.connect_timeout,
        config.heartbeat,
        &name,
    )
    .map_err(faults)?;
    let store = redis::RedisStore::connect(redis::RedisSettings {
        ca_pem: config.tls_ca_pem.clone().map(String::into_bytes),
        result_expires: config.result_expires,
        key_prefix: config.key_prefix.clone(),
        connect_timeout: config.connect_timeout,
        command_timeout: config.command_timeout,
        ..redis::RedisSettings::new(config.store_url.reveal())
    })?;
    Ok(Backends { broker: rabbitmq::Rabbit::start(rabbit), store, lacks: &[] })
}

#[cfg(not(feature = "rabbitmq"))]
fn connect_servers(_: &Config) -> Result<Backends, Error> {
    let fault = "this build has no servers: build countersign with feature `rabbitmq`";
    Err(Kind::Config(vec![fault.into()]).into())
}

/// Proof that what became of a task is durable: its result is stored, or a copy is confirmed.
#[derive(Debug)]
#[must_use = "a proof is there to be acked with"]
pub struct Recorded {
    id: TaskId,
}

impl Recorded {
    pub(in crate::backend) fn new(id: TaskId) -> Self {
        Self { id }
    }
}

/// How a queue is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Messages that wait for a consumer.
    pub ready: u64,
    /// Consumers on it.
    pub consumers: u64,
}

/// A message and where it is to go.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// What is published, persistent and mandatory.
    pub message: Message,
    /// Declared if it does not exist yet.
    pub queue: Queue,
    /// Arrives after about this long: rounded up to 100, 250 or 500 ms below a second, down to
    /// whole seconds above. The message's `eta` says exactly.
    pub delay: Option<Duration>,
    /// How long to go on trying. When it passes, whether the message was taken is unknown.
    pub timeout: Duration,
}

/// Moves messages. Sealed: proofs of recording are made below this folder only.
pub trait Broker: sealed::Sealed + fmt::Debug + Send + Sync {
    /// Publishes, and waits until the broker has taken responsibility (a publisher confirm).
    ///
    /// A message whose fate became unknown (the connection broke before the confirm) is sent again
    /// with the same id: it may arrive twice, it is never lost. Dropped before, it is not sent
    /// again, and may have arrived.
    ///
    /// # Errors
    /// Unroutable, backpressure, timeout (fate unknown), closed.
    fn publish(&self, parcel: Parcel) -> BoxFuture<'_, Result<Recorded, Error>>;

    /// Makes the queue if it does not exist, and makes sure that one that does has the type and
    /// the arguments that `queue` says.
    ///
    /// # Errors
    /// [`Error::is_queue_mismatch`] when it exists otherwise; connection.
    fn declare(&self, queue: &Queue) -> BoxFuture<'_, Result<(), Error>>;

    /// Takes messages off the head of a queue, oldest first, without consuming it: at most `count`,
    /// and no more once they are 64 MiB. Each goes back when it is dropped unsettled: a classic
    /// queue puts it where it was; a quorum queue counts that as one of its deliveries. None from
    /// a queue that does not exist.
    fn fetch(&self, queue: &str, count: usize) -> BoxFuture<'_, Result<Fetched, Error>>;

    /// How a queue is doing; `None` when it does not exist.
    fn inspect(&self, queue: &str) -> BoxFuture<'_, Result<Option<QueueState>, Error>>;

    /// Deletes every message of a queue that no consumer has in its hands; returns how many.
    fn purge(&self, queue: &str) -> BoxFuture<'_, Result<u64, Error>>;

    /// Deletes a queue that has no consumer, with the messages that wait in it; returns how many, or
    /// `None` when it does not exist. Delayed messages go to the queue's dead letters when they are due.
    ///
    /// # Errors
    /// It has consumers; the user may not; connection.
    fn delete(&self, queue: &Queue) -> BoxFuture<'_, Result<Option<u64>, Error>>;

    /// Starts consuming, with at most `prefetch` unsettled messages in our hands. Declares the
    /// queue if it does not exist. Consuming goes on over reconnects until it is stopped.
    fn consume(&self, queue: &Queue, prefetch: u16) -> Deliveries;

    /// The version of the server, for example `3.10.8`, or what it is and its version.
    ///
    /// # Errors
    /// It does not answer, or is asked over TLS, where it is not asked.
    fn version(&self) -> BoxFuture<'_, Result<String, Error>>;

    /// Listens to what is broadcast to Celery's workers, beside any others that do.
    fn control(&self, node: &str) -> Control;

    /// Completes when both connections are up.
    fn connected(&self) -> BoxFuture<'_, ()>;

    /// Both connections are up right now.
    fn is_connected(&self) -> bool;

    /// Why the latest attempt to connect failed; `None` when it succeeded, or none has ended yet.
    fn connect_error(&self) -> Option<String>;

    /// What the broker refuses to this process's user, if anything: a line that names the object and
    /// the permission.
    fn refusal(&self) -> Option<String> {
        None
    }

    /// Flushes acks and confirms, and awaits the close of channels and connections.
    ///
    /// Every [`Delivery`] must be settled before, or it is waited for.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What came of a task, on its way to the store.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The result document.
    pub document: Document,
    /// The channel of the waiting process, besides Celery's own channel of the task.
    pub reply_to: Option<String>,
    /// When the task's message was received, if it was a first attempt that had never been delivered
    /// before: its result replaces a failure or a revocation of the same id that is older than this.
    pub received: Option<Timestamp>,
}

/// Noted runs of a task that nobody saw end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crashes {
    /// All of them.
    pub runs: u32,
    /// Those in which nothing else ran.
    pub alone: u32,
}

/// The task that an idempotency key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedTask {
    /// Its id.
    pub id: TaskId,
    /// The broker has confirmed it.
    pub sent: bool,
}

/// What somebody did to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// `replay`, `purge`, or what else the audit says.
    pub what: &'static str,
    /// The task; or, for all of a queue, `*`.
    pub id: TaskId,
    /// The queue of its dead letter.
    pub queue: String,
    /// Who did it: process and host.
    pub by: String,
}

impl Deed {
    /// A new message runs under the id of a task that failed or was revoked before.
    pub const SUPERSEDE: &'static str = "supersede";
}

/// What came of forgetting a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forget {
    /// Nothing of it is left.
    Forgotten,
    /// It may still run, and nothing has changed: its state, where there is one.
    Unfinished(Option<State>),
}

/// A mark on a task that is not to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Which task.
    pub id: TaskId,
    /// What if it runs.
    pub revoke: Revoke,
}

/// Who put the task on its way, and so which channel its result comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process, with [`Store::reply_channel`] as its `reply_to`.
    Own,
    /// Another process: the task's own channel is subscribed to.
    Foreign,
}

/// Remembers what came of tasks. Sealed, like [`Broker`].
pub trait Store: Approvals + Audit + fmt::Debug + Send + Sync {
    /// Stores a result and wakes its waiters, in one step. The first terminal result of a task
    /// wins; a later one changes nothing, and is just as recorded. Only a success is final for an id
    /// that is used again, as in Celery: [`Finish::received`] says what an older failure or
    /// revocation gives way to. A result is kept for as long as
    /// `result_expires` says, and that a task is parked until something else is stored of it. Waits
    /// while the store is away, without limit: drop the future to give up.
    fn finish(&self, finish: Finish) -> BoxFuture<'_, Result<Recorded, Error>>;

    /// The proof for a task that wants no result stored.
    fn ignore(&self, id: &TaskId) -> Recorded;

    /// Takes an attempt of a task for one copy of its message: false when another copy has it. An attempt
    /// of another task with the same id does not count.
    fn take(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        attempt: u32,
    ) -> BoxFuture<'_, Result<bool, Error>>;

    /// Notes that a task which may have ended a worker runs now, alone or among others.
    fn note_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>>;

    /// How many of its noted runs have not come to an end.
    fn crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<Crashes, Error>>;

    /// Takes back one noted run: its worker is alive and has lost the message. Never below none.
    fn forget_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>>;

    /// Forgets the noted runs of a task: it came to an end.
    fn acquit(&self, id: &TaskId) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes `key` stand for task `id`, for as long as `keep` says; or, if it stands for a task
    /// already, says for which.
    fn claim_key(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<KeyedTask, Error>>;

    /// Notes that the task of a key was confirmed, unless the key stands for another one by now.
    fn mark_sent(&self, key: &str, id: &TaskId, keep: Duration)
    -> BoxFuture<'_, Result<(), Error>>;

    /// Takes back a task's failure, in one step with noting who did, and forgets that its first
    /// `attempts` attempts ran. Returns the state that was found: a success stays, a revocation too
    /// unless [`Deed::SUPERSEDE`] takes it back, and nothing is noted then.
    fn reopen(&self, deed: Deed, attempts: u64) -> BoxFuture<'_, Result<Option<State>, Error>>;

    /// Deletes the result of a task, its journal, its stream, its attempt and crash marks, and the record
    /// of its suspension, unless it is suspended or its result says that it is not finished. Without a
    /// result, a journal or a stream says that it may be running. Late messages of the task are still
    /// told from new ones for eight days. Gives up like [`Store::read`]; may be repeated.
    fn forget(&self, id: &TaskId) -> BoxFuture<'_, Result<Forget, Error>>;

    /// Notes what somebody did. It is the proof by which a dead letter may be thrown away.
    fn audit(&self, deed: Deed) -> BoxFuture<'_, Result<Recorded, Error>>;

    /// Marks tasks as revoked, and tells all workers. The mark is durable, for a week; of more than
    /// 50,000 the oldest are dropped. Gives up like [`Store::read`] when the store does not answer.
    fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> BoxFuture<'_, Result<(), Error>>;

    /// First every mark there is, in one batch even if there is none; then new ones as they come.
    /// After a reconnect every one comes again. Ends when the store is closed.
    fn revocations(&self) -> mpsc::Receiver<Vec<Revocation>>;

    /// The result document as it is stored now.
    fn read(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<Document>, Error>>;

    /// Resolves with the task's terminal document: subscribes, reads, waits, and reads again after
    /// every reconnect. `timeout` passed: a timeout error. The receiver may be awaited on any
    /// executor; dropping it forgets the wait.
    fn watch(
        &self,
        id: TaskId,
        origin: Origin,
        timeout: Option<Duration>,
    ) -> oneshot::Receiver<Result<Box<Document>, Error>>;

    /// What earlier runs of a task have left; with a digest, nothing of another task with the same id.
    /// Waits while the store is away, without limit: drop the future to give up.
    fn kept(&self, id: &TaskId, digest: Option<&TaskDigest>) -> BoxFuture<'_, Result<Kept, Error>>;

    /// The store's clock, in milliseconds since the epoch. Waits like [`Store::kept`].
    fn clock(&self) -> BoxFuture<'_, Result<i64, Error>>;

    /// Records what a step answered. The first record wins: returns the one that was there, `None`
    /// when this one is it. A journal of another task with the same id is replaced, and by a fresh run
    /// also that of the same task once it has ended. Waits like [`Store::kept`]; dropped, it may be
    /// recorded all the same.
    fn record(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        step: &str,
        entry: Bytes,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Error>>;

    /// Appends to a task's stream, unless an entry of the same scope and number, or a later one,
    /// is there. Lines of one scope are to be handed over one after the other. A stream is replaced like
    /// a journal, and its numbers go on. Waits like [`Store::kept`]; dropped, it may be appended all the
    /// same.
    fn append(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        line: Line,
    ) -> BoxFuture<'_, Result<(), Error>>;

    /// Notes that the task has ended, before its result is stored: a later message of the same id
    /// and arguments does not find the steps of this one. They are kept as long as the result.
    /// Tries again until the store has answered; fails only when the store is closed.
    fn ended(&self, id: &TaskId, digest: &TaskDigest) -> BoxFuture<'_, Result<(), Error>>;

    /// Entries of a task's stream after that number, as they are now: the first few of them. Gives
    /// up like [`Store::read`].
    fn entries(&self, id: &TaskId, after: u64) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>>;

    /// The same, once there are any. Waits without limit, over reconnects.
    fn next_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>>;

    /// The number of the last entry of a task's stream; 0 when there is none.
    fn last_entry(&self, id: &TaskId) -> BoxFuture<'_, Result<u64, Error>>;

    /// The channel by which results of this process's own tasks come.
    fn reply_channel(&self) -> &str;

    /// Says that a worker is there, for as long as `keep` says.
    fn announce(&self, presence: Presence, keep: Duration) -> BoxFuture<'_, Result<(), Error>>;

    /// Says that a worker is there no more.
    fn retract(&self, presence: Presence) -> BoxFuture<'_, Result<(), Error>>;

    /// Every worker that is there.
    fn present(&self) -> BoxFuture<'_, Result<Vec<Presence>, Error>>;

    /// Queues that a worker has consumed in the last 30 days. A database also knows those that tasks
    /// were only sent to.
    fn seen_queues(&self) -> BoxFuture<'_, Result<Vec<String>, Error>>;

    /// What the server says about itself.
    fn server(&self) -> BoxFuture<'_, Result<StoreServer, Error>>;

    /// Completes when the store answers.
    fn connected(&self) -> BoxFuture<'_, ()>;

    /// The store answers right now.
    fn is_connected(&self) -> bool;

    /// Why the latest attempt to connect failed; `None` when it succeeded, or none has ended yet.
    fn connect_error(&self) -> Option<String>;

    /// Ends every wait with an error and closes the connections.
    fn close(&self) -> BoxFuture<'_, ()>;
}

mod sealed {
    /// Implemented by the backends below this folder only.
    pub trait Sealed {}
}
