//! Failures that Celery itself defines: a client raises its own class for each.

use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Failure};
use crate::task::TaskId;

const REFUSED: &str = "Refused";

impl Failure {
    /// No worker here has a handler for the task `name`.
    #[must_use]
    pub fn not_registered(name: &str) -> Self {
        Self::new("celery.exceptions", "NotRegistered", name)
    }

    /// The task ran longer than its hard limit.
    #[must_use]
    pub fn time_limit_exceeded(limit: Duration) -> Self {
        let args = vec![seconds(limit)];
        Self { args, ..Self::new("billiard.exceptions", "TimeLimitExceeded", "") }
    }

    /// The task was revoked; `reason` is `expired`, `revoked` or `terminated`.
    #[must_use]
    pub fn task_revoked(reason: &str) -> Self {
        Self::new("celery.exceptions", "TaskRevokedError", reason)
    }

    /// A later task of a chain will not run, because `before` was revoked or has expired.
    #[must_use]
    pub fn after_revoked(before: &TaskId, reason: &str) -> Self {
        let message = match reason {
            "expired" => format!("the preceding task {before} has expired"),
            _ => format!("the preceding task {before} was {reason}"),
        };
        Self::new("celery.exceptions", "TaskRevokedError", message)
    }

    /// The task crashed its worker this many times, `alone` of them while no other task ran; no further
    /// retry.
    #[must_use]
    pub fn worker_lost(runs: u32, alone: u32) -> Self {
        let message = format!(
            "the task crashed its worker {runs} times, {alone} of them while no other task ran"
        );
        Self::new("billiard.exceptions", "WorkerLostError", message)
    }

    /// The task's result is too large to be stored.
    #[must_use]
    pub fn result_too_large(size: usize, limit: usize) -> Self {
        let message =
            format!("the result is {size} bytes, over the limit of {limit} (limits.result)");
        Self::new("countersign.errors", "ResultTooLarge", message)
    }

    /// The store has lost the state of the suspended task.
    #[must_use]
    pub fn state_lost() -> Self {
        let message = "the store has lost the state of this suspended task: its approval requests cannot be \
                       decided any more";
        Self::new("countersign.errors", "StateLost", message)
    }

    /// An approver or a passed deadline rejected the request.
    #[must_use]
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new("countersign.errors", REFUSED, message)
    }

    /// A decision's edited arguments violate the schema of the request.
    #[must_use]
    pub(crate) fn schema_violation(violations: &str) -> Self {
        let message =
            format!("the edited arguments violate the schema of the request: {violations}");
        Self::new("countersign.errors", "Misfit", message)
    }

    /// Returns whether the task failed because its request was not approved.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.exc_type == REFUSED && self.exc_module == "countersign.errors"
    }

    /// The task waits for a decision, and cannot be suspended.
    #[must_use]
    pub fn cannot_suspend(error: &Error) -> Self {
        Self::new(
            "countersign.errors",
            "Unparkable",
            format!("the task cannot be suspended: {error}"),
        )
    }

    /// The arguments do not match the task's parameters.
    #[must_use]
    pub fn type_error(message: impl Into<String>) -> Self {
        Self::new("builtins", "TypeError", message)
    }
}

/// Writes a duration as Python would: `5`, but `0.5`.
pub(super) fn seconds(duration: Duration) -> Value {
    if duration.subsec_nanos() == 0 {
        Value::from(duration.as_secs())
    } else {
        Value::from(duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_time_limit_is_an_integer_when_it_is_whole() {
        let whole = Failure::time_limit_exceeded(Duration::from_secs(5));
        assert_eq!(whole.args, [json!(5)]);
        let half = Failure::time_limit_exceeded(Duration::from_millis(500));
        assert_eq!(half.args, [json!(0.5)]);
    }
}
