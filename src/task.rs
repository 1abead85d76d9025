//! What a task is: its name, its typed arguments, its identity.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::breaker::CircuitBreaker;
use crate::retry::Retry;

/// A unit of work, named and typed by its arguments.
///
/// The type itself is the argument list: a struct's fields are filled from Celery's positional
/// arguments in order and from keyword arguments by name; a tuple takes positional arguments only;
/// [`Arguments`](crate::Arguments) takes anything.
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// The registered name, the one that Celery producers use.
    const NAME: &'static str;
    /// The queue it goes to when its producer names none; without one, the client's own default.
    const QUEUE: Option<&'static str> = None;
    /// The version of the argument type. A worker never runs a newer one than its own.
    const VERSION: u32 = 1;
    /// What the handler answers.
    type Output: Serialize + DeserializeOwned + Send + 'static;
}

/// The identity of a task: a UUID in text when it was made here or by Celery, any text otherwise.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(std::sync::Arc<str>);

impl TaskId {
    /// A fresh random id.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().hyphenated().to_string().into())
    }

    /// The id that belongs to `place` below `parent`: always the same one.
    #[must_use]
    pub fn derived(parent: &Self, place: &str) -> Self {
        let name = format!("{parent}/{place}");
        let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes());
        Self(id.hyphenated().to_string().into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: AsRef<str>> From<T> for TaskId {
    fn from(text: T) -> Self {
        Self(text.as_ref().into())
    }
}

impl Serialize for TaskId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for TaskId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self::from(text))
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far a revocation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revoke {
    /// The task does not start any more; one that runs goes on.
    IfQueued,
    /// One that runs is told to end, and dropped if it does not.
    EvenRunning,
}

/// So many tasks in so much time; that many may start at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub tasks: u32,
    /// In how long.
    pub per: Duration,
}

/// How a worker treats the tasks of one handler.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether and when a failed attempt is tried again: never, unless said otherwise.
    pub retry: Retry,
    /// At most this many run at once in one worker.
    pub concurrency: Option<usize>,
    /// They start no faster than this in one worker.
    pub rate: Option<Rate>,
    /// None starts for a while when they keep failing.
    pub breaker: Option<CircuitBreaker>,
    /// A copy of a message whose first attempt another copy has taken is not run. It costs a round
    /// trip. Attempts after the first are always treated so.
    pub once: bool,
    /// After this long a run is told to stop: [`Context::cancelled`](crate::Context::cancelled)
    /// completes.
    pub soft_limit: Option<Duration>,
    /// After this long a run is dropped, and the task has failed with `TimeLimitExceeded`. A
    /// run that may come within two minutes of the broker's consumer timeout lets its message go
    /// half-way: from then on a lease in the store says that it runs.
    pub hard_limit: Duration,
    /// A step that runs when its run is to be dropped (hard limit, a drain's deadline, revocation)
    /// has this long to end and be recorded; at most a minute.
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
