//! The store on a Redis server: its start and its end.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::address::Addresses;
use super::connection::{ConnectionHandle, Deadlines, PushHandler, Supervisor};
use super::journal_writer::{JournalCall, JournalWriter};
use super::keys::{Keys, REPLY_PREFIX};
use super::pool::ReadPool;
use super::result_writer::{ResultJob, ResultWriter};
use super::settings::RedisSettings;
use super::stream_reader::{StreamRead, StreamReader};
use super::subscription::{Notifications, Subscription, Watch, pushes};
use crate::backend::{Connection, Store, sealed};
use crate::error::Error;

/// A [`Store`] on one Redis server.
#[derive(Debug)]
pub(crate) struct RedisStore {
    pub(super) runtime: Handle,
    pub(super) keys: Keys,
    pub(super) reply_channel: String,
    pub(super) request_timeout: Duration,
    pub(super) shown: String,
    pub(super) handle: ConnectionHandle,
    pub(super) pool: ReadPool,
    /// Retention; `0`: forever.
    pub(super) result_seconds: u64,
    pub(super) jobs: mpsc::Sender<ResultJob>,
    pub(super) calls: mpsc::Sender<JournalCall>,
    pub(super) reads: mpsc::UnboundedSender<StreamRead>,
    pub(super) watches: mpsc::UnboundedSender<Watch>,
    pub(super) notifications: Notifications,
    pub(super) tasks: TaskTracker,
    /// Cancelled first: ends the writers and the waits. `disconnect` then ends the connections.
    pub(super) closing: CancellationToken,
    pub(super) disconnect: CancellationToken,
}

impl RedisStore {
    /// Starts to connect in the background on the current runtime, and retries without a time limit.
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
        let supervisor = supervisors(&settings, addresses, disconnect.clone());
        let handle = supervisor(None, true).start();
        let pool = ReadPool::new(settings.pool, supervisor(None, false), handle.clone())?;
        let (push, pushes) = pushes();
        let subscribed = supervisor(Some(push), false).start();

        let tasks = TaskTracker::new();
        let result_seconds = whole_seconds(settings.result_expires);
        let jobs = ResultWriter::start(
            &tasks,
            handle.clone(),
            (keys.clone(), result_seconds),
            closing.clone(),
        );
        let calls = JournalWriter::start(&tasks, handle.clone(), closing.clone());
        let reads =
            StreamReader::start(&tasks, supervisor(None, false), handle.clone(), closing.clone());

        let (watches, requests) = mpsc::unbounded_channel();
        let notifications = Notifications::default();
        let subscription = Subscription {
            keys: keys.clone(),
            reply_channel: reply_channel.clone(),
            reread: settings.reread,
            reader: pool.clone(),
            subscribed,
            pushes,
            requests,
            notifications: notifications.clone(),
            closing: closing.clone(),
        };
        tasks.spawn(subscription.run());
        tasks.close();

        Ok(Arc::new(Self {
            runtime: Handle::current(),
            keys,
            reply_channel,
            request_timeout: settings.command_timeout * 3,
            shown,
            handle,
            pool,
            result_seconds,
            jobs,
            calls,
            reads,
            watches,
            notifications,
            tasks,
            closing,
            disconnect,
        }))
    }
}

/// Returns a constructor of supervisors for the store's connections; one with `log_changes` logs lost connections.
fn supervisors(
    settings: &RedisSettings,
    addresses: Addresses,
    closing: CancellationToken,
) -> impl Fn(Option<PushHandler>, bool) -> Supervisor {
    let deadlines =
        Deadlines { connect: settings.connect_timeout, command: settings.command_timeout };
    move |pushes, log_changes| Supervisor {
        addresses: addresses.clone(),
        deadlines,
        closing: closing.clone(),
        pushes,
        log_changes,
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.closing.cancel();
        self.disconnect.cancel();
        self.pool.close();
    }
}

impl sealed::Sealed for RedisStore {}

impl Store for RedisStore {}

impl Connection for RedisStore {
    fn connected(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.handle.connection().await) })
    }

    fn is_connected(&self) -> bool {
        self.handle.is_live()
    }

    fn connect_error(&self) -> Option<String> {
        self.handle.connect_error()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.cancel();
            let request_timeout = self.request_timeout;
            let tasks = self.tasks.clone();
            // Writes that are not flushed within the timeout fail, and their callers receive an error.
            let flush =
                self.runtime.spawn(async move { timeout(request_timeout, tasks.wait()).await });
            let _ = flush.await;
            self.disconnect.cancel();
            self.pool.close();
            self.tasks.wait().await;
            // Until then calls would still be served.
            self.handle.closed().await;
        })
    }
}

/// Whole seconds, as Redis expires keys; a fraction is rounded up.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
