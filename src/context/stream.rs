//! The stream of a task: progress and partial output while it runs.

use std::fmt;

use serde::Serialize;

use super::Context;
use crate::backend::EntryKind;
use crate::error::{TaskError, TaskResult};

impl Context {
    /// Publishes the progress of the task to its followers ([`Client::follow`](crate::Client::follow)).
    /// Returns once the entry is stored; waits while the store is unreachable.
    ///
    /// Entries are numbered in the order of the calls, within the step that writes them or else within
    /// the handler's body. A later run of the handler counts from 1 again, and entries whose numbers are
    /// already stored are not written again. A step that runs again writes its entries again, after an
    /// entry that announces this to readers.
    ///
    /// If the future is dropped before it completes, the entry may or may not be stored.
    ///
    /// # Errors
    /// Not retried: the entry is over `limits.stream_entry`, or no JSON.
    pub async fn progress<T: Serialize + ?Sized>(&self, value: &T) -> TaskResult<()> {
        self.append(EntryKind::Progress, value).await
    }

    /// Returns the partial output of the task, for example the tokens of a language model or the lines of
    /// a report.
    ///
    /// ```
    /// # async fn write(ctx: countersign::Context) -> countersign::TaskResult<()> {
    /// let output = ctx.stream();
    /// for word in ["so", "it", "goes"] {
    ///     output.send(word).await?;
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn stream(&self) -> Output {
        Output { context: self.clone() }
    }

    async fn append<T: Serialize + ?Sized>(&self, kind: EntryKind, value: &T) -> TaskResult<()> {
        let json = serde_json::to_vec(value).map_err(|error| not_json(&error))?;
        let (size, limit) = (json.len(), self.run.services.limits.stream_entry);
        if size > limit {
            return Err(too_large(size, limit));
        }
        let sequence = self.run.entry_sequence();
        Ok(self.run.append(&sequence, kind, json.into()).await?)
    }
}

/// The partial output of one run. Cheap to clone.
#[derive(Clone)]
pub struct Output {
    context: Context,
}

impl Output {
    /// Sends a part of the output, with the same guarantees as [`Context::progress`].
    ///
    /// # Errors
    /// The same as [`Context::progress`].
    pub async fn send<T: Serialize + ?Sized>(&self, part: &T) -> TaskResult<()> {
        self.context.append(EntryKind::Output, part).await
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("task", self.context.id()).finish()
    }
}

fn not_json(error: &serde_json::Error) -> TaskError {
    let message = format!("a stream entry cannot be encoded as JSON: {error}");
    TaskError::with_exception("countersign.errors", "StreamEntryNotJson", message).no_retry()
}

fn too_large(size: usize, limit: usize) -> TaskError {
    let message = format!(
        "a stream entry is {size} bytes, over the limit of {limit} (limits.stream_entry): send it \
         in parts"
    );
    TaskError::with_exception("countersign.errors", "StreamEntryTooLarge", message).no_retry()
}
