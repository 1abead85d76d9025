//! The task that owns all waits. Notifications are hints: it subscribes, then reads, then waits; after
//! every reconnect it subscribes and reads again.
//!
//! A result of the client's own task is taken from the push message itself: only processes that were
//! sent the task know the name of its channel. If the caller chose the task's id, the message may be about
//! an earlier task, and Celery's channels can be guessed: such messages only trigger a read of the record.

use std::borrow::Cow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rand::Rng;
use redis::{PushInfo, PushKind, Value};
use serde::Deserialize;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::approval_records::{DECIDED_CHANNEL, NEW_REQUEST_CHANNEL};
use super::connection::{Connection, ConnectionHandle, PushHandler};
use super::keys::Keys;
use super::pool::ReadPool;
use super::revocation_events::{self, RevocationEvent};
use crate::approval::ApprovalId;
use crate::backend::Origin;
use crate::backend::early_results::EarlyResults;
use crate::backend::waiters::{ResultSender, Waiters};
use crate::error::Kind;
use crate::keyed_notify::KeyedNotify;
use crate::protocol::Document;
use crate::task::TaskId;

/// Push messages that may be queued. When one does not fit it is dropped, and everything is read again.
const PUSHES: usize = 4096;
const MAX_RECEIVED: usize = 256;
const MAX_READ: usize = 500;
const READS_IN_FLIGHT: usize = 2;
const MAX_SUBSCRIBED: usize = 1000;
/// Events that a slow receiver may fall behind before it has to re-read everything.
const CHANNEL_CAPACITY: usize = 1024;
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// A new wait.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) id: TaskId,
    pub(super) origin: Origin,
    pub(super) timeout: Option<Duration>,
    pub(super) reply: ResultSender,
}

/// Push messages of a connection, in order.
#[derive(Debug)]
pub(super) struct Pushes {
    messages: mpsc::Receiver<PushInfo>,
    missed: Arc<Notify>,
}

/// Returns a bounded channel from a connection's task to this one.
pub(super) fn pushes() -> (PushHandler, Pushes) {
    let (sender, messages) = mpsc::channel(PUSHES);
    let missed = Arc::new(Notify::new());
    let pushes = Pushes { messages, missed: missed.clone() };
    let handler: PushHandler = Arc::new(move |push: PushInfo| {
        if push.kind == PushKind::Message && sender.try_send(push).is_err() {
            missed.notify_one();
        }
    });
    (handler, pushes)
}

/// Notifications inside this process.
#[derive(Clone, Debug)]
pub(super) struct Notifications {
    /// Sends events about marks on revoked tasks to workers.
    pub(super) revoked: broadcast::Sender<RevocationEvent>,
    /// Wakes the waits for a decision on a request.
    pub(super) decided: KeyedNotify<ApprovalId>,
    /// Sends the ids of new requests if a receiver wants them; `None`: some may have been missed.
    new_requests: broadcast::Sender<Option<ApprovalId>>,
    new_requests_wanted: Arc<Notify>,
}

impl Notifications {
    pub(super) fn subscribe_requests(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        let events = self.new_requests.subscribe();
        self.new_requests_wanted.notify_one();
        events
    }
}

impl Default for Notifications {
    fn default() -> Self {
        Self {
            revoked: broadcast::Sender::new(CHANNEL_CAPACITY),
            decided: KeyedNotify::default(),
            new_requests: broadcast::Sender::new(CHANNEL_CAPACITY),
            new_requests_wanted: Arc::default(),
        }
    }
}

/// The parameters of the task.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) keys: Keys,
    pub(super) reply_channel: String,
    pub(super) reread: Duration,
    pub(super) reader: ReadPool,
    pub(super) subscribed: ConnectionHandle,
    pub(super) pushes: Pushes,
    pub(super) requests: mpsc::UnboundedReceiver<Watch>,
    pub(super) notifications: Notifications,
    pub(super) closing: CancellationToken,
}

