//! Task types, and how a worker treats their tasks.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::breaker::CircuitBreaker;
use crate::retry::Retry;

/// A unit of work, named and typed by its arguments.
///
/// The type itself is the argument list: the fields of a struct are filled from Celery's positional
/// arguments in order and from keyword arguments by name; a tuple accepts positional arguments only;
/// [`Arguments`](crate::Arguments) accepts anything.
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// The registered name, the one that Celery producers use.
    const NAME: &'static str;
    /// The queue of the task if its producer names none. Without one, the client's default queue is used.
    const QUEUE: Option<&'static str> = None;
    /// The version of the argument type. A worker never runs a task of a newer version than its own.
    const VERSION: u32 = 1;
    /// The result of the handler.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// Returns the policy by which a worker runs tasks of this type, unless a registration overrides it
    /// ([`Worker::handle_with_policy`](crate::Worker::handle_with_policy)). A worker calls it once, when the
    /// handler is added. Default: [`Policy::default`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use serde::{Deserialize, Serialize};
    /// use countersign::{Policy, Retry, Task};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Refund { order: String }
    ///
    /// impl Task for Refund {
    ///     const NAME: &'static str = "billing.refund";
    ///     type Output = ();
    ///
    ///     fn policy() -> Policy {
    ///         let retry = Retry::exponential(Duration::from_secs(1)).attempts(5);
    ///         Policy { retry, ..Policy::default() }
    ///     }
    /// }
    /// ```
    #[must_use]
    fn policy() -> Policy {
        Policy::default()
    }
}

/// A rate limit: `tasks` per `per`. Up to `tasks` may start at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The number of tasks.
    pub tasks: u32,
    /// The period.
    pub per: Duration,
}

/// How a worker treats the tasks of one handler.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether and when a failed attempt is retried. Default: never.
    pub retry: Retry,
    /// The maximum number of these tasks that run at once in one worker.
    pub concurrency: Option<usize>,
    /// The maximum rate at which they start in one worker.
    pub rate: Option<Rate>,
    /// Holds the tasks back for a while when they keep failing.
    pub breaker: Option<CircuitBreaker>,
    /// A copy of a message is not run if another copy has claimed its first attempt. Costs a round trip.
    /// For attempts after the first this always applies.
    pub once: bool,
    /// After this time a run is cancelled: [`Context::cancelled`](crate::Context::cancelled) completes.
    pub soft_limit: Option<Duration>,
    /// After this time a run is dropped, and the task fails with `TimeLimitExceeded`. A run that may last
    /// to within two minutes of the broker's consumer timeout is acked early, half-way: from then on a
    /// lease in the store protects it.
    pub hard_limit: Duration,
    /// The time that a step has to end and be recorded when its run is to be dropped (hard limit, a
    /// drain's deadline, revocation); at most a minute.
    pub step_grace: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retry: Retry::never(),
            concurrency: None,
            rate: None,
            breaker: None,
            once: false,
            soft_limit: None,
            hard_limit: Duration::from_secs(25 * 60),
            step_grace: Duration::from_secs(10),
        }
    }
}
