//! What a task says while it runs.

use std::fmt;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Mutex;

use super::Context;
use super::run::Run;
use crate::backend::{Line, Said, Scope};
use crate::error::{Error, TaskError, TaskResult};

/// Numbers the entries of one scope.
#[derive(Debug)]
pub(super) struct Numbers {
    scope: Scope,
    /// Held while an entry is written, so that they are written in their order.
    last: Mutex<u64>,
}

impl Numbers {
    pub(super) fn new(scope: Scope) -> Self {
        Self { scope, last: Mutex::new(0) }
    }

    /// Those of one execution of a step.
    pub(super) fn of_step(name: &str) -> Self {
        Self::new(Scope::Step { name: name.into(), execution: rand::random() })
    }

    /// Says that the step runs again.
    pub(super) async fn restart(&self, run: &Run) -> Result<(), Error> {
        let json = Bytes::from_static(b"null");
        let line = Line { scope: self.scope.clone(), number: 0, said: Said::Restarted, json };
        run.around.store.append(run.id(), run.owner(), line).await
    }

    async fn write(&self, run: &Run, said: Said, json: Bytes) -> Result<(), Error> {
        let mut last = self.last.lock().await;
        *last += 1;
        let line = Line { scope: self.scope.clone(), number: *last, said, json };
        run.leaves.store(true, Ordering::Relaxed);
        run.around.store.append(run.id(), run.owner(), line).await
    }
}

impl Context {
    /// Says how far the task has come, to whoever follows it
    /// ([`Client::follow`](crate::Client::follow)). Returns once that is stored; while the store is
    /// away it waits.
    ///
    /// Entries are numbered, in the order of the calls, within the step that makes them or else
    /// within the handler's body. A later run of the handler counts from 1 again, and those of its
    /// numbers that are there already are not written again. A step that is done again has its
    /// entries written again, after an entry that says so to readers.
    ///
    /// Dropped before it returns, the entry may be stored or not.
    ///
    /// # Errors
    /// Never to be retried: the entry is over `limits.stream_entry`, or no JSON.
    pub async fn progress<T: Serialize + ?Sized>(&self, value: &T) -> TaskResult<()> {
        self.say(Said::Progress, value).await
    }

    /// The way by which the task gives away what it makes, part by part: the tokens of a language
    /// model, the lines of a report.
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

    async fn say<T: Serialize + ?Sized>(&self, said: Said, value: &T) -> TaskResult<()> {
        let json = serde_json::to_vec(value).map_err(|error| not_json(&error))?;
        let (size, limit) = (json.len(), self.run.around.limits.stream_entry);
        if size > limit {
            return Err(too_large(size, limit));
        }
        Ok(self.run.numbers().write(&self.run, said, json.into()).await?)
    }
}

/// The partial output of one run. Cheap to clone.
#[derive(Clone)]
pub struct Output {
    context: Context,
}

impl Output {
    /// Gives away a part, as [`Context::progress`] does; the same holds.
    ///
    /// # Errors
    /// As [`Context::progress`].
    pub async fn send<T: Serialize + ?Sized>(&self, part: &T) -> TaskResult<()> {
        self.context.say(Said::Output, part).await
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("task", self.context.id()).finish()
    }
}

fn not_json(error: &serde_json::Error) -> TaskError {
    let told = format!("a stream entry cannot be written as JSON: {error}");
    TaskError::raise("countersign.errors", "StreamEntryNotJson", told).never()
}

fn too_large(size: usize, limit: usize) -> TaskError {
    let told = format!(
        "a stream entry is {size} bytes, over the limit of {limit} (limits.stream_entry): send it \
         in parts"
    );
    TaskError::raise("countersign.errors", "StreamEntryTooLarge", told).never()
}