/// The waits, and their pending work.
struct Waits {
    keys: Keys,
    reply_channel: String,
    reader: ReadPool,
    notifications: Notifications,
    waiters: Waiters,
    early: EarlyResults,
    connection: Option<Connection>,
    /// Whether to subscribe to the channel of new requests.
    to_subscribe_requests: bool,
    to_read: Vec<TaskId>,
    to_subscribe: Vec<TaskId>,
    to_unsubscribe: Vec<TaskId>,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
    /// At most one at a time, so that they take effect in order.
    changes: FuturesUnordered<BoxFuture<'static, Change>>,
}

/// Records that were read; `None`: the read failed and is repeated.
struct Read {
    ids: Vec<TaskId>,
    texts: Option<Vec<Option<Vec<u8>>>>,
}

/// A finished change of subscriptions.
enum Change {
    Listening,
    SubscribedToRequests,
    Subscribed(Vec<TaskId>),
    Unsubscribed,
}

impl Subscription {
    /// Serves waits until the store is closed.
    pub(super) async fn run(self) {
        let Self { mut subscribed, mut pushes, mut requests, closing, reread, .. } = self;
        let mut waits = Waits {
            keys: self.keys,
            reply_channel: self.reply_channel,
            reader: self.reader,
            notifications: self.notifications,
            waiters: Waiters::default(),
            early: EarlyResults::default(),
            connection: None,
            to_subscribe_requests: false,
            to_read: Vec::new(),
            to_subscribe: Vec::new(),
            to_unsubscribe: Vec::new(),
            reads: FuturesUnordered::new(),
            changes: FuturesUnordered::new(),
        };
        let (mut received, mut watches) = (Vec::new(), Vec::new());
        let mut sweep = pin!(sleep_until(jittered(reread)));
        let mut timer = pin!(sleep_until(jittered(reread)));
        loop {
            waits.begin_work();
            if let Some(at) = waits.waiters.next_deadline()
                && (timer.is_elapsed() || at < timer.deadline())
            {
                timer.as_mut().reset(at);
            }
            tokio::select! {
                _ = pushes.messages.recv_many(&mut received, MAX_RECEIVED) => {
                    received.drain(..).for_each(|push| waits.handle_push(push));
                }
                count = requests.recv_many(&mut watches, MAX_RECEIVED) => {
                    if count == 0 {
                        break;
                    }
                    watches.drain(..).for_each(|watch| waits.watch(watch));
                }
                Some(read) = waits.reads.next(), if !waits.reads.is_empty() => waits.finish_read(read),
                Some(change) = waits.changes.next(), if !waits.changes.is_empty() => {
                    waits.finish_change(change);
                }
                Some(connection) = subscribed.changed() => waits.listen(connection),
                () = waits.notifications.new_requests_wanted.notified() => waits.to_subscribe_requests = true,
                () = pushes.missed.notified() => waits.read_all_and_marks(),
                () = timer.as_mut(), if waits.waiters.next_deadline().is_some() => {
                    let left = waits.waiters.expire(Instant::now());
                    waits.to_unsubscribe.extend(left);
                }
                () = sweep.as_mut() => {
                    waits.sweep();
                    sweep.as_mut().reset(jittered(reread));
                }
                () = closing.cancelled() => break,
            }
        }
        waits.waiters.close();
        requests.close();
        while let Some(watch) = requests.recv().await {
            let _ = watch.reply.send(Err(Kind::Closed.into()));
        }
    }
}

/// Returns a time about one period from now, with jitter, so that processes do not synchronize.
fn jittered(period: Duration) -> Instant {
    Instant::now() + period.mul_f64(rand::rng().random_range(0.8..1.2))
}

