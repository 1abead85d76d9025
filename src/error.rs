//! What can go wrong: [`Error`] for callers of this library, [`TaskError`] for handlers, and
//! [`Failure`], which is data: how a task failed, as its waiters see it.

use std::fmt;
use std::time::Duration;

use crate::approval::ApprovalId;
use crate::task::TaskId;

/// An error of this library. Opaque; the predicates tell apart what callers branch on.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] pub(crate) Box<Kind>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("{what} took longer than {} s", .after.as_secs_f64())]
    Timeout { what: String, after: Duration },
    #[error("{peer}: {cause}")]
    Connection { peer: String, cause: String },
    #[error("no queue takes {route:?}: start a worker that consumes it, or declare it first")]
    Unroutable { route: String },
    #[error(
        "task {id} has priority {priority}, and queue {queue} {levels}: set max_priority under \
         [queues.\"{queue}\"] in the countersign.toml of its clients and its workers"
    )]
    Priority { id: TaskId, queue: String, priority: u8, levels: String },
    #[error("queue {queue} is not as it is configured, or in use: {cause}")]
    QueueMismatch { queue: String, cause: String },
    #[error("{what}: {cause}")]
    Storage { what: String, cause: String },
    #[error("{what} refused for now: {cause}")]
    Backpressure { what: String, cause: String },
    #[error("{what} is {size} bytes, over the limit of {limit} ({setting})")]
    TooLarge { what: &'static str, size: usize, limit: usize, setting: &'static str },
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    #[error("task {id} failed: {failure}")]
    Failed { id: TaskId, failure: Failure },
    #[error("task {id} was revoked: {reason}")]
    Revoked { id: TaskId, reason: String },
    #[error("{what}: {cause}")]
    Codec { what: String, cause: String },
    #[error("there is no approval {id}: it was never asked, or a week has passed since its end")]
    NoApproval { id: ApprovalId },
    #[error("{0}")]
    Decision(String),
    #[error("the edited arguments do not fit: {}", .0.join("; "))]
    Misfit(Vec<String>),
    #[error("task {id} cannot be forgotten: {cause}")]
    Unfinished { id: TaskId, cause: String },
    #[error("{what}: {cause}")]
    AccessRefused { what: String, cause: String },
    #[error("this client is closed")]
    Closed,
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl Error {
    pub(crate) fn new(kind: Kind) -> Self {
        Self(Box::new(kind))
    }

    /// A deadline passed. Whether the thing happened after all is not known.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(*self.0, Kind::Timeout { .. })
    }

    /// Nobody asks, or has asked lately, what was to be decided.
    #[must_use]
    pub fn is_no_approval(&self) -> bool {
        matches!(*self.0, Kind::NoApproval { .. })
    }

    /// A question or a decision lacks something, and was not sent.
    #[must_use]
    pub fn is_decision(&self) -> bool {
        matches!(*self.0, Kind::Decision(_))
    }

    /// A decision's edited arguments do not fit the schema of its question; the message says where.
    /// Nothing was sent.
    #[must_use]
    pub fn is_misfit(&self) -> bool {
        matches!(*self.0, Kind::Misfit(_))
    }

    /// A server could not be reached, or the connection to it broke.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        matches!(*self.0, Kind::Connection { .. })
    }

    /// The broker took the message and had no queue to put it in. Nothing was enqueued.
    #[must_use]
    pub fn is_unroutable(&self) -> bool {
        matches!(*self.0, Kind::Unroutable { .. })
    }

    /// The task has a priority, and its queue is not configured to have that one.
    #[must_use]
    pub fn is_priority(&self) -> bool {
        matches!(*self.0, Kind::Priority { .. })
    }

    /// A queue exists with another type or other arguments than its configuration says.
    #[must_use]
    pub fn is_queue_mismatch(&self) -> bool {
        matches!(*self.0, Kind::QueueMismatch { .. })
    }

    /// The broker is refusing new messages for now (an alarm, or a full queue). One that was on
    /// its way when an alarm began may arrive after it: send it again with the same id, or with an
    /// idempotency key.
    #[must_use]
    pub fn is_backpressure(&self) -> bool {
        matches!(*self.0, Kind::Backpressure { .. })
    }

    /// Something is larger than a configured limit; the message names the setting.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(*self.0, Kind::TooLarge { .. })
    }

    /// A task was to be forgotten that is suspended, or may still run. Nothing was deleted.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        matches!(*self.0, Kind::Unfinished { .. })
    }

    /// The broker's user may not do what it takes; the message names the object and the permission.
    #[must_use]
    pub fn is_access_refused(&self) -> bool {
        matches!(*self.0, Kind::AccessRefused { .. })
    }

    /// The same message would be refused for the same reason again.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(*self.0, Kind::TooLarge { .. } | Kind::Codec { .. })
    }

    /// The configuration is wrong; the message has a line for each fault.
    #[must_use]
    pub fn is_config(&self) -> bool {
        matches!(*self.0, Kind::Config(_))
    }

    /// The database cannot be opened: it is read-only, damaged, of a newer version, or its disk is
    /// full.
    #[must_use]
    pub fn is_storage(&self) -> bool {
        matches!(*self.0, Kind::Storage { .. })
    }

    /// The task was revoked, or it expired before it ran.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        matches!(*self.0, Kind::Revoked { .. })
    }

    /// How the awaited task failed, if that is what this error says.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match &*self.0 {
            Kind::Failed { failure, .. } => Some(failure),
            _ => None,
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self::new(kind)
    }
}

