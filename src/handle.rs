//! A task that is on its way, as whoever waits for it sees it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::backend::{Origin, Store};
use crate::error::{Error, Kind};
use crate::protocol::{Document, State};
use crate::task::TaskId;

/// A task that was put on its way. Dropping it forgets nothing: the task goes on.
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

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// What the task answered, once it has. Waits without limit, over any number of reconnects.
    ///
    /// It holds only a channel: it may be awaited on any thread and any executor, and dropped at
    /// any time.
    ///
    /// # Errors
    /// The task's failure ([`Error::failure`]), that it was revoked or expired, that its answer is
    /// not an `O`, or that the client was closed.
    pub async fn result(self) -> Result<O, Error> {
        answered(self.watch(None).await)
    }

    /// The same, for at most this long.
    ///
    /// # Errors
    /// As [`Handle::result`], and a timeout error: the task itself is not affected by it.
    pub async fn result_within(self, timeout: Duration) -> Result<O, Error> {
        answered(self.watch(Some(timeout)).await)
    }

    /// Begins the wait. What goes on waiting is one pointer: a hundred thousand may wait at a time.
    fn watch(self, timeout: Option<Duration>) -> Answer {
        self.store.watch(self.id, self.origin, timeout)
    }

    /// The task's state as it is stored now; `None` while nobody has stored any.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn state(&self) -> Result<Option<State>, Error> {
        Ok(self.store.read(&self.id).await?.map(|document| document.state))
    }
}

type Answer = oneshot::Receiver<Result<Box<Document>, Error>>;

fn answered<O: DeserializeOwned>(
    answer: Result<Result<Box<Document>, Error>, oneshot::error::RecvError>,
) -> Result<O, Error> {
    answer.map_err(|_| Error::new(Kind::Closed))??.output()
}

/// The results of many tasks, in the order of their handles: one that failed hides no other. Waits
/// for at most `concurrency` of them at a time, and without limit.
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

/// The same, for at most this long in all: what has not ended by then is a timeout error.
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
