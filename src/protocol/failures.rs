//! Failures that Celery itself knows: a client raises its own class for each.

use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Failure};
use crate::task::TaskId;

const REFUSED: &str = "Refused";

impl Failure {
    /// No worker here knows the task `name`.
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

    /// A task that was to run after `before`, which will not: it was revoked, or has expired.
    #[must_use]
    pub fn after_revoked(before: &TaskId, reason: &str) -> Self {
        let told = match reason {
            "expired" => format!("task {before}, which comes before it, has expired"),
            _ => format!("task {before}, which comes before it, was {reason}"),
        };
        Self::new("celery.exceptions", "TaskRevokedError", told)
    }

    /// The task ended its worker this many times, so many of them alone, and is not tried again.
    #[must_use]
    pub fn worker_lost(runs: u32, alone: u32) -> Self {
        let told = format!(
            "its worker was lost {runs} times while it ran, {alone} of them while nothing else did"
        );
        Self::new("billiard.exceptions", "WorkerLostError", told)
    }

    /// The task's answer is too large to be stored.
    #[must_use]
    pub fn result_too_large(size: usize, limit: usize) -> Self {
        let told = format!("the result is {size} bytes, over the limit of {limit} (limits.result)");
        Self::new("countersign.errors", "ResultTooLarge", told)
    }

    /// The store has lost the task while it was parked.
    #[must_use]
    pub fn state_lost() -> Self {
        let told = "the store has lost what this task waited for: nobody can decide it any more";
        Self::new("countersign.errors", "StateLost", told)
    }

    /// A person, or a deadline, said no.
    #[must_use]
    pub(crate) fn refused(told: impl Into<String>) -> Self {
        Self::new("countersign.errors", REFUSED, told)
    }

    /// A decision's edited arguments do not fit the schema of its question.
    #[must_use]
    pub(crate) fn misfit(told: &str) -> Self {
        let told = format!("the edited arguments do not fit: {told}");
        Self::new("countersign.errors", "Misfit", told)
    }

    /// Whether the task failed because what it asked was not approved.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.exc_type == REFUSED && self.exc_module == "countersign.errors"
    }

    /// The task waits for a decision, and cannot be parked.
    #[must_use]
    pub fn unparkable(error: &Error) -> Self {
        Self::new("countersign.errors", "Unparkable", format!("it cannot be parked: {error}"))
    }

    /// The arguments do not fit the task.
    #[must_use]
    pub fn type_error(message: impl Into<String>) -> Self {
        Self::new("builtins", "TypeError", message)
    }
}

/// As Python would write it: `5`, but `0.5`.
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