/// How a task failed, in the terms of a Celery result: an exception's type, module and arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The exception's qualified name, for example `ValueError`.
    pub exc_type: String,
    /// The Python module that has it. A client that has not imported it makes a class on the fly.
    pub exc_module: String,
    /// The exception's arguments; usually one text.
    pub args: Vec<serde_json::Value>,
    /// Where it failed, as text for people.
    pub traceback: Option<String>,
}

impl Failure {
    /// A failure with one message, as `exc_module.exc_type(message)`.
    #[must_use]
    pub fn new(exc_module: &str, exc_type: &str, message: impl Into<String>) -> Self {
        Self {
            exc_type: exc_type.into(),
            exc_module: exc_module.into(),
            args: vec![serde_json::Value::String(message.into())],
            traceback: None,
        }
    }

    /// The first argument as text: what a person reads.
    #[must_use]
    pub fn message(&self) -> String {
        match self.args.first() {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.exc_type, self.message())
    }
}

/// What a handler answers.
pub type TaskResult<T> = Result<T, TaskError>;

/// Why a handler gave up. Made from any error by `?`, which is retried as its policy says, or by
/// [`TaskError::fatal`], which is not.
///
/// It does not implement `std::error::Error`: only so can `?` take every error there is.
#[derive(Debug)]
pub struct TaskError {
    pub(crate) failure: Failure,
    pub(crate) retry: Retryable,
}

/// Whether an error may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retryable {
    /// As the policy says.
    ByPolicy,
    /// After this long, if attempts are left.
    After(Duration),
    /// Not again.
    Never,
}

impl TaskError {
    /// An error that is not retried.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::raise("builtins", "Exception", message).never()
    }

    /// An error that is retried after `delay`, as long as the policy has attempts left.
    pub fn retry_after(delay: Duration, message: impl Into<String>) -> Self {
        Self {
            failure: Failure::new("builtins", "Exception", message),
            retry: Retryable::After(delay),
        }
    }

    /// An error that a Celery client raises as `module.name(message)`, retried as the policy says.
    pub fn raise(module: &str, name: &str, message: impl Into<String>) -> Self {
        Self { failure: Failure::new(module, name, message), retry: Retryable::ByPolicy }
    }

    /// The same error, never retried.
    #[must_use]
    pub fn never(self) -> Self {
        Self { retry: Retryable::Never, ..self }
    }

    /// How the task fails if nothing retries it.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.failure
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for TaskError {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut causes = String::new();
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push_str(&format!("\ncaused by: {cause}"));
            next = cause.source();
        }
        let mut failure = Failure::new("builtins", "Exception", error.to_string());
        failure.traceback = Some(format!("{error}{causes}"));
        Self { failure, retry: Retryable::ByPolicy }
    }
}
