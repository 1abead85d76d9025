//! Errors: [`Error`] for callers of this library, [`TaskError`] for handlers, and [`Failure`], which is
//! data: how a task failed, as its waiters see it.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use crate::approval::ApprovalId;
use crate::task::TaskId;

/// An error of this library. It is opaque: predicates such as [`Error::is_timeout`] distinguish the cases.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] pub(crate) Box<Kind>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Kind {
    #[error("{what} took longer than {} s", .after.as_secs_f64())]
    Timeout { what: String, after: Duration },
    #[error("{peer}: {cause}")]
    Connection { peer: String, cause: String },
    #[error(
        "no queue is bound for {route:?}: start a worker that consumes it, or declare it first"
    )]
    Unroutable { route: String },
    #[error(
        "task {id} has priority {priority}, and queue {queue} {levels}: set max_priority under \
         [queues.\"{queue}\"] in the countersign.toml of its clients and its workers"
    )]
    Priority { id: TaskId, queue: String, priority: u8, levels: String },
    #[error("queue {queue} does not match its configuration, or is in use: {cause}")]
    QueueMismatch { queue: String, cause: String },
    #[error("{what}: {cause}")]
    Storage { what: String, cause: String },
    #[error("{what} is refused for now: {cause}")]
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
    #[error(
        "there is no approval request {id}: it was never made, or it ended more than a week ago"
    )]
    NoApproval { id: ApprovalId },
    #[error("{0}")]
    Decision(String),
    #[error("the edited arguments violate the schema of the request: {}", .0.join("; "))]
    SchemaViolation(Vec<String>),
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

    /// Returns whether a timeout passed. It is unknown whether the operation took effect.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(*self.0, Kind::Timeout { .. })
    }

    /// Returns whether the approval request does not exist, or ended more than a week ago.
    #[must_use]
    pub fn is_no_approval(&self) -> bool {
        matches!(*self.0, Kind::NoApproval { .. })
    }

    /// Returns whether an approval request or a decision is invalid. It was not sent.
    #[must_use]
    pub fn is_decision(&self) -> bool {
        matches!(*self.0, Kind::Decision(_))
    }

    /// Returns whether a decision's edited arguments violate the schema of its request. The message names the
    /// locations. Nothing was sent.
    #[must_use]
    pub fn is_schema_violation(&self) -> bool {
        matches!(*self.0, Kind::SchemaViolation(_))
    }

    /// Returns whether a server could not be reached, or the connection to it was lost.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        matches!(*self.0, Kind::Connection { .. })
    }

    /// Returns whether the broker had no queue to route the message to. Nothing was enqueued.
    #[must_use]
    pub fn is_unroutable(&self) -> bool {
        matches!(*self.0, Kind::Unroutable { .. })
    }

    /// Returns whether the task has a priority that its queue is not configured for.
    #[must_use]
    pub fn is_priority(&self) -> bool {
        matches!(*self.0, Kind::Priority { .. })
    }

    /// Returns whether a queue exists with another type or other arguments than those configured.
    #[must_use]
    pub fn is_queue_mismatch(&self) -> bool {
        matches!(*self.0, Kind::QueueMismatch { .. })
    }

    /// Returns whether the broker refuses new messages for now (an alarm, or a full queue). A message that
    /// was sent when an alarm began may still arrive after the alarm: repeat the enqueue with the same id, or
    /// with an idempotency key.
    #[must_use]
    pub fn is_backpressure(&self) -> bool {
        matches!(*self.0, Kind::Backpressure { .. })
    }

    /// Returns whether a value is larger than a configured limit. The message names the setting.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(*self.0, Kind::TooLarge { .. })
    }

    /// Returns whether a task could not be forgotten, because it is suspended or may still run. Nothing was
    /// deleted.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        matches!(*self.0, Kind::Unfinished { .. })
    }

    /// Returns whether the broker's user lacks a permission. The message names the object and the permission.
    #[must_use]
    pub fn is_access_refused(&self) -> bool {
        matches!(*self.0, Kind::AccessRefused { .. })
    }

    /// Returns whether the same message would be refused again for the same reason.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(*self.0, Kind::TooLarge { .. } | Kind::Codec { .. })
    }

    /// Returns whether the configuration is invalid. The message has one line for each fault.
    #[must_use]
    pub fn is_config(&self) -> bool {
        matches!(*self.0, Kind::Config(_))
    }

    /// Returns whether the database cannot be opened: it is read-only, corrupt or of a newer version, or its
    /// disk is full.
    #[must_use]
    pub fn is_storage(&self) -> bool {
        matches!(*self.0, Kind::Storage { .. })
    }

    /// Returns whether the task was revoked, or expired before it ran.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        matches!(*self.0, Kind::Revoked { .. })
    }

    /// Returns the failure of the awaited task, if this error reports one.
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

/// The most bytes of a text of a failure, and the most arguments, that a worker stores.
const MAX_TEXT: usize = 64 * 1024;
const MAX_ARGUMENTS: usize = 32;

/// How a task failed, in the terms of a Celery result: an exception's type, module and arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The exception's qualified name, for example `ValueError`.
    pub exc_type: String,
    /// The Python module of the exception. A client that has not imported it creates a class dynamically.
    pub exc_module: String,
    /// The exception's arguments; usually one text.
    pub args: Vec<serde_json::Value>,
    /// The error and its causes, one on each line, and the place where it was created. Celery clients and
    /// Flower show it.
    pub traceback: Option<String>,
}

impl Failure {
    /// Creates a failure with one message, as `exc_module.exc_type(message)`.
    #[must_use]
    pub fn new(exc_module: &str, exc_type: &str, message: impl Into<String>) -> Self {
        Self {
            exc_type: exc_type.into(),
            exc_module: exc_module.into(),
            args: vec![serde_json::Value::String(message.into())],
            traceback: None,
        }
    }