impl Waits {
    fn watch(&mut self, Watch { id, origin, timeout, reply }: Watch) {
        if origin == Origin::Own
            && let Some(document) = self.early.take(&id)
        {
            // An error means that the receiver is dropped.
            let _ = reply.send(Ok(Box::new(document)));
            return;
        }
        let is_new = origin == Origin::Foreign && !self.waiters.is_foreign(&id);
        self.waiters.add(id.clone(), origin, timeout, reply);
        if is_new && self.connection.is_some() {
            self.to_subscribe.push(id);
        } else {
            self.to_read.push(id);
        }
    }

    /// Subscribes again on a new connection.
    fn listen(&mut self, connection: Connection) {
        self.changes.clear();
        self.to_unsubscribe.clear();
        self.to_subscribe_requests = self.notifications.new_requests.receiver_count() > 0;
        self.to_subscribe = self.waiters.foreign_ids().cloned().collect();
        self.connection = Some(connection.clone());
        let channels =
            [&*self.reply_channel, revocation_events::CHANNEL, DECIDED_CHANNEL].map(str::to_owned);
        self.changes.push(Box::pin(async move {
            if let Err(cause) = connection.subscribe(&channels).await {
                warn!(%cause, channel = channels[0], "cannot subscribe; retrying");
                tokio::time::sleep(RETRY_DELAY).await;
                connection.discard();
                // Wait forever: a new connection replaces this future.
                std::future::pending::<()>().await;
            }
            Change::Listening
        }));
    }

    fn finish_change(&mut self, change: Change) {
        match change {
            Change::Listening => self.read_all_and_marks(),
            Change::SubscribedToRequests => drop(self.notifications.new_requests.send(None)),
            Change::Subscribed(ids) => self.to_read.extend(ids),
            Change::Unsubscribed => {}
        }
    }

    fn finish_read(&mut self, Read { ids, texts }: Read) {
        let Some(texts) = texts else {
            self.to_read.extend(ids);
            return;
        };
        for (id, text) in ids.into_iter().zip(texts) {
            if let Some(text) = text {
                self.take(id, text);
            }
        }
    }

