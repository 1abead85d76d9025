//! The compared part of an outcome.

use crate::approval::{ApprovalId, ApprovalOutcome, ApprovalStatus};

/// A request, its status, since when, and the decision.
pub(super) type OutcomeSummary = (ApprovalId, ApprovalStatus, i64, Option<String>);

pub(super) fn summarize(outcomes: &[ApprovalOutcome]) -> Vec<OutcomeSummary> {
    let decision = |it: &ApprovalOutcome| it.decision.as_ref().map(|decision| decision.id.clone());
    let at = |it: &ApprovalOutcome| it.at.as_millisecond();
    outcomes.iter().map(|it| (it.approval.clone(), it.status, at(it), decision(it))).collect()
}
