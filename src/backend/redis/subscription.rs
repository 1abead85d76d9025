//! The task that owns all waits. Pub/sub is a bell, never the truth: subscribe, then read, then
//! wait; and after every reconnect subscribe and read again.
//!
//! A result of our own task is taken from the push itself: its channel's name is a secret of
//! those who were sent the task. Celery's channels can be guessed, so what comes there only
//! makes us read the record.

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

use super::Keys;
use super::approvals::{ASKED, BELL};
use super::early::Early;
use super::link::{Link, PushHandler, Session};
use super::revoked::{self, Rung};
use crate::approval::ApprovalId;
use crate::backend::Origin;
use crate::backend::waiters::{Answer, Waiters};
use crate::error::Kind;
use crate::protocol::Document;
use crate::task::TaskId;

/// Pushes that may wait for us. One that finds no room is dropped, and everything is read again.
const PUSHES: usize = 4096;
const TAKEN_AT_ONCE: usize = 256;
const READ_AT_ONCE: usize = 500;
const READS_IN_FLIGHT: usize = 2;
const SUBSCRIBED_AT_ONCE: usize = 1000;
/// Rings that somebody may be slow to hear before he has to read all of them again.
const RINGS: usize = 1024;
const PAUSE: Duration = Duration::from_millis(200);

/// A wait that begins.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) id: TaskId,
    pub(super) origin: Origin,
    pub(super) timeout: Option<Duration>,
    pub(super) answer: Answer,
}

/// What a connection pushes, as it comes.
#[derive(Debug)]
pub(super) struct Pushes {
    messages: mpsc::Receiver<PushInfo>,
    missed: Arc<Notify>,
}

/// A bounded way from a connection's task to ours.
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

/// What rings in this process, whoever listens.
#[derive(Clone, Debug)]
pub(super) struct Bells {
    /// Where workers hear of marks on revoked tasks.
    pub(super) revoked: broadcast::Sender<Rung>,
    /// Where whoever waits for a decision hears of it; `None`: some may have been missed.
    pub(super) decided: broadcast::Sender<Option<ApprovalId>>,
    /// Likewise for new questions, which a process hears of only if it wants to.
    asked: broadcast::Sender<Option<ApprovalId>>,
    asked_wanted: Arc<Notify>,
}

impl Bells {
    pub(super) fn hear_asked(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        let rings = self.asked.subscribe();
        self.asked_wanted.notify_one();
        rings
    }
}

impl Default for Bells {
    fn default() -> Self {
        Self {
            revoked: broadcast::Sender::new(RINGS),
            decided: broadcast::Sender::new(RINGS),
            asked: broadcast::Sender::new(RINGS),
            asked_wanted: Arc::default(),
        }
    }
}

/// What the task needs to start.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) keys: Keys,
    pub(super) reply_channel: String,
    pub(super) reread: Duration,
    pub(super) reader: Link,
    pub(super) subscribed: Link,
    pub(super) pushes: Pushes,
    pub(super) requests: mpsc::UnboundedReceiver<Watch>,
    pub(super) bells: Bells,
    pub(super) closing: CancellationToken,
}

/// The waits, and the work they make.
struct Waits {
    keys: Keys,
    reply_channel: String,
    reader: Link,
    bells: Bells,
    waiters: Waiters,
    early: Early,
    session: Option<Session>,
    /// The channel of new questions is to be subscribed to.
    to_hear_asked: bool,
    to_read: Vec<TaskId>,
    to_subscribe: Vec<TaskId>,
    to_unsubscribe: Vec<TaskId>,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
    /// At most one at a time, so that they take effect in order.
    changes: FuturesUnordered<BoxFuture<'static, Change>>,
}

/// Records as they were read; `None`: not now.
struct Read {
    ids: Vec<TaskId>,
    texts: Option<Vec<Option<Vec<u8>>>>,
}

/// A change of subscriptions that is done.
enum Change {
    Listening,
    HearsAsked,
    Subscribed(Vec<TaskId>),
    Unsubscribed,
}