    /// Shortens each text to 64 KiB, and keeps the first 32 arguments: an error may quote what the task has
    /// processed.
    #[must_use]
    pub(crate) fn bounded(mut self) -> Self {
        self.args.truncate(MAX_ARGUMENTS);
        for argument in &mut self.args {
            let text = match &*argument {
                serde_json::Value::String(text) => shortened(text),
                other => shortened(&other.to_string()),
            };
            if let Some(text) = text {
                *argument = serde_json::Value::String(text);
            }
        }
        if let Some(text) = self.traceback.as_deref().and_then(shortened) {
            self.traceback = Some(text);
        }
        self
    }

    /// Returns the first argument as text.
    #[must_use]
    pub fn message(&self) -> String {
        match self.args.first() {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }
}

/// Returns the beginning of a text that is too long, and the size of the rest.
fn shortened(text: &str) -> Option<String> {
    let end = text.floor_char_boundary(MAX_TEXT);
    (end < text.len()).then(|| format!("{}... ({} bytes left out)", &text[..end], text.len() - end))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.exc_type, self.message())
    }
}

/// The result of a handler.
pub type TaskResult<T> = Result<T, TaskError>;

/// Why a handler failed. Created from any error by `?`, which is retried by the policy, or by
/// [`TaskError::fatal`], which is not retried.
///
/// It does not implement `std::error::Error`, because otherwise `?` could not convert every error type.
#[derive(Debug)]
pub struct TaskError {
    pub(crate) failure: Failure,
    pub(crate) retry: Retryable,
}

/// Whether an error may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retryable {
    /// By the policy.
    ByPolicy,
    /// After this delay, if attempts are left.
    After(Duration),
    /// Not retried.
    Never,
}

impl TaskError {
    /// Creates an error that is not retried.
    #[track_caller]
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::with_exception("builtins", "Exception", message).no_retry()
    }

    /// Creates an error that is retried after `delay`, if the policy has attempts left.
    #[track_caller]
    pub fn retry_after(delay: Duration, message: impl Into<String>) -> Self {
        let retry = Retryable::After(delay);
        Self { retry, ..Self::with_exception("builtins", "Exception", message) }
    }

    /// Creates an error that a Celery client raises as `module.name(message)`, retried by the policy.
    #[track_caller]
    pub fn with_exception(module: &str, name: &str, message: impl Into<String>) -> Self {
        Self::traced(Failure::new(module, name, message), "", Location::caller())
    }

    /// Creates an error with a traceback: the failure, its causes, and the location.
    fn traced(failure: Failure, causes: &str, location: &Location<'_>) -> Self {
        let traceback = Some(format!("{failure}{causes}\n  at {location}"));
        Self { failure: Failure { traceback, ..failure }, retry: Retryable::ByPolicy }
    }

    /// Returns the same error, never retried.
    #[must_use]
    pub fn no_retry(self) -> Self {
        Self { retry: Retryable::Never, ..self }
    }

    /// Returns the failure of the task if the error is not retried.
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
    #[track_caller]
    fn from(error: E) -> Self {
        let error = error.into();
        let mut causes = String::new();
        let mut next = error.source();
        while let Some(cause) = next {
            causes.push_str(&format!("\ncaused by: {cause}"));
            next = cause.source();
        }
        let failure = Failure::new("builtins", "Exception", error.to_string());
        Self::traced(failure, &causes, Location::caller())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Outer(&'static str, #[source] std::io::Error);

    fn cannot_pay() -> TaskResult<()> {
        Err(Outer("cannot pay", std::io::Error::other("connection refused")))?;
        Ok(())
    }

    fn lines(error: &TaskError) -> Vec<&str> {
        error.failure().traceback.as_deref().unwrap_or_default().lines().collect()
    }

    #[test]
    fn a_traceback_has_the_causes_and_the_location_of_an_error() {
        let error = cannot_pay().unwrap_err();
        let lines = lines(&error);
        assert_eq!(lines[..2], ["Exception: cannot pay", "caused by: connection refused"]);
        assert!(lines[2].starts_with("  at src/error.rs:"), "{lines:?}");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_long_failure_is_shortened() {
        let long = "\u{e9}".repeat(MAX_TEXT);
        let args = vec![long.as_str().into(), serde_json::json!([long]), 1.into()];
        let failure = Failure { args, traceback: Some(long), ..Failure::new("m", "T", "") };
        let failure = failure.bounded();
        let texts = failure.args.iter().map(serde_json::Value::to_string).chain(failure.traceback);
        for text in texts {
            assert!(text.len() < MAX_TEXT + 64, "{}", text.len());
        }
        assert!(failure.args[0].as_str().unwrap().ends_with("... (65536 bytes left out)"));
        assert_eq!(failure.args[2], 1);
        let many = Failure { args: vec![1.into(); 100], ..Failure::new("m", "T", "") };
        assert_eq!(many.bounded().args.len(), MAX_ARGUMENTS);
    }

    #[test]
    fn an_explicit_failure_has_a_traceback_too() {
        let errors = [
            (TaskError::fatal("no"), "Exception: no"),
            (TaskError::retry_after(Duration::ZERO, "later"), "Exception: later"),
            (TaskError::with_exception("builtins", "KeyError", "k").no_retry(), "KeyError: k"),
        ];
        for (error, first) in errors {
            let lines = lines(&error);
            assert_eq!(lines[0], first);
            assert!(lines[1].starts_with("  at src/error.rs:"), "{lines:?}");
        }
    }
}