    fn handle_push(&mut self, push: PushInfo) {
        let mut parts = push.data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) =
            (parts.next(), parts.next())
        else {
            return;
        };
        if channel == revocation_events::CHANNEL.as_bytes() {
            // The send fails when there is no worker in this process.
            let _ = revocation_events::parse_event(&payload)
                .map(|event| self.notifications.revoked.send(event));
            return;
        }
        if channel == DECIDED_CHANNEL.as_bytes() {
            let id = str::from_utf8(&payload).ok().and_then(ApprovalId::parse);
            if let Some(id) = id {
                self.notifications.decided.notify(&id);
            }
            return;
        }
        if channel == NEW_REQUEST_CHANNEL.as_bytes() {
            let id = str::from_utf8(&payload).ok().and_then(ApprovalId::parse);
            let _ = id.map(|id| self.notifications.new_requests.send(Some(id)));
            return;
        }
        // Ignore messages in another format.
        let Ok(Head { task_id }) = serde_json::from_slice(&payload) else {
            return;
        };
        let id = TaskId::from(task_id);
        if channel == self.reply_channel.as_bytes() {
            if self.waiters.is_own(&id) {
                self.take(id, payload);
            } else if self.waiters.is_waited(&id) {
                self.to_read.push(id);
            } else {
                self.early.keep(id, payload.into());
            }
        } else if self.waiters.is_waited(&id)
            && str::from_utf8(&channel).ok().and_then(|key| self.keys.id_of(key))
                == Some(id.as_str())
            && terminal(id.clone(), payload).is_some()
        {
            self.to_read.push(id);
        }
    }

    /// Resolves the waits for a record, if it is terminal.
    fn take(&mut self, id: TaskId, text: Vec<u8>) {
        if let Some(document) = terminal(id, text)
            && self.waiters.resolve(&document)
        {
            self.to_unsubscribe.push(document.id);
        }
    }

    fn read_all(&mut self) {
        self.to_read = self.waiters.ids().cloned().collect();
    }

    /// Re-reads everything, because notifications may have been missed.
    fn read_all_and_marks(&mut self) {
        self.read_all();
        let _ = self.notifications.revoked.send(RevocationEvent::ReadAll);
        self.notifications.decided.notify_all();
        let _ = self.notifications.new_requests.send(None);
    }

    /// The periodic re-read: finds everything that notifications missed.
    fn sweep(&mut self) {
        let left = self.waiters.forget_dropped();
        self.to_unsubscribe.extend(left);
        if self.to_read.is_empty() {
            self.read_all();
        }
    }

    /// Starts reads and changes, up to their limits.
    fn begin_work(&mut self) {
        while !self.to_read.is_empty() && self.reads.len() < READS_IN_FLIGHT {
            let ids = portion(&mut self.to_read, MAX_READ, |id| self.waiters.is_waited(id));
            if ids.is_empty() {
                continue;
            }
            let keys: Vec<String> = ids.iter().map(|id| self.keys.of(id)).collect();
            self.reads.push(Box::pin(read(self.reader.clone(), ids, keys)));
        }
        let Some(connection) = self.connection.clone().filter(|_| self.changes.is_empty()) else {
            return;
        };
        if std::mem::take(&mut self.to_subscribe_requests) {
            self.changes.push(Box::pin(async move {
                if let Err(cause) = connection.subscribe(&[NEW_REQUEST_CHANNEL.to_owned()]).await {
                    warn!(%cause, channel = NEW_REQUEST_CHANNEL, "cannot subscribe to new approval requests");
                }
                Change::SubscribedToRequests
            }));
        } else if !self.to_subscribe.is_empty() {
            let waiters = &self.waiters;
            let ids = portion(&mut self.to_subscribe, MAX_SUBSCRIBED, |id| waiters.is_foreign(id));
            let channels: Vec<String> = ids.iter().map(|id| self.keys.of(id)).collect();
            self.changes.push(Box::pin(async move {
                if !channels.is_empty()
                    && let Err(cause) = connection.subscribe(&channels).await
                {
                    // A lost connection is replaced. When the server refuses, the periodic re-read
                    // remains.
                    warn!(%cause, channel = channels[0], "cannot subscribe to results of other clients");
                }
                Change::Subscribed(ids)
            }));
        } else if !self.to_unsubscribe.is_empty() {
            let waiters = &self.waiters;
            let left = |id: &TaskId| !waiters.is_foreign(id);
            let ids = portion(&mut self.to_unsubscribe, MAX_SUBSCRIBED, left);
            let channels: Vec<String> = ids.iter().map(|id| self.keys.of(id)).collect();
            self.changes.push(Box::pin(async move {
                if !channels.is_empty() {
                    // A failure discards the connection and its subscriptions.
                    let _ = connection.unsubscribe(&channels).await;
                }
                Change::Unsubscribed
            }));
        }
    }
}

/// Removes and returns the last `count` ids, without those that no longer matter.
fn portion(
    ids: &mut Vec<TaskId>,
    count: usize,
    is_relevant: impl Fn(&TaskId) -> bool,
) -> Vec<TaskId> {
    let portion =
        ids.drain(ids.len().saturating_sub(count)..).filter(|id| is_relevant(id)).collect();
    if ids.is_empty() {
        ids.shrink_to(MAX_READ);
    }
    portion
}

async fn read(pool: ReadPool, ids: Vec<TaskId>, keys: Vec<String>) -> Read {
    let texts = pool.get(&keys).await.ok();
    if texts.is_none() {
        tokio::time::sleep(RETRY_DELAY).await;
    }
    Read { ids, texts }
}

/// Parses the document, if its state is terminal.
fn terminal(id: TaskId, text: Vec<u8>) -> Option<Document> {
    Document::parse(id, Bytes::from(text)).ok().filter(|document| document.state.is_terminal())
}

/// The field that identifies a published document.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    task_id: Cow<'a, str>,
}