impl Subscription {
    /// Serves waits until it is closed.
    pub(super) async fn run(self) {
        let Self { mut subscribed, mut pushes, mut requests, closing, reread, .. } = self;
        let mut waits = Waits {
            keys: self.keys,
            reply_channel: self.reply_channel,
            reader: self.reader,
            bells: self.bells,
            waiters: Waiters::default(),
            early: Early::default(),
            session: None,
            to_hear_asked: false,
            to_read: Vec::new(),
            to_subscribe: Vec::new(),
            to_unsubscribe: Vec::new(),
            reads: FuturesUnordered::new(),
            changes: FuturesUnordered::new(),
        };
        let (mut heard, mut asked) = (Vec::new(), Vec::new());
        let mut sweep = pin!(sleep_until(soon(reread)));
        let mut timer = pin!(sleep_until(soon(reread)));
        loop {
            waits.begin_work();
            if let Some(at) = waits.waiters.next_deadline()
                && (timer.is_elapsed() || at < timer.deadline())
            {
                timer.as_mut().reset(at);
            }
            tokio::select! {
                _ = pushes.messages.recv_many(&mut heard, TAKEN_AT_ONCE) => {
                    heard.drain(..).for_each(|push| waits.hear(push));
                }
                taken = requests.recv_many(&mut asked, TAKEN_AT_ONCE) => {
                    if taken == 0 {
                        break;
                    }
                    asked.drain(..).for_each(|watch| waits.watch(watch));
                }
                Some(read) = waits.reads.next(), if !waits.reads.is_empty() => waits.have_read(read),
                Some(change) = waits.changes.next(), if !waits.changes.is_empty() => {
                    waits.have_changed(change);
                }
                Some(session) = subscribed.changed() => waits.listen(session),
                () = waits.bells.asked_wanted.notified() => waits.to_hear_asked = true,
                () = pushes.missed.notified() => waits.read_all_and_marks(),
                () = timer.as_mut(), if waits.waiters.next_deadline().is_some() => {
                    let left = waits.waiters.expire(Instant::now());
                    waits.to_unsubscribe.extend(left);
                }
                () = sweep.as_mut() => {
                    waits.sweep();
                    sweep.as_mut().reset(soon(reread));
                }
                () = closing.cancelled() => break,
            }
        }
        waits.waiters.close();
        requests.close();
        while let Some(watch) = requests.recv().await {
            let _ = watch.answer.send(Err(Kind::Closed.into()));
        }
    }
}

/// About this long from now: not at the same time as every other process.
fn soon(period: Duration) -> Instant {
    Instant::now() + period.mul_f64(rand::rng().random_range(0.8..1.2))
}

impl Waits {
    fn watch(&mut self, Watch { id, origin, timeout, answer }: Watch) {
        if origin == Origin::Own
            && let Some(document) = self.early.take(&id)
        {
            // A receiver that is gone has lost interest.
            let _ = answer.send(Ok(Box::new(document)));
            return;
        }
        let is_new = origin == Origin::Foreign && !self.waiters.is_foreign(&id);
        self.waiters.add(id.clone(), origin, timeout, answer);
        if is_new && self.session.is_some() {
            self.to_subscribe.push(id);
        } else {
            self.to_read.push(id);
        }
    }

    /// Begins anew on a new connection.
    fn listen(&mut self, session: Session) {
        self.changes.clear();
        self.to_unsubscribe.clear();
        self.to_hear_asked = self.bells.asked.receiver_count() > 0;
        self.to_subscribe = self.waiters.foreign_ids().cloned().collect();
        self.session = Some(session.clone());
        let channels = [&*self.reply_channel, revoked::CHANNEL, BELL].map(str::to_owned);
        self.changes.push(Box::pin(async move {
            if let Err(cause) = session.subscribe(&channels).await {
                warn!(%cause, channel = channels[0], "cannot subscribe; trying again");
                tokio::time::sleep(PAUSE).await;
                session.discard();
                // Another connection will come, and take this one's place.
                std::future::pending::<()>().await;
            }
            Change::Listening
        }));
    }

    fn have_changed(&mut self, change: Change) {
        match change {
            Change::Listening => self.read_all_and_marks(),
            Change::HearsAsked => drop(self.bells.asked.send(None)),
            Change::Subscribed(ids) => self.to_read.extend(ids),
            Change::Unsubscribed => {}
        }
    }

