//! The implementation of the `Store` trait.

use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::db::{Db, RETRY_DELAY};
use super::fault::TxResult;
use super::result_waits;
use super::retention::Retention;
use super::txn::Txn;
use crate::backend::backoff::Backoff;
use crate::backend::{Connection, Store, sealed};
use crate::error::{Error, Kind};

/// The [`Store`] of a database.
#[derive(Debug)]
pub(super) struct EmbeddedStore {
    pub(super) db: Db,
    pub(super) retention: Retention,
    pub(super) runtime: Handle,
    pub(super) tasks: TaskTracker,
    pub(super) closing: CancellationToken,
}

impl EmbeddedStore {
    /// Starts the store on the current runtime.
    pub(super) fn start(db: Db, result_expires: Duration) -> Self {
        let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
        let (timers, closed) = (result_waits::run_timers(db.clone()), closing.clone());
        tasks.spawn(async move { closed.run_until_cancelled(timers).await });
        let results =
            i64::try_from(result_expires.as_millis()).ok().filter(|retention| *retention > 0);
        let retention = Retention { results };
        Self { db, retention, runtime: Handle::current(), tasks, closing }
    }

    /// Retries a write without limit, until the store is closed.
    pub(super) async fn retry_until_ok<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Txn<'_>) -> TxResult<T> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        self.retry(|| self.db.write(work.clone())).await
    }

    pub(super) async fn retry<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut backoff = Backoff::new(RETRY_DELAY);
        loop {
            match attempt().await {
                Err(error) if error.is_connection() => {
                    self.db.shared().warnings.warn("cannot access the database; retrying", &error);
                }
                result => return result,
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

impl Store for EmbeddedStore {}

impl Connection for EmbeddedStore {
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
            self.db.shared().notifications.waiters().close();
        })
    }
}
