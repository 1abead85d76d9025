//! Watching what a task says while it runs.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::Client;
use crate::backend::{Origin, Store, StreamEntry};
use crate::error::Error;
use crate::protocol::Document;
use crate::task::TaskId;

impl Client {
    /// Follows what a task says ([`Context::progress`](crate::Context::progress) and
    /// [`Context::stream`](crate::Context::stream)), from its first entry on.
    ///
    /// ```no_run
    /// # async fn example(client: countersign::Client) -> Result<(), countersign::Error> {
    /// let mut follow = client.follow(&"6f1f3c1e-6d9e-4f0f-9e3b-2f0a4c7d8e9f".into());
    /// while let Some(entry) = follow.next().await {
    ///     println!("{}", entry?.value);
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn follow(&self, id: &TaskId) -> Follow {
        Follow {
            id: id.clone(),
            store: Arc::clone(&self.backends().store),
            after: Some(0),
            read: VecDeque::new(),
            is_checked: false,
            end: End::Unasked,
        }
    }
}

/// The entries of a task's stream as they come. It survives lost connections, and ends when the
/// task has: with a success, a failure or a revocation. A task whose result is not stored
/// (`ignore_result`) is followed for ever.
pub struct Follow {
    id: TaskId,
    store: Arc<dyn Store>,
    /// The last entry that is not wanted; `None`: whichever is the last now.
    after: Option<u64>,
    read: VecDeque<StreamEntry>,
    /// That it is a stream which can be read.
    is_checked: bool,
    end: End,
}

/// Whether the task has ended.
enum End {
    Unasked,
    Waiting(oneshot::Receiver<Result<Box<Document>, Error>>),
    /// What it has said is read to its end.
    Ended,
    Told,
}

impl Follow {
    /// Begins at this entry instead. Entries that the stream keeps no more are passed over.
    #[must_use]
    pub fn from(mut self, number: u64) -> Self {
        self.after = Some(number.saturating_sub(1));
        self
    }

    /// Begins with the next entry that is written.
    #[must_use]
    pub fn live(mut self) -> Self {
        self.after = None;
        self
    }

    /// The next entry; `None` when the task has ended and all of it was read. Waits without limit,
    /// and while the store is away.
    ///
    /// Cancel safe: what was not returned comes the next time.
    ///
    /// # Errors
    /// What is stored in the stream's place is not one, or of a newer version; the store does not
    /// answer; the client was closed. Asked again, it tries again.
    pub async fn next(&mut self) -> Option<Result<StreamEntry, Error>> {
        loop {
            if let Some(entry) = self.read.pop_front() {
                self.after = Some(entry.number);
                return Some(Ok(entry));
            }
            if matches!(self.end, End::Told) {
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
            self.read = self.store.entries(&self.id, after).await?.into();
            self.is_checked = true;
            return Ok(());
        }
        let end = match &mut self.end {
            End::Unasked => {
                let watched = self.store.watch(self.id.clone(), Origin::Foreign, None);
                self.end = End::Waiting(watched);
                return Ok(());
            }
            End::Waiting(end) => end,
            End::Ended => {
                self.read = self.store.entries(&self.id, after).await?.into();
                if self.read.is_empty() {
                    self.end = End::Told;
                }
                return Ok(());
            }
            End::Told => return Ok(()),
        };
        tokio::select! {
            biased;
            entries = self.store.next_entries(&self.id, after) => self.read = entries?.into(),
            ended = end => {
                self.end = End::Ended;
                if let Ok(Err(error)) = ended {
                    self.end = End::Told;
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
