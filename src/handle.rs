//! A task that is on its way, as whoever waits for it sees it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::backend::{Origin, Store};
use crate::error::{Error, Kind};
use crate::protocol::State;
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
        self.wait(None).await
    }

    /// The same, for at most this long.
    ///
    /// # Errors
    /// As [`Handle::result`], and a timeout error: the task itself is not affected by it.
    pub async fn result_within(self, timeout: Duration) -> Result<O, Error> {
        self.wait(Some(timeout)).await
    }

    async fn wait(self, timeout: Option<Duration>) -> Result<O, Error> {
        let answer = self.store.watch(self.id.clone(), self.origin, timeout);
        answer.await.map_err(|_| Error::new(Kind::Closed))??.output()
    }

    /// The task's state as it is stored now; `None` while nobody has stored any.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn state(&self) -> Result<Option<State>, Error> {
        Ok(self.store.read(&self.id).await?.map(|document| document.state))
    }
}

impl<O> fmt::Debug for Handle<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("id", &self.id).finish_non_exhaustive()
    }
}
