//! The store, by the names of its seam.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backoff::Backoff;
use super::db::Db;
use super::journal::Retention;
use super::txn::{Done, Txn};
use super::{audit, journal, marks, results};
use crate::backend::{
    Crashes, Deed, Finish, Forget, Kept, KeyedTask, Line, Origin, Presence, Recorded, Revocation,
    RunOwner, Store, StoreServer, StreamEntry, sealed,
};
use crate::error::{Error, Kind};
use crate::protocol::{Document, State, TaskDigest};
use crate::task::{Revoke, TaskId};

/// The [`Store`] of a database.
#[derive(Debug)]
pub(super) struct EmbeddedStore {
    pub(super) db: Db,
    pub(super) retention: Retention,
    runtime: Handle,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl EmbeddedStore {
    /// On the current runtime.
    pub(super) fn start(db: Db, result_expires: Duration) -> Self {
        let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
        let (keeping_time, closed) = (results::keep_time(db.clone()), closing.clone());
        tasks.spawn(async move { closed.run_until_cancelled(keeping_time).await });
        let results = i64::try_from(result_expires.as_millis()).ok().filter(|kept| *kept > 0);
        let retention = Retention { results };
        Self { db, retention, runtime: Handle::current(), tasks, closing }
    }

    /// Writes for as long as it takes, until the store is closed.
    async fn insist<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Txn<'_>) -> Done<T> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        self.until_answered(|| self.db.write(work.clone())).await
    }

    async fn until_answered<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match ask().await {
                Err(error) if error.is_connection() => {
                    self.db.shared().warnings.warn("cannot write, trying again", &error);
                }
                answer => return answer,
            }
            self.closing.run_until_cancelled(backoff.wait()).await.ok_or(Kind::Closed)?;
        }
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl sealed::Sealed for EmbeddedStore {}

impl Store for EmbeddedStore {
    fn finish(&self, finish: Finish) -> BoxFuture<'_, Result<Recorded, Error>> {
        let (id, kept) = (finish.document.id.clone(), self.retention.results);
        Box::pin(async move {
            self.insist(move |txn| results::finish(txn, &finish, kept)).await?;
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
        Box::pin(self.db.write(move |txn| marks::take(txn, &id, &digest, attempt)))
    }

    fn note_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>> {
        let id = id.clone();
        Box::pin(self.db.write(move |txn| marks::note_run(txn, &id, alone)))
    }

    fn crashes(&self, id: &TaskId) -> BoxFuture<'_, Result<Crashes, Error>> {
        let id = id.clone();
        Box::pin(self.db.read(move |txn| marks::crashes(txn, &id)))
    }

