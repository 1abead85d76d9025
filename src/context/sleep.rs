//! Sleeps inside a task: during a long sleep the task is suspended, and holds neither a permit nor its
//! message.

use std::borrow::Cow;
use std::pin::{Pin, pin};
use std::task::{Context as Polled, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::pending_waits::PendingWaits;
use super::{Context, Run};
use crate::error::{TaskError, TaskResult};

/// A sleep that is no longer than this keeps its permit.
const MAX_INLINE_SLEEP: Duration = Duration::from_secs(5);

impl Context {
    /// Sleeps for `time`, counted from the first run that reaches this call. The end of the sleep is
    /// recorded under `name`, like the value of a step, and by the store's clock.
    ///
    /// During a sleep with more than five seconds left, the task is suspended, as for an approval: it
    /// holds neither a permit nor its message, survives the restart of every process, and afterwards the
    /// handler runs again from its beginning. The sleep counts against no time limit. A suspended sleep
    /// may end up to a second late.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use countersign::{Context, TaskResult};
    /// # async fn remind(_: &str) -> TaskResult<()> { Ok(()) }
    /// async fn nag(ctx: Context, whom: String) -> TaskResult<()> {
    ///     ctx.step("first", || remind(&whom)).await?;
    ///     ctx.sleep("a-week", Duration::from_secs(7 * 24 * 60 * 60)).await?;
    ///     ctx.step("second", || remind(&whom)).await
    /// }
    /// ```
    ///
    /// # Errors
    /// Not retried: the run already has a step or sleep of this name; the call is inside a step; the
    /// entry recorded under the name is no sleep. In a task that the handler has spawned: the run was
    /// suspended.
    pub async fn sleep(
        &self,
        name: impl Into<Cow<'static, str>>,
        time: Duration,
    ) -> TaskResult<()> {
        if Run::is_inside_step() {
            return Err(TaskError::fatal(
                "a sleep inside a step would interrupt the step: sleep after the step",
            ));
        }
        let name: Cow<'static, str> = name.into();
        let recorded = self.begin(&name).await?;
        let now = self.run.services.store.clock().await?;
        let due: i64 = match recorded {
            Some(entry) => self.decode(&name, &entry)?,
            None => {
                let time = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
                self.record(&name, &now.saturating_add(time)).await?
            }
        };
        let left = Duration::from_millis(u64::try_from(due.saturating_sub(now)).unwrap_or(0));
        if left <= MAX_INLINE_SLEEP {
            tokio::time::sleep(left).await;
            return Ok(());
        }
        // A time beyond the clock's range is never reached. Suspended tasks are rechecked every hour.
        let Some(at) = Instant::now().checked_add(left) else { std::future::pending().await };
        let mut timer = pin!(tokio::time::sleep_until(at));
        let mut suspended = SuspendedSleep { pending: &self.run.pending, at, number: None };
        tokio::select! {
            biased;
            ended = Pin::new(&mut suspended) => ended,
            () = timer.as_mut() => Ok(()),
        }
    }
}

/// A sleep registered in [`PendingWaits`]. It ends only with an error, when its run is suspended.
struct SuspendedSleep<'p> {
    pending: &'p PendingWaits,
    at: Instant,
    number: Option<u64>,
}

impl Future for SuspendedSleep<'_> {
    type Output = TaskResult<()>;

    fn poll(mut self: Pin<&mut Self>, polled: &mut Polled<'_>) -> Poll<Self::Output> {
        let (at, number) = (self.at, self.number);
        match self.pending.sleep(number, at, polled.waker()) {
            Ok(number) => {
                self.number = Some(number);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for SuspendedSleep<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.pending.end_sleep(number);
        }
    }
}
