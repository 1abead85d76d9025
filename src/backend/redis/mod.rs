//! Results in Redis: the one folder that names the `redis` crate.
//!
//! | file | what is in it |
//! |---|---|
//! | `address` | the URL list, TLS, what may be shown of it |
//! | `forget` | deletes everything that is stored of a task |
//! | `journal` | the values of finished steps; `journal.lua` says which record wins |
//! | `approvals` | questions and decisions; `decide.lua` says which decision counts |
//! | `link` | one connection that is always being kept up |
//! | `audit` | what people did, and taking a failure back |
//! | `finish` | the writer: many results, one round trip; `finish.lua` says who wins |
//! | `idempotency` | which task an idempotency key stands for |
//! | `marks` | who has taken an attempt, which tasks ran when a worker died |
//! | `parks` | parked tasks; `take.lua` says who may run one |
//! | `presence` | workers that are there; what the server says about itself |
//! | `recent` | the results of the last minute, for a server that lost them |
//! | `revoked` | marks on revoked tasks |
//! | `scribe` | the writer of journals and streams |
//! | `stream` | what tasks say while they run; `stream.lua` writes nothing twice |
//! | `subscription` | the task that owns all waits: subscribes, reads, waits, reads again |
//! | `tail` | the reader of streams that are followed |

mod address;
mod approvals;
mod audit;
mod early;
mod finish;
mod forget;
mod idempotency;
mod journal;
mod link;
mod marks;
mod parks;
mod presence;
mod recent;
mod revoked;
mod scribe;
mod seal;
mod seam;
mod stream;
mod subscription;
mod tail;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::address::Addresses;
use self::finish::{Job, Script, Writer};
use self::link::{Backoff, Deadlines, Keeper, Link, PushHandler};
use self::scribe::{Call, Scribe};
use self::subscription::{Bells, Subscription, Watch};
use self::tail::Tail;
use super::{
    Crashes, Deed, Finish, Forget, Kept, KeyedTask, Line, Origin, Presence, Recorded, Revocation,
    RunOwner, Store, StoreServer, StreamEntry, sealed,
};
use crate::error::{Error, Kind};
use crate::protocol::{Document, State, TaskDigest};
use crate::task::{Revoke, TaskId};

/// What a channel must begin with to be published to on a message's word.
const REPLY_PREFIX: &str = "cs:reply:";
/// Callers that may hand over a result before the next one waits for room.
const HANDED_OVER: usize = 256;

/// How to reach Redis, and how results are kept there.
#[derive(Clone)]
pub(crate) struct RedisSettings {
    /// `redis://`, `rediss://` or a Unix socket; several separated by `;` are tried at random.
    pub(crate) url: String,
    /// The authority to trust for `rediss://`, instead of the system's.
    pub(crate) ca_pem: Option<Vec<u8>>,
    /// How long results are kept. Zero: for ever.
    pub(crate) result_expires: Duration,
    /// Celery's `global_keyprefix`.
    pub(crate) key_prefix: String,
    /// How long one attempt to connect may take.
    pub(crate) connect_timeout: Duration,
    /// How long one command may take before the connection is given up.
    pub(crate) command_timeout: Duration,
    /// Names this process's reply channel. Unguessable: who knows it may answer our tasks.
    pub(crate) client_id: String,
    /// How often all waiters are read again, whatever was or was not heard.
    pub(crate) reread: Duration,
}

impl RedisSettings {
    /// Everything but the URL as it is by default, under a fresh client id.
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ca_pem: None,
            result_expires: Duration::from_secs(24 * 60 * 60),
            key_prefix: String::new(),
            connect_timeout: Duration::from_secs(2),
            command_timeout: Duration::from_secs(2),
            client_id: uuid::Uuid::new_v4().to_string(),
            reread: Duration::from_secs(15),
        }
    }
}

impl fmt::Debug for RedisSettings {
    /// Shows no URL: it may have a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// The keys of results, as Celery names them.
#[derive(Clone, Debug)]
struct Keys {
    prefix: Arc<str>,
}

impl Keys {
    /// Celery ends a prefix with `_` unless it ends with punctuation.
    fn new(prefix: &str) -> Self {
        let joint =
            if prefix.is_empty() || prefix.ends_with([':', '_', '-', '.']) { "" } else { "_" };
        Self { prefix: format!("{prefix}{joint}celery-task-meta-").into() }
    }

    fn of(&self, id: &TaskId) -> String {
        [&*self.prefix, id.as_str()].concat()
    }

    fn id_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&*self.prefix)
    }
}

/// A [`Store`] on one Redis server.
#[derive(Debug)]
pub(crate) struct RedisStore {
    runtime: Handle,
    keys: Keys,
    reply_channel: String,
    patience: Duration,
    shown: String,
    link: Link,
    /// `0`: for ever.
    result_seconds: u64,
    jobs: mpsc::Sender<Job>,
    calls: mpsc::Sender<Call>,
    reads: mpsc::UnboundedSender<tail::Read>,
    watches: mpsc::UnboundedSender<Watch>,
    bells: Bells,
    tasks: TaskTracker,
    /// Ends the writer and the waits, then the connections.
    closing: CancellationToken,
    disconnect: CancellationToken,
}

