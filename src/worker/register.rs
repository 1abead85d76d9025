//! Adds the state and the handlers of a worker.

use std::sync::Arc;

use super::builder::Worker;
use super::handler::RegisteredHandler;
use super::middleware::{HandlerOutput, Middleware, Next};
use crate::context::{Context, FromContext};
use crate::error::TaskResult;
use crate::task::{Policy, Task};

impl Worker {
    /// Sets the state of the worker, which is shared by all runs of the handlers that take a
    /// [`ContextWith`](crate::ContextWith) of this type. Handlers that take a [`Context`]
    /// are added before or after it, unchanged.
    ///
    /// The state is dropped when the worker has drained. A worker has one state: use a struct for several
    /// values.
    ///
    /// A handler that takes another state does not compile:
    ///
    /// ```compile_fail,E0277
    /// # use countersign::{ContextWith, Task, TaskResult, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Charge { cents: u64 }
    /// # impl Task for Charge {
    /// #     const NAME: &'static str = "billing.charge";
    /// #     type Output = ();
    /// # }
    /// struct Billing;
    ///
    /// async fn charge(ctx: ContextWith<Billing>, task: Charge) -> TaskResult<()> {
    ///     Ok(())
    /// }
    ///
    /// fn without_state(worker: Worker) -> Worker {
    ///     worker.handle(charge)
    /// }
    /// ```
    pub fn with_state<S: Send + Sync + 'static>(self, state: S) -> Worker<S> {
        Worker { setup: self.setup, state: Arc::new(state) }
    }
}

impl<S: Send + Sync + 'static> Worker<S> {
    /// Runs `handler` for every task of its argument's type, by the policy of that type ([`Task::policy`]).
    ///
    /// The handler is an async function of a [`Context`] and the task; or of a
    /// [`ContextWith`](crate::ContextWith) the state of this worker.
    ///
    /// ```
    /// # use countersign::{Context, Task, TaskResult, Worker};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize)]
    /// struct Add { x: i64, y: i64 }
    ///
    /// impl Task for Add {
    ///     const NAME: &'static str = "demo.add";
    ///     type Output = i64;
    /// }
    ///
    /// async fn add(_ctx: Context, Add { x, y }: Add) -> TaskResult<i64> {
    ///     Ok(x + y)
    /// }
    ///
    /// fn with_add(worker: Worker) -> Worker {
    ///     worker.handle(add)
    /// }
    /// ```
    pub fn handle<T, C, F, Fut>(self, handler: F) -> Self
    where
        T: Task,
        C: FromContext<S>,
        F: Fn(C, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = TaskResult<T::Output>> + Send + 'static,
    {
        self.handle_with_policy(handler, T::policy())
    }

    /// Like [`Worker::handle`], with this policy in place of the policy of the task type.
    ///
    /// ```
    /// # use countersign::{Context, Task, TaskResult};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Add { x: i64, y: i64 }
    /// # impl Task for Add {
    /// #     const NAME: &'static str = "demo.add";
    /// #     type Output = i64;
    /// # }
    /// # async fn add(_ctx: Context, Add { x, y }: Add) -> TaskResult<i64> { Ok(x + y) }
    /// use countersign::{Policy, Worker};
    ///
    /// fn one_at_a_time(worker: Worker) -> Worker {
    ///     worker.handle_with_policy(add, Policy { concurrency: Some(1), ..Policy::default() })
    /// }
    /// ```
    pub fn handle_with_policy<T, C, F, Fut>(self, handler: F, policy: Policy) -> Self
    where
        T: Task,
        C: FromContext<S>,
        F: Fn(C, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = TaskResult<T::Output>> + Send + 'static,
    {
        let state = Arc::clone(&self.state);
        let handler = move |ctx, task| handler(C::from_context(ctx, &state), task);
        self.register(T::NAME, RegisteredHandler::future(handler, policy))
    }

    /// Runs a synchronous function for every task of its argument's type, on the thread pool for blocking
    /// work.
    ///
    /// Nothing can stop it: after its hard limit its failure is stored, and it holds its permit until it
    /// returns.
    pub fn handle_blocking<T, C, F>(self, handler: F) -> Self
    where
        T: Task,
        C: FromContext<S>,
        F: Fn(C, T) -> TaskResult<T::Output> + Send + Sync + 'static,
    {
        self.handle_blocking_with_policy(handler, T::policy())
    }

    /// Like [`Worker::handle_blocking`], with this policy in place of the policy of the task type.
    pub fn handle_blocking_with_policy<T, C, F>(self, handler: F, policy: Policy) -> Self
    where
        T: Task,
        C: FromContext<S>,
        F: Fn(C, T) -> TaskResult<T::Output> + Send + Sync + 'static,
    {
        let state = Arc::clone(&self.state);
        let handler = move |ctx, task| handler(C::from_context(ctx, &state), task);
        self.register(T::NAME, RegisteredHandler::blocking(handler, policy))
    }

    /// Wraps the runs of all handlers of this worker, also of those that are added later, in a middleware: a
    /// function of the context and the rest of the run. It may do something before and after it, return an
    /// error in its place, or replace its error.
    ///
    /// Middlewares run in the order in which they are added: the first one is the outermost. It runs first,
    /// and sees the outcome of all others. They run for each run of a handler, so again after a retry and
    /// when a suspended task is resumed.
    ///
    /// A middleware does not change the end of a run other than by its result: if the handler panics, or the
    /// run is dropped (suspension, hard limit, revocation, the deadline of a drain), [`Next::run`] does not
    /// return and the middleware is dropped. The soft and the hard limit include the time of the middlewares.
    /// An error that a middleware returns is retried by the policy of the task, or not, as an error of the
    /// handler is.
    ///
    /// This one refuses tasks without a valid header, for example:
    ///
    /// ```
    /// use countersign::{Context, HandlerOutput, Next, TaskError, TaskResult, Worker};
    ///
    /// async fn authenticate(ctx: Context, next: Next) -> TaskResult<HandlerOutput> {
    ///     let token = ctx.header("x-token").and_then(|token| token.as_str());
    ///     if token != Some("secret") {
    ///         return Err(TaskError::fatal(format!("{} has no valid x-token header", ctx.id())));
    ///     }
    ///     next.run(ctx).await
    /// }
    ///
    /// fn with_authentication(worker: Worker) -> Worker {
    ///     worker.wrap(authenticate)
    /// }
    /// ```
    ///
    /// `examples/middleware.rs` also adds a metric, and maps an error.
    pub fn wrap<F, Fut>(mut self, middleware: F) -> Self
    where
        F: Fn(Context, Next) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = TaskResult<HandlerOutput>> + Send + 'static,
    {
        self.setup.middlewares.push(Middleware::new(middleware));
        self
    }

    fn register(mut self, name: &'static str, registered: RegisteredHandler) -> Self {
        if self.setup.handlers.insert(name, registered).is_some() {
            self.setup.faults.push(format!("two handlers are registered for {name}"));
        }
        self
    }
}
