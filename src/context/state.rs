//! The state that the handlers of a worker share.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::Context;

/// A [`Context`] with the state of its worker, for handlers that need a database pool, a client of another
/// service, or anything else that is created once for each process.
///
/// A handler takes it in place of [`Context`]. It only compiles on a worker that was given a state of this
/// type by [`Worker::with_state`](crate::Worker::with_state). It dereferences to [`Context`]. Cheap to clone.
///
/// ```
/// use countersign::{ContextWith, Task, TaskResult, Worker};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)]
/// # struct Charge { cents: u64 }
/// # impl Task for Charge {
/// #     const NAME: &'static str = "billing.charge";
/// #     type Output = String;
/// # }
///
/// struct Billing { currency: &'static str }     // in a program: its pools and clients
///
/// async fn charge(ctx: ContextWith<Billing>, task: Charge) -> TaskResult<String> {
///     Ok(format!("{} {}, attempt {}", task.cents, ctx.state().currency, ctx.attempt()))
/// }
///
/// fn with_charge(worker: Worker) -> Worker<Billing> {
///     worker.with_state(Billing { currency: "EUR" }).handle(charge)
/// }
/// ```
pub struct ContextWith<S> {
    context: Context,
    state: Arc<S>,
}

impl<S> ContextWith<S> {
    /// Returns the state of the worker. All runs of the worker share it.
    #[must_use]
    pub fn state(&self) -> &S {
        &self.state
    }
}

impl<S> Deref for ContextWith<S> {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.context
    }
}

impl<S> Clone for ContextWith<S> {
    fn clone(&self) -> Self {
        Self { context: self.context.clone(), state: Arc::clone(&self.state) }
    }
}

impl<S> fmt::Debug for ContextWith<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.context.fmt(f)
    }
}

/// The first argument of a handler on a worker whose state is an `S`: [`Context`], or [`ContextWith`] the
/// same state. Cannot be implemented for other types.
#[diagnostic::on_unimplemented(
    message = "a handler that takes `{Self}` does not fit a worker whose state is `{S}`",
    label = "the worker's state is `{S}`",
    note = "a handler takes `Context`, or `ContextWith` the state of its worker",
    note = "`Worker::with_state` sets the state; call it before the handlers that use the state are added"
)]
pub trait FromContext<S>: sealed::Sealed + Sized {
    /// Adds the state to a context.
    fn from_context(context: Context, state: &Arc<S>) -> Self;
}

impl<S> FromContext<S> for Context {
    fn from_context(context: Context, _: &Arc<S>) -> Self {
        context
    }
}

impl<S> FromContext<S> for ContextWith<S> {
    fn from_context(context: Context, state: &Arc<S>) -> Self {
        Self { context, state: Arc::clone(state) }
    }
}

mod sealed {
    use super::{Context, ContextWith};

    pub trait Sealed {}

    impl Sealed for Context {}
    impl<S> Sealed for ContextWith<S> {}
}