impl RedisStore {
    /// Starts connecting, in the background and for as long as it takes, on the current runtime.
    ///
    /// # Errors
    /// A configuration error when a URL or the CA cannot be read.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    #[expect(clippy::needless_pass_by_value, reason = "settings are spent on a store")]
    pub(crate) fn connect(settings: RedisSettings) -> Result<Arc<Self>, Error> {
        let addresses = Addresses::parse(&settings.url, settings.ca_pem.as_deref())?;
        let shown = addresses.shown();
        let (closing, disconnect) = (CancellationToken::new(), CancellationToken::new());
        let keys = Keys::new(&settings.key_prefix);
        let reply_channel = format!("{REPLY_PREFIX}{}", settings.client_id);

        let keeper = keepers(&settings, addresses, disconnect.clone());
        let link = keeper(None, true).start();
        let (push, pushes) = subscription::pushes();
        let subscribed = keeper(Some(push), false).start();

        let tasks = TaskTracker::new();
        let (jobs, handed_over) = mpsc::channel(HANDED_OVER);
        let result_seconds = whole_seconds(settings.result_expires);
        let script = Script { keys: keys.clone(), expires: result_seconds.to_string() };
        let writer =
            Writer { jobs: handed_over, link: link.clone(), script, closing: closing.clone() };
        tasks.spawn(writer.run());

        let calls = Scribe::start(&tasks, link.clone(), closing.clone());
        let reads = Tail::start(&tasks, keeper(None, false), link.clone(), closing.clone());

        let (watches, requests) = mpsc::unbounded_channel();
        let bells = Bells::default();
        let subscription = Subscription {
            keys: keys.clone(),
            reply_channel: reply_channel.clone(),
            reread: settings.reread,
            reader: link.clone(),
            subscribed,
            pushes,
            requests,
            bells: bells.clone(),
            closing: closing.clone(),
        };
        tasks.spawn(subscription.run());
        tasks.close();

        Ok(Arc::new(Self {
            runtime: Handle::current(),
            keys,
            reply_channel,
            patience: settings.command_timeout * 3,
            shown,
            link,
            result_seconds,
            jobs,
            calls,
            reads,
            watches,
            bells,
            tasks,
            closing,
            disconnect,
        }))
    }
}

/// Makes the keepers of the store's connections: one that is outspoken tells of what it lost.
fn keepers(
    settings: &RedisSettings,
    addresses: Addresses,
    closing: CancellationToken,
) -> impl Fn(Option<PushHandler>, bool) -> Keeper {
    let deadlines =
        Deadlines { connect: settings.connect_timeout, command: settings.command_timeout };
    move |pushes, outspoken| Keeper {
        addresses: addresses.clone(),
        deadlines,
        closing: closing.clone(),
        pushes,
        outspoken,
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.closing.cancel();
        self.disconnect.cancel();
    }
}

impl sealed::Sealed for RedisStore {}

