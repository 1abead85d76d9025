//! A handler, whatever its types: from arguments in JSON to an answer in JSON.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::value::{RawValue, to_raw_value};

use super::gate::Slot;
use super::limits::Limits;
use crate::context::Context;
use crate::error::{Failure, TaskError, TaskResult};
use crate::protocol::Arguments;
use crate::task::{Policy, Task};

/// What a run answers.
pub(super) type Answer = TaskResult<Box<RawValue>>;
type Start =
    dyn Fn(Context, &Arguments, &Slot) -> Result<BoxFuture<'static, Answer>, Failure> + Send + Sync;

/// A handler and its policy.
pub(super) struct Registered {
    pub(super) policy: Policy,
    pub(super) limits: Limits,
    start: Box<Start>,
}

impl Registered {
    pub(super) fn future<T, F, Fut>(handler: F, policy: Policy) -> Self
    where
        T: Task,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = TaskResult<T::Output>> + Send + 'static,
    {
        let start = move |context: Context, arguments: &Arguments, _: &Slot| {
            context.run().takes(Arguments::parameters::<T>());
            let run = handler(context, arguments.read::<T>(T::NAME)?);
            Ok::<BoxFuture<'static, Answer>, _>(Box::pin(async move { answer(&run.await?) }))
        };
        Self { limits: Limits::new(&policy), policy, start: Box::new(start) }
    }

    pub(super) fn blocking<T, F>(handler: F, policy: Policy) -> Self
    where
        T: Task,
        F: Fn(Context, T) -> TaskResult<T::Output> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        let start = move |context: Context, arguments: &Arguments, slot: &Slot| {
            let task = arguments.read::<T>(T::NAME)?;
            context.run().desk.close("a blocking handler cannot wait for a decision");
            let (handler, slot) = (Arc::clone(&handler), slot.clone());
            let run = move || {
                let answered = handler(context, task).and_then(|output| answer(&output));
                drop(slot);
                answered
            };
            Ok::<BoxFuture<'static, Answer>, _>(Box::pin(async move {
                match tokio::task::spawn_blocking(run).await {
                    Ok(answered) => answered,
                    Err(error) => match error.try_into_panic() {
                        Ok(payload) => std::panic::resume_unwind(payload),
                        Err(_) => Err(TaskError::fatal("the runtime is shutting down")),
                    },
                }
            }))
        };
        Self { limits: Limits::new(&policy), policy, start: Box::new(start) }
    }

    /// Makes the run's future, or says why these arguments do not fit. Runs nothing yet, except
    /// the part of an async handler's function before its future.
    pub(super) fn start(
        &self,
        context: Context,
        arguments: &Arguments,
        slot: &Slot,
    ) -> Result<BoxFuture<'static, Answer>, Failure> {
        (self.start)(context, arguments, slot)
    }
}

fn answer<T: serde::Serialize>(output: &T) -> Answer {
    to_raw_value(output)
        .map_err(|error| TaskError::fatal(format!("the answer cannot be written as JSON: {error}")))
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("policy", &self.policy).finish_non_exhaustive()
    }
}
