//! Steps: parts of a handler that are not repeated once their results are recorded.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Context;
use super::entry_sequence::EntrySequence;
use super::run::Run;
use crate::error::{TaskError, TaskResult};
use crate::journal::{self, Fault};

impl Context {
    /// Runs `work` and records its result under `name`. Any later run of this task (a retry, or a run
    /// after a crash) returns the recorded result without running `work`. If two runs execute the step at
    /// the same time, both get the result that was recorded first.
    ///
    /// Every run, including the first, gets the result as decoded from JSON.
    ///
    /// If the process crashes after the effect of `work` and before its result is recorded, `work` runs
    /// again: make the effect idempotent, for example by sending [`Context::id`] as the key of a payment.
    /// An error is not recorded; the step runs again when the task is retried.
    ///
    /// While the store is unreachable this waits. When the run is to be dropped (hard limit, a drain's
    /// deadline, revocation), a step has [`Policy::step_grace`](crate::Policy::step_grace) to end and be
    /// recorded.
    ///
    /// An async block with `?` inside ends with its error's type: `Ok::<_, TaskError>(value)`.
    ///
    /// ```
    /// # use countersign::{Context, TaskError, TaskResult};
    /// # async fn hold(order: &str) -> Result<String, std::io::Error> { Ok(order.into()) }
    /// # async fn capture(hold: &str) -> Result<u64, std::io::Error> { Ok(hold.len() as u64) }
    /// async fn refund(ctx: Context, order: String) -> TaskResult<u64> {
    ///     let held = ctx.step("hold", || hold(&order)).await?;
    ///     ctx.step("capture", || async {
    ///         let receipt = capture(&held).await?;
    ///         Ok::<_, TaskError>(receipt + 1)
    ///     })
    ///     .await
    /// }
    /// ```
    ///
    /// # Errors
    /// The error of `work`. Also, not retried: a second step of this name in one run; the recorded result
    /// has another type, because the handler has changed; the result is over `limits.step`, or all
    /// results of the task are over `limits.journal`; or the result is no JSON.
    pub async fn step<T, E, F, Fut>(
        &self,
        name: impl Into<Cow<'static, str>>,
        work: F,
    ) -> TaskResult<T>
    where
        T: Serialize + DeserializeOwned,
        E: Into<TaskError>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let name: Cow<'static, str> = name.into();
        if let Some(entry) = self.begin(&name).await? {
            return self.decode(&name, &entry);
        }
        let _guard = self.run.enter_step().await?;
        let entries = Arc::new(EntrySequence::of_step(&name));
        if self.run.has_streamed(&name).await? {
            self.run.append_restart(&entries).await?;
        }
        let value = Run::in_step(entries, async { work().await }).await.map_err(Into::into)?;
        self.record(&name, &value).await
    }

    /// Returns the entry that an earlier run has recorded under this name. Fails if this run has used the
    /// name.
    pub(super) async fn begin(&self, name: &str) -> TaskResult<Option<Bytes>> {
        self.run.journal().await?.begin(name).map_err(Fault::into_error)
    }

    pub(super) async fn record<T>(&self, name: &str, value: &T) -> TaskResult<T>
    where
        T: Serialize + DeserializeOwned,
    {
        let limits = self.run.services.limits;
        let entry = journal::encode(name, value, limits.step).map_err(Fault::into_error)?;
        let decoded =
            journal::decode(name, &entry).map_err(|fault| fault.of_new_value().into_error())?;
        let checked = self.run.journal().await?.reserve(name, &entry, limits.journal);
        checked.map_err(Fault::into_error)?;
        self.run.has_stored.store(true, Ordering::Relaxed);
        let store = &self.run.services.store;
        match store.record_step(self.id(), self.run.owner(), name, entry).await? {
            None => Ok(decoded),
            Some(earlier) => self.decode(name, &earlier),
        }
    }

    pub(super) fn decode<T: DeserializeOwned>(&self, name: &str, entry: &[u8]) -> TaskResult<T> {
        journal::decode(name, entry).map_err(|fault| {
            if matches!(fault, Fault::Newer { .. }) {
                self.run.outdated.store(true, Ordering::Relaxed);
            }
            fault.into_error()
        })
    }
}