impl Store for RedisStore {
    fn finish(&self, finish: Finish) -> BoxFuture<'_, Result<Recorded, Error>> {
        Box::pin(async move {
            let id = finish.document.id.clone();
            let (stored, wait) = oneshot::channel();
            let job = Job { finish, stored: Some(stored) };
            self.jobs.send(job).await.map_err(|_| Kind::Closed)?;
            wait.await.map_err(|_| Kind::Closed)??;
            Ok(Recorded::new(id))
        })
    }

    fn ignore(&self, id: &TaskId) -> Recorded {
        Recorded::new(id.clone())
    }

    fn take(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        attempt: u32,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let (id, digest) = (id.clone(), digest.clone());
        Box::pin(async move { self.take_attempt(&id, &digest, attempt).await })
    }

    fn note_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>> {
        let id = id.clone();
        Box::pin(async move { self.count_run(&id, alone).await })
    }

    fn crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<Crashes, Error>> {
        let id = id.clone();
        Box::pin(async move { self.crashes_of(&id).await })
    }

    fn forget_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>> {
        let id = id.clone();
        Box::pin(async move { self.uncount_run(&id, alone).await })
    }

    fn acquit(&self, id: &TaskId) -> BoxFuture<'_, Result<(), Error>> {
        let id = id.clone();
        Box::pin(async move { self.forget_crashes(&id).await })
    }

    fn claim_key(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<KeyedTask, Error>> {
        let (key, id) = (key.to_owned(), id.clone());
        Box::pin(async move { self.claim(key, id, keep).await })
    }

    fn mark_sent(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let (key, id) = (key.to_owned(), id.clone());
        Box::pin(async move { self.mark_key(key, id, keep).await })
    }

    fn reopen(&self, deed: Deed, attempts: u64) -> BoxFuture<'_, Result<Option<State>, Error>> {
        Box::pin(self.take_back_failure(deed, attempts))
    }

    fn forget(&self, id: &TaskId) -> BoxFuture<'_, Result<Forget, Error>> {
        Box::pin(self.forget_task(id.clone()))
    }

    fn audit(&self, deed: Deed) -> BoxFuture<'_, Result<Recorded, Error>> {
        Box::pin(self.note(deed))
    }

    fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> BoxFuture<'_, Result<(), Error>> {
        let ids = ids.to_vec();
        Box::pin(async move { self.mark_revoked(&ids, revoke).await })
    }

    fn revocations(&self) -> mpsc::Receiver<Vec<Revocation>> {
        self.follow_revocations()
    }

    fn read(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<Document>, Error>> {
        let (id, link, keys) = (id.clone(), self.link.clone(), [self.keys.of(id)]);
        let patience = self.patience;
        let reading = async move { timeout(patience, read_until_answered(&link, &keys)).await };
        Box::pin(async move {
            let peer = || format!("Redis at {}", self.shown);
            // On our own runtime: the caller's may be another one.
            let answer = self.runtime.spawn(reading).await.map_err(|_| Kind::Closed)?;
            let text = answer.map_err(|_| Kind::Connection {
                peer: peer(),
                cause: format!("no answer within {} s", patience.as_secs_f64()),
            })??;
            let document = text.map(|text| Document::parse(id.clone(), Bytes::from(text)));
            document.transpose().map_err(|cause| {
                let what = format!("the result of task {id}");
                Kind::Codec { what, cause: cause.to_string() }.into()
            })
        })
    }

    fn watch(
        &self,
        id: TaskId,
        origin: Origin,
        timeout: Option<Duration>,
    ) -> oneshot::Receiver<Result<Box<Document>, Error>> {
        let (answer, wait) = oneshot::channel();
        let watch = Watch { id, origin, timeout, answer };
        if let Err(mpsc::error::SendError(watch)) = self.watches.send(watch) {
            let _ = watch.answer.send(Err(Kind::Closed.into()));
        }
        wait
    }

    fn kept(&self, id: &TaskId, digest: Option<&TaskDigest>) -> BoxFuture<'_, Result<Kept, Error>> {
        let (id, digest) = (id.clone(), digest.cloned());
        Box::pin(async move { self.read_kept(&id, digest.as_ref()).await })
    }

    fn clock(&self) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(self.read_clock())
    }

    fn record(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        step: &str,
        entry: Bytes,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Error>> {
        let (id, writer, step) = (id.clone(), writer.clone(), step.to_owned());
        Box::pin(async move { self.record_step(&id, &writer, &step, entry).await })
    }

    fn append(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        line: Line,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let (id, writer) = (id.clone(), writer.clone());
        Box::pin(async move { self.append_line(&id, &writer, line).await })
    }

    fn ended(&self, id: &TaskId, digest: &TaskDigest) -> BoxFuture<'_, Result<(), Error>> {
        let (id, digest) = (id.clone(), digest.clone());
        Box::pin(async move { self.keep_as_result(&id, &digest).await })
    }

    fn entries(&self, id: &TaskId, after: u64) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>> {
        Box::pin(self.read_entries(id.clone(), after))
    }

    fn next_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>> {
        Box::pin(self.await_entries(id.clone(), after))
    }

    fn last_entry(&self, id: &TaskId) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(self.last_number(id.clone()))
    }

    fn reply_channel(&self) -> &str {
        &self.reply_channel
    }

    fn announce(&self, presence: Presence, keep: Duration) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.keep_present(presence, keep))
    }

    fn retract(&self, presence: Presence) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.forget_present(presence))
    }

    fn present(&self) -> BoxFuture<'_, Result<Vec<Presence>, Error>> {
        Box::pin(self.all_present())
    }

    fn seen_queues(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(self.read_seen_queues())
    }

    fn server(&self) -> BoxFuture<'_, Result<StoreServer, Error>> {
        Box::pin(self.ask_server())
    }

    fn connected(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.link.session().await) })
    }

    fn is_connected(&self) -> bool {
        self.link.is_live()
    }

    fn connect_error(&self) -> Option<String> {
        self.link.connect_error()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.cancel();
            let patience = self.patience;
            let tasks = self.tasks.clone();
            // What is not flushed by then is given up: its callers are told.
            let flush = self.runtime.spawn(async move { timeout(patience, tasks.wait()).await });
            let _ = flush.await;
            self.disconnect.cancel();
            self.tasks.wait().await;
            // Until then it would answer.
            self.link.gone().await;
        })
    }
}

/// Asks until there is an answer, or the link is closed.
async fn read_until_answered(link: &Link, keys: &[String]) -> Result<Option<Vec<u8>>, Error> {
    let mut backoff = Backoff::default();
    while let Some(session) = link.session().await {
        if let Ok(mut values) = session.read(keys).await {
            return Ok(values.pop().flatten());
        }
        backoff.wait().await;
    }
    Err(Kind::Closed.into())
}

/// In seconds, as Redis expires keys; a part of a second counts as one.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
