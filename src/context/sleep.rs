//! Sleeping inside a task: a long sleep is parked, and holds nothing.

use std::borrow::Cow;
use std::pin::{Pin, pin};
use std::task::{Context as Polled, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use super::{Context, Run};
use crate::error::{TaskError, TaskResult};

/// A sleep that is no longer than this keeps its slot.
const IN_PLACE: Duration = Duration::from_secs(5);

impl Context {
    /// Sleeps for this long, counted from the first run that gets here: when it is over is recorded
    /// under `name`, as the value of a step is, and by the store's clock.
    ///
    /// A sleep with more than five seconds left is parked, as an approval is: it holds neither slot
    /// nor message, survives the restart of every process, and afterwards the handler runs again
    /// from its beginning. It counts against no time limit. A parked sleep may last up to a second
    /// longer than it should.
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
    /// Never to be retried: a step or sleep of this name was there before; it is inside a step; what
    /// is recorded under the name is no sleep. To what the handler has spawned: it was parked.
    pub async fn sleep(
        &self,
        name: impl Into<Cow<'static, str>>,
        time: Duration,
    ) -> TaskResult<()> {
        if Run::is_inside_step() {
            return Err(TaskError::fatal(
                "a sleep inside a step would cut the step: sleep after it",
            ));
        }
        let name: Cow<'static, str> = name.into();
        let known = self.begin(&name).await?;
        let now = self.run.around.store.clock().await?;
        let due: i64 = match known {
            Some(entry) => self.recall(&name, &entry)?,
            None => {
                let time = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
                self.record(&name, &now.saturating_add(time)).await?
            }
        };
        let left = Duration::from_millis(u64::try_from(due.saturating_sub(now)).unwrap_or(0));
        if left <= IN_PLACE {
            tokio::time::sleep(left).await;
            return Ok(());
        }
        // A time that the clock cannot say is never reached, and the park is looked at every hour.
        let Some(at) = Instant::now().checked_add(left) else { std::future::pending().await };
        let mut timer = pin!(tokio::time::sleep_until(at));
        let mut nap = Nap { desk: &self.run.desk, at, number: None };
        tokio::select! {
            biased;
            ended = Pin::new(&mut nap) => ended,
            () = timer.as_mut() => Ok(()),
        }
    }
}

/// A sleep at the desk. It ends only with an error: when its run is parked.
struct Nap<'d> {
    desk: &'d Desk,
    at: Instant,
    number: Option<u64>,
}

impl Future for Nap<'_> {
    type Output = TaskResult<()>;

    fn poll(mut self: Pin<&mut Self>, polled: &mut Polled<'_>) -> Poll<Self::Output> {
        let (at, number) = (self.at, self.number);
        match self.desk.nap(number, at, polled.waker()) {
            Ok(number) => {
                self.number = Some(number);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Drop for Nap<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.desk.wake_up(number);
        }
    }
}