    fn have_read(&mut self, Read { ids, texts }: Read) {
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

    fn hear(&mut self, push: PushInfo) {
        let mut parts = push.data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(payload))) =
            (parts.next(), parts.next())
        else {
            return;
        };
        if channel == revoked::CHANNEL.as_bytes() {
            // Without a worker in this process nobody listens.
            let _ = revoked::heard(&payload).map(|rung| self.bells.revoked.send(rung));
            return;
        }
        if channel == BELL.as_bytes() {
            let id = str::from_utf8(&payload).ok().and_then(ApprovalId::parse);
            let _ = id.map(|id| self.bells.decided.send(Some(id)));
            return;
        }
        if channel == ASKED.as_bytes() {
            let id = str::from_utf8(&payload).ok().and_then(ApprovalId::parse);
            let _ = id.map(|id| self.bells.asked.send(Some(id)));
            return;
        }
        // Anything else that is published there is none of our business.
        let Ok(Head { task_id }) = serde_json::from_slice(&payload) else {
            return;
        };
        let id = TaskId::from(task_id);
        if channel == self.reply_channel.as_bytes() {
            if self.waiters.is_own(&id) {
                self.take(id, payload);
            } else {
                self.early.keep(id, payload);
            }
        } else if self.waiters.is_waited(&id)
            && str::from_utf8(&channel).ok().and_then(|key| self.keys.id_of(key))
                == Some(id.as_str())
            && terminal(id.clone(), payload).is_some()
        {
            self.to_read.push(id);
        }
    }

    /// Gives a record to those who wait for it, if it is what they wait for.
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

    /// Whatever was published may have been missed.
    fn read_all_and_marks(&mut self) {
        self.read_all();
        let _ = self.bells.revoked.send(Rung::ReadAll);
        let _ = self.bells.decided.send(None);
        let _ = self.bells.asked.send(None);
    }

    /// The floor under everything: whatever was missed is found now.
    fn sweep(&mut self) {
        let left = self.waiters.forget_dropped();
        self.to_unsubscribe.extend(left);
        if self.to_read.is_empty() {
            self.read_all();
        }
    }

    /// Begins reads and changes, as far as there is room for them.
    fn begin_work(&mut self) {
        while !self.to_read.is_empty() && self.reads.len() < READS_IN_FLIGHT {
            let ids = portion(&mut self.to_read, READ_AT_ONCE, |id| self.waiters.is_waited(id));
            if ids.is_empty() {
                continue;
            }
            let keys: Vec<String> = ids.iter().map(|id| self.keys.of(id)).collect();
            self.reads.push(Box::pin(read(self.reader.clone(), ids, keys)));
        }
        let Some(session) = self.session.clone().filter(|_| self.changes.is_empty()) else {
            return;
        };
        if std::mem::take(&mut self.to_hear_asked) {
            self.changes.push(Box::pin(async move {
                if let Err(cause) = session.subscribe(&[ASKED.to_owned()]).await {
                    warn!(%cause, channel = ASKED, "cannot subscribe to new questions");
                }
                Change::HearsAsked
            }));
        } else if !self.to_subscribe.is_empty() {
            let waiters = &self.waiters;
            let ids =
                portion(&mut self.to_subscribe, SUBSCRIBED_AT_ONCE, |id| waiters.is_foreign(id));
            let channels: Vec<String> = ids.iter().map(|id| self.keys.of(id)).collect();
            self.changes.push(Box::pin(async move {
                if !channels.is_empty()
                    && let Err(cause) = session.subscribe(&channels).await
                {
                    // A lost connection is made again; a refusal leaves the regular reading.
                    warn!(%cause, channel = channels[0], "cannot subscribe to results of others");
                }
                Change::Subscribed(ids)
            }));
        } else if !self.to_unsubscribe.is_empty() {
            let waiters = &self.waiters;
            let left = |id: &TaskId| !waiters.is_foreign(id);
            let ids = portion(&mut self.to_unsubscribe, SUBSCRIBED_AT_ONCE, left);
            let channels: Vec<String> = ids.iter().map(|id| self.keys.of(id)).collect();
            self.changes.push(Box::pin(async move {
                if !channels.is_empty() {
                    // A failure discards the connection, and the subscriptions with it.
                    let _ = session.unsubscribe(&channels).await;
                }
                Change::Unsubscribed
            }));
        }
    }
}

/// The last of these ids, those that still matter.
fn portion(ids: &mut Vec<TaskId>, count: usize, matters: impl Fn(&TaskId) -> bool) -> Vec<TaskId> {
    let portion = ids.drain(ids.len().saturating_sub(count)..).filter(|id| matters(id)).collect();
    if ids.is_empty() {
        ids.shrink_to(READ_AT_ONCE);
    }
    portion
}

async fn read(link: Link, ids: Vec<TaskId>, keys: Vec<String>) -> Read {
    let texts = match link.session().await {
        Some(session) => session.read(&keys).await.ok(),
        None => None,
    };
    if texts.is_none() {
        tokio::time::sleep(PAUSE).await;
    }
    Read { ids, texts }
}

/// The document in this text, if it ends a wait.
fn terminal(id: TaskId, text: Vec<u8>) -> Option<Document> {
    Document::parse(id, Bytes::from(text)).ok().filter(|document| document.state.is_terminal())
}

/// The one field by which a published document is told from another.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    task_id: Cow<'a, str>,
}
