//! Follows the progress and stream entries of a running task.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use tokio::sync::oneshot;

use super::Client;
use crate::backend::{Origin, Store, StreamEntry};
use crate::error::Error;
use crate::protocol::Document;
use crate::task::TaskId;

impl Client {
    /// Follows the entries that a task writes ([`Context::progress`](crate::Context::progress) and
    /// [`Context::stream`](crate::Context::stream)), starting with the first. Nothing is read until the
    /// first entry is requested.
    ///
    /// ```no_run
    /// # async fn example(client: countersign::Client) -> Result<(), countersign::Error> {
    /// let mut follow = client.follow(&"6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f".into());
    /// while let Some(entry) = follow.next().await {
    ///     println!("{}", entry?.value);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// [`Follow`] is also a `Stream`, for the adaptors of `futures_util::StreamExt` and the like.
    pub fn follow(&self, id: &TaskId) -> Follow {
        Follow {
            id: id.clone(),
            store: Arc::clone(&self.backends().store),
            after: Some(0),
            entries: None,
        }
    }
}

/// The entries of a task's stream as they arrive. It survives lost connections, and ends when the task ends
/// with a success, a failure or a revocation. For a task without a stored result (`ignore_result`) it never
/// ends.
///
/// An item is an error if the stream's key holds other data or data of a newer version, the store does not
/// answer, or the client was closed. The next item tries again.
#[must_use = "nothing is read until an entry is requested"]
pub struct Follow {
    id: TaskId,
    store: Arc<dyn Store>,
    /// The last entry before the first to return; `None`: the newest one at the first read.
    after: Option<u64>,
    /// The entries, once the first one was requested.
    entries: Option<BoxStream<'static, Result<StreamEntry, Error>>>,
}

impl Follow {
    /// Starts with this entry instead. Skips entries that the stream no longer has.
    pub fn from(self, number: u64) -> Self {
        Self { after: Some(number.saturating_sub(1)), entries: None, ..self }
    }

    /// Starts with the next entry that is written.
    pub fn live(self) -> Self {
        Self { after: None, entries: None, ..self }
    }

    /// Returns the next entry; `None` if the task has ended and all entries were read. Waits without limit,
    /// also while the store is unreachable.
    ///
    /// Cancel safe: an entry that was not returned is returned by the next call.
    ///
    /// # Errors
    /// If the stream's key holds other data or data of a newer version, the store does not answer, or the
    /// client was closed. The next call tries again.
    pub async fn next(&mut self) -> Option<Result<StreamEntry, Error>> {
        StreamExt::next(self).await
    }
}

impl Stream for Follow {
    type Item = Result<StreamEntry, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { id, store, after, entries } = &mut *self;
        let start = || Reader::new(id.clone(), Arc::clone(store), *after).entries();
        entries.get_or_insert_with(start).poll_next_unpin(context)
    }
}

/// Reads the entries of a stream, and notices the end of its task.
struct Reader {
    id: TaskId,
    store: Arc<dyn Store>,
    /// The last entry before those to return; `None`: the newest one at the first read.
    after: Option<u64>,
    read: VecDeque<StreamEntry>,
    /// Whether the key is known to hold a readable stream.
    is_checked: bool,
    end: End,
}

/// Whether the task has ended.
enum End {
    Unwatched,
    Waiting(oneshot::Receiver<Result<Box<Document>, Error>>),
    /// The task has ended; the remaining entries are being read.
    Ended,
    /// The end was reported: there are no more items.
    Reported,
}

impl Reader {
    fn new(id: TaskId, store: Arc<dyn Store>, after: Option<u64>) -> Self {
        Self { id, store, after, read: VecDeque::new(), is_checked: false, end: End::Unwatched }
    }

    fn entries(self) -> BoxStream<'static, Result<StreamEntry, Error>> {
        let next = |mut reader: Self| async { reader.next().await.map(|entry| (entry, reader)) };
        stream::unfold(self, next).fuse().boxed()
    }

    async fn next(&mut self) -> Option<Result<StreamEntry, Error>> {
        loop {
            if let Some(entry) = self.read.pop_front() {
                self.after = Some(entry.number);
                return Some(Ok(entry));
            }
            if matches!(self.end, End::Reported) {
                return None;
            }
            if let Err(error) = self.read_more().await {
                self.is_checked = false;
                return Some(Err(error));
            }
        }
    }

    async fn read_more(&mut self) -> Result<(), Error> {
        let after = match self.after {
            Some(after) => after,
            None => *self.after.insert(self.store.last_entry(&self.id).await?),
        };
        if !self.is_checked {
            self.read = self.store.read_entries(&self.id, after).await?.into();
            self.is_checked = true;
            return Ok(());
        }
        let end = match &mut self.end {
            End::Unwatched => {
                let watched = self.store.watch_result(self.id.clone(), Origin::Foreign, None);
                self.end = End::Waiting(watched);
                return Ok(());
            }
            End::Waiting(end) => end,
            End::Ended => {
                self.read = self.store.read_entries(&self.id, after).await?.into();
                if self.read.is_empty() {
                    self.end = End::Reported;
                }
                return Ok(());
            }
            End::Reported => return Ok(()),
        };
        tokio::select! {
            biased;
            entries = self.store.next_entries(&self.id, after) => self.read = entries?.into(),
            ended = end => {
                self.end = End::Ended;
                if let Ok(Err(error)) = ended {
                    self.end = End::Reported;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow").field("id", &self.id).field("after", &self.after).finish()
    }
}
