//! Functions that wrap the runs of all handlers of a worker.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::value::RawValue;

use super::concurrency_limit::Permit;
use super::handler::{HandlerResult, RegisteredHandler, Start};
use crate::context::Context;
use crate::error::{Failure, Retryable, TaskError, TaskResult};

/// A function that [`Worker::wrap`](crate::Worker::wrap) has added.
pub(super) struct Middleware(Box<Wrap>);

type Wrap = dyn Fn(Context, Next) -> BoxFuture<'static, TaskResult<HandlerOutput>> + Send + Sync;

impl Middleware {
    pub(super) fn new<F, Fut>(middleware: F) -> Self
    where
        F: Fn(Context, Next) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = TaskResult<HandlerOutput>> + Send + 'static,
    {
        Self(Box::new(move |context, next| Box::pin(middleware(context, next))))
    }
}

impl fmt::Debug for Middleware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Middleware")
    }
}

/// The rest of a run, for a middleware: the middlewares that were added after it, then the handler. See
/// [`Worker::wrap`](crate::Worker::wrap).
pub struct Next {
    middlewares: Arc<[Middleware]>,
    /// How many of them have been called.
    called: usize,
    handler: Arc<Start>,
    permit: Permit,
}

impl Next {
    /// Runs the rest, and returns its outcome. `ctx` is the context that the middleware received.
    ///
    /// The future does not return if the handler panics, if its task is suspended, or if the run is dropped
    /// (hard limit, revocation, the deadline of a drain).
    ///
    /// # Errors
    /// The error of the handler, or of a middleware that did not call `run`. If the arguments do not match
    /// the task type, that failure.
    pub async fn run(mut self, ctx: Context) -> TaskResult<HandlerOutput> {
        let middlewares = Arc::clone(&self.middlewares);
        if let Some(Middleware(wrap)) = middlewares.get(self.called) {
            self.called += 1;
            return wrap(ctx, self).await;
        }
        let run = (self.handler)(ctx, &self.permit).map_err(no_retry)?;
        drop(self);
        run.await.map(HandlerOutput)
    }
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("called", &self.called).finish_non_exhaustive()
    }
}

/// The value that a handler returned, as JSON.
#[derive(Debug)]
pub struct HandlerOutput(Box<RawValue>);

impl HandlerOutput {
    /// Returns the value as JSON text.
    #[must_use]
    pub fn json(&self) -> &str {
        self.0.get()
    }
}

fn no_retry(failure: Failure) -> TaskError {
    TaskError { failure, retry: Retryable::Never }
}

/// Creates the future of a run: the handler, inside the middlewares. Without middlewares, returns a failure
/// if the arguments do not match; otherwise they are read when the innermost middleware calls the handler.
pub(super) fn start(
    middlewares: &Arc<[Middleware]>,
    handler: &RegisteredHandler,
    context: Context,
    permit: &Permit,
) -> Result<BoxFuture<'static, HandlerResult>, Failure> {
    if middlewares.is_empty() {
        return (handler.start)(context, permit);
    }
    let next = Next {
        middlewares: Arc::clone(middlewares),
        called: 0,
        handler: Arc::clone(&handler.start),
        permit: permit.clone(),
    };
    Ok(Box::pin(async move { next.run(context).await.map(|HandlerOutput(json)| json) }))
}