    fn forget_run(&self, id: &TaskId, alone: bool) -> BoxFuture<'_, Result<(), Error>> {
        let id = id.clone();
        Box::pin(self.db.write(move |txn| marks::forget_run(txn, &id, alone)))
    }

    fn acquit(&self, id: &TaskId) -> BoxFuture<'_, Result<(), Error>> {
        let id = id.clone();
        Box::pin(self.db.write(move |txn| marks::acquit(txn, &id)))
    }

    fn claim_key(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<KeyedTask, Error>> {
        let (key, id) = (key.to_owned(), id.clone());
        Box::pin(self.db.write(move |txn| marks::claim_key(txn, &key, &id, keep)))
    }

    fn mark_sent(
        &self,
        key: &str,
        id: &TaskId,
        keep: Duration,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let (key, id) = (key.to_owned(), id.clone());
        Box::pin(self.db.write(move |txn| marks::mark_sent(txn, &key, &id, keep)))
    }

    fn reopen(&self, deed: Deed, attempts: u64) -> BoxFuture<'_, Result<Option<State>, Error>> {
        Box::pin(self.db.write(move |txn| results::reopen(txn, &deed, attempts)))
    }

    fn forget(&self, id: &TaskId) -> BoxFuture<'_, Result<Forget, Error>> {
        let id = id.clone();
        Box::pin(self.db.write(move |txn| results::forget(txn, &id)))
    }

    fn audit(&self, deed: Deed) -> BoxFuture<'_, Result<Recorded, Error>> {
        let proof = Recorded::new(deed.id.clone());
        let noted = self.db.write(move |txn| audit::note(txn, &deed, &[]));
        Box::pin(async move { noted.await.map(|()| proof) })
    }

    fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> BoxFuture<'_, Result<(), Error>> {
        let ids = ids.to_vec();
        Box::pin(self.db.write(move |txn| marks::revoke(txn, &ids, revoke)))
    }

    fn revocations(&self) -> mpsc::Receiver<Vec<Revocation>> {
        let (tell, told) = marks::backlog();
        let rings = self.db.shared().bells.revoked.subscribe();
        let following = marks::follow_revocations(self.db.clone(), rings, tell);
        let closing = self.closing.clone();
        let following = async move { closing.run_until_cancelled(following).await };
        self.tasks.spawn_on(following, &self.runtime);
        told
    }

    fn read(&self, id: &TaskId) -> BoxFuture<'_, Result<Option<Document>, Error>> {
        let id = id.clone();
        Box::pin(self.db.read(move |txn| results::read(txn, &id)))
    }

    fn watch(
        &self,
        id: TaskId,
        origin: Origin,
        timeout: Option<Duration>,
    ) -> oneshot::Receiver<Result<Box<Document>, Error>> {
        let (answer, wait) = oneshot::channel();
        results::watch(&self.db, id, origin, timeout, answer);
        wait
    }

    fn kept(&self, id: &TaskId, digest: Option<&TaskDigest>) -> BoxFuture<'_, Result<Kept, Error>> {
        let (id, digest) = (id.clone(), digest.cloned());
        Box::pin(self.until_answered(move || {
            let (id, digest) = (id.clone(), digest.clone());
            self.db.read(move |txn| journal::kept(txn, &id, digest.as_ref()))
        }))
    }

    fn clock(&self) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(async { Ok(self.db.shared().clock.now()) })
    }

    fn record(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        step: &str,
        entry: Bytes,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Error>> {
        let (id, writer, step) = (id.clone(), writer.clone(), step.to_owned());
        let retention = self.retention;
        Box::pin(
            self.insist(move |txn| journal::record(txn, &id, &writer, (&step, &entry), retention)),
        )
    }

    fn append(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        line: Line,
    ) -> BoxFuture<'_, Result<(), Error>> {
        let (id, writer, retention) = (id.clone(), writer.clone(), self.retention);
        Box::pin(self.insist(move |txn| journal::append(txn, &id, &writer, &line, retention)))
    }

    fn ended(&self, id: &TaskId, digest: &TaskDigest) -> BoxFuture<'_, Result<(), Error>> {
        let (id, digest, retention) = (id.clone(), digest.clone(), self.retention);
        Box::pin(self.insist(move |txn| journal::ended(txn, &id, &digest, retention)))
    }

    fn entries(&self, id: &TaskId, after: u64) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>> {
        let id = id.clone();
        Box::pin(self.db.read(move |txn| journal::entries(txn, &id, after)))
    }

    fn next_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>> {
        let id = id.clone();
        Box::pin(async move {
            let bell = self.db.shared().bells.stream(&id);
            loop {
                let mut rung = std::pin::pin!(bell.notified());
                rung.as_mut().enable();
                let found = self.until_answered(|| self.entries(&id, after)).await?;
                if !found.is_empty() {
                    return Ok(found);
                }
                let waited = self.closing.run_until_cancelled(rung).await;
                waited.ok_or(Kind::Closed)?;
            }
        })
    }

    fn last_entry(&self, id: &TaskId) -> BoxFuture<'_, Result<u64, Error>> {
        let id = id.clone();
        Box::pin(self.db.read(move |txn| Ok(journal::last_number(txn, &id)?.unsigned_abs())))
    }

    fn reply_channel(&self) -> &str {
        ""
    }

    fn announce(&self, presence: Presence, keep: Duration) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.db.write(move |txn| marks::announce(txn, &presence, keep)))
    }

    fn retract(&self, presence: Presence) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.db.write(move |txn| marks::retract(txn, &presence)))
    }

    fn present(&self) -> BoxFuture<'_, Result<Vec<Presence>, Error>> {
        Box::pin(self.db.read(|txn| marks::present(txn)))
    }

    fn seen_queues(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        // Those of dead letters and of resume messages belong to the queue before the suffix.
        Box::pin(self.db.read(|txn| {
            let names = txn.all("SELECT name FROM queues ORDER BY name", [], |row| row.get(0))?;
            let is_own =
                |name: &String| !name.ends_with(".dead") && !name.ends_with(".countersign-resume");
            Ok(names.into_iter().filter(is_own).collect())
        }))
    }

    fn server(&self) -> BoxFuture<'_, Result<StoreServer, Error>> {
        let version = format!("SQLite {}", rusqlite::version());
        let server = StoreServer { version, eviction: "noeviction".to_owned(), clock_ahead: 0 };
        Box::pin(async { Ok(server) })
    }

    fn connected(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.db.shared().availability.available())
    }

    fn is_connected(&self) -> bool {
        !self.closing.is_cancelled() && self.db.shared().availability.is_available()
    }

    fn connect_error(&self) -> Option<String> {
        None
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.cancel();
            self.tasks.close();
            self.tasks.wait().await;
            self.db.close().await;
            self.db.shared().bells.waiters().close();
        })
    }
}
