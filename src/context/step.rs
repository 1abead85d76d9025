//! Steps: parts of a handler that are not done again once their values are recorded.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Context;
use super::run::Run;
use super::stream::Numbers;
use crate::error::{TaskError, TaskResult};
use crate::journal::{self, Fault};

impl Context {
    /// Does `work` and remembers its value under `name`: any later run of this task (a retry, one
    /// after a crash) gets that value and does nothing. Of two runs at the same time, the value
    /// that was recorded first is both's.
    ///
    /// Every run, the first too, gets the value as it was decoded from JSON.
    ///
    /// A crash after the effect of `work` and before its record does `work` again: make the effect
    /// one that can be made twice, for example by sending [`Context::id`] along as the key of a
    /// payment. An error is not recorded; what failed is done again when the task is retried.
    ///
    /// While the store is away this waits. When the run is to be dropped (hard limit, a drain's
    /// deadline, revocation), a step has [`Policy::step_grace`](crate::Policy::step_grace) to end
    /// and be recorded.
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
    /// What `work` fails with. And, never to be retried: a second step of this name in one run;
    /// what is recorded is of another type, because the handler has changed; the value is over
    /// `limits.step`, or all values of the task over `limits.journal`, or no JSON.
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
        let known = self.begin(&name).await?;
        if let Some(entry) = known {
            return self.recall(&name, &entry);
        }
        let _busy = self.run.enter_step().await?;
        let numbers = Arc::new(Numbers::of_step(&name));
        if self.run.has_streamed(&name).await? {
            numbers.restart(&self.run).await?;
        }
        let value = Run::inside(numbers, async { work().await }).await.map_err(Into::into)?;
        self.record(&name, &value).await
    }

    /// What an earlier run has recorded under this name, which this run has not used yet.
    pub(super) async fn begin(&self, name: &str) -> TaskResult<Option<Bytes>> {
        self.run.journal().await?.begin(name).map_err(Fault::into_error)
    }

    pub(super) async fn record<T>(&self, name: &str, value: &T) -> TaskResult<T>
    where
        T: Serialize + DeserializeOwned,
    {
        let limits = self.run.around.limits;
        let entry = journal::encode(name, value, limits.step).map_err(Fault::into_error)?;
        let decoded = journal::decode(name, &entry).map_err(|fault| fault.of_own().into_error())?;
        let admitted = self.run.journal().await?.admit(name, &entry, limits.journal);
        admitted.map_err(Fault::into_error)?;
        self.run.leaves.store(true, Ordering::Relaxed);
        let store = &self.run.around.store;
        match store.record(self.id(), self.run.owner(), name, entry).await? {
            None => Ok(decoded),
            Some(earlier) => self.recall(name, &earlier),
        }
    }

    pub(super) fn recall<T: DeserializeOwned>(&self, name: &str, entry: &[u8]) -> TaskResult<T> {
        journal::decode(name, entry).map_err(|fault| {
            if matches!(fault, Fault::Newer { .. }) {
                self.run.outdated.store(true, Ordering::Relaxed);
            }
            fault.into_error()
        })
    }
}
