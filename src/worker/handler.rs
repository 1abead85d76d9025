//! Type-erased handlers: from arguments in JSON to a result in JSON.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::value::{RawValue, to_raw_value};

use super::concurrency_limit::Permit;
use super::limits::Limits;
use super::panics;
use crate::context::Context;
use crate::error::{Failure, TaskError, TaskResult};
use crate::protocol::Arguments;
use crate::task::{Policy, Task};

/// The result of a run.
pub(super) type HandlerResult = TaskResult<Box<RawValue>>;
/// Creates the run's future, or returns a failure if the arguments do not match. Runs nothing yet, except
/// the part of an async handler's function before its future.
pub(super) type Start =
    dyn Fn(Context, &Permit) -> Result<BoxFuture<'static, HandlerResult>, Failure> + Send + Sync;

/// A handler and its policy.
pub(super) struct RegisteredHandler {
    pub(super) policy: Policy,
    pub(super) limits: Limits,
    pub(super) start: Arc<Start>,
}

impl RegisteredHandler {
    pub(super) fn future<T, F, Fut>(handler: F, policy: Policy) -> Self
    where
        T: Task,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = TaskResult<T::Output>> + Send + 'static,
    {
        let start = move |context: Context, _: &Permit| {
            context.run().set_parameters(Arguments::parameters::<T>());
            let task = context.run().arguments().read::<T>(T::NAME)?;
            let run = handler(context, task);
            Ok::<BoxFuture<'static, HandlerResult>, _>(Box::pin(async move { encode(&run.await?) }))
        };
        Self { limits: Limits::new(&policy), policy, start: Arc::new(start) }
    }

    pub(super) fn blocking<T, F>(handler: F, policy: Policy) -> Self
    where
        T: Task,
        F: Fn(Context, T) -> TaskResult<T::Output> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        let start = move |context: Context, permit: &Permit| {
            let task = context.run().arguments().read::<T>(T::NAME)?;
            context.run().pending.close("a blocking handler cannot wait for a decision");
            let (handler, permit) = (Arc::clone(&handler), permit.clone());
            let run = move || {
                let called = AssertUnwindSafe(|| handler(context, task));
                let output = catch_unwind(called)
                    .unwrap_or_else(|payload| resume_unwind(panics::carry(payload.as_ref())));
                let encoded = output.and_then(|output| encode(&output));
                drop(permit);
                encoded
            };
            Ok::<BoxFuture<'static, HandlerResult>, _>(Box::pin(async move {
                match tokio::task::spawn_blocking(run).await {
                    Ok(encoded) => encoded,
                    Err(error) => match error.try_into_panic() {
                        Ok(payload) => resume_unwind(payload),
                        Err(_) => Err(TaskError::fatal("the runtime is shutting down")),
                    },
                }
            }))
        };
        Self { limits: Limits::new(&policy), policy, start: Arc::new(start) }
    }
}

fn encode<T: serde::Serialize>(output: &T) -> HandlerResult {
    to_raw_value(output)
        .map_err(|error| TaskError::fatal(format!("the result cannot be encoded as JSON: {error}")))
}

impl fmt::Debug for RegisteredHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisteredHandler").field("policy", &self.policy).finish_non_exhaustive()
    }
}
