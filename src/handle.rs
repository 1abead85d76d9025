//! Handles of enqueued tasks.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::backend::{Origin, Store};
use crate::error::{Error, Kind};
use crate::protocol::Document;
pub use crate::protocol::State;
use crate::task::TaskId;

/// A handle of an enqueued task. Await it for the task's result, as [`Handle::result`] returns it. Dropping
/// it does not affect the task.
///
/// ```no_run
/// # async fn example(client: countersign::Client) -> Result<(), countersign::Error> {
/// use countersign::Arguments;
/// let handle = client.enqueue_named("demo.add", Arguments::of(&(1, 2))?).queue("demo").await?;
/// println!("enqueued as {}", handle.id());
/// println!("the result is {}", handle.await?);
/// # Ok(()) }
/// ```
pub struct Handle<O> {
    id: TaskId,
    origin: Origin,
    store: Arc<dyn Store>,
    output: PhantomData<fn() -> O>,
}

impl<O: DeserializeOwned> Handle<O> {
    pub(crate) fn new(id: TaskId, origin: Origin, store: Arc<dyn Store>) -> Self {
        Self { id, origin, store, output: PhantomData }
    }

    /// Returns the id of the task.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// Waits for the result of the task, without a time limit, over any number of reconnects.
    ///
    /// The future holds only a channel: it may be awaited on any thread and any executor, and dropped at
    /// any time.
    ///
    /// # Errors
    /// If the task failed ([`Error::failure`]), was revoked or expired; if its result is not an `O`; or if
    /// the client was closed.
    pub async fn result(self) -> Result<O, Error> {
        output(self.watch(None).await)
    }

    /// Like [`Handle::result`], for at most `timeout`.
    ///
    /// # Errors
    /// As [`Handle::result`], and a timeout error, which does not affect the task.
    pub async fn result_within(self, timeout: Duration) -> Result<O, Error> {
        output(self.watch(Some(timeout)).await)
    }

    /// Begins the wait. The waiting future is one pointer, so a hundred thousand can wait at a time.
    fn watch(self, timeout: Option<Duration>) -> WaitResult {
        self.store.watch_result(self.id, self.origin, timeout)
    }

    /// Returns the state of the task as it is stored now, or `None` if no state is stored.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn state(&self) -> Result<Option<State>, Error> {
        Ok(self.store.read_result(&self.id).await?.map(|document| document.state))
    }
}

impl<O: DeserializeOwned + 'static> IntoFuture for Handle<O> {
    type Output = Result<O, Error>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    /// Waits for the result of the task; see [`Handle::result`].
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.result())
    }
}

type WaitResult = oneshot::Receiver<Result<Box<Document>, Error>>;

fn output<O: DeserializeOwned>(
    received: Result<Result<Box<Document>, Error>, oneshot::error::RecvError>,
) -> Result<O, Error> {
    received.map_err(|_| Error::new(Kind::Closed))??.output()
}

/// Returns the results of many tasks, in the order of their handles; one failure does not hide the
/// others. Waits for at most `concurrency` of them at a time, without a time limit.
///
/// ```no_run
/// # async fn example(handles: Vec<countersign::Handle<u64>>) {
/// let results = countersign::gather(handles, 100).await;
/// let (done, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
/// println!("{} done, {} failed", done.len(), failed.len());
/// # }
/// ```
pub async fn gather<O: DeserializeOwned>(
    handles: impl IntoIterator<Item = Handle<O>>,
    concurrency: usize,
) -> Vec<Result<O, Error>> {
    let results = stream::iter(handles).map(Handle::result);
    results.buffered(concurrency.max(1)).collect().await
}

/// Like [`gather`], for at most `timeout` in all: a task that has not ended by then gives a timeout
/// error.
pub async fn gather_within<O: DeserializeOwned>(
    handles: impl IntoIterator<Item = Handle<O>>,
    concurrency: usize,
    timeout: Duration,
) -> Vec<Result<O, Error>> {
    let begun = Instant::now();
    let left = move || timeout.saturating_sub(begun.elapsed());
    let results =
        stream::iter(handles).map(|handle| async move { handle.result_within(left()).await });
    results.buffered(concurrency.max(1)).collect().await
}

impl<O> fmt::Debug for Handle<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("id", &self.id).finish_non_exhaustive()
    }
}
