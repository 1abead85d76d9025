//! Approval requests from inside a task.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context as Polled, Poll};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Context, Run};
use crate::approval::{
    Action, ApprovalId, ApprovalOutcome, ApprovalRequest, ApprovalStatus, DecisionKind, OnTimeout,
    Risk,
};
use crate::error::{Failure, Retryable, TaskError, TaskResult};

/// About 142,000 years; longer times are cut.
const MAX_TIME: Duration = Duration::from_millis(1 << 52);
const EXPIRED: &str = "no approver: the deadline passed";
const NO_APPROVER: &str = "the task itself";

/// A request for a decision by an approver. Await it for the decision: until then the task is suspended,
/// and holds neither a permit nor its message. It survives the restart of every process.
///
/// The handler is dropped, and runs again from its beginning when a decision is made: put the work before
/// the request into steps ([`Context::step`]). Requests that are awaited together (`join!`) are sent
/// together. Waits in tasks that the handler has spawned end with an error when it is suspended.
///
/// The deadline is [`Approval::expires_in`]: a timer around the approval would start anew at each run. An
/// undecided request is withdrawn when this future is dropped.
#[must_use = "an approval is requested when it is awaited"]
#[derive(Debug)]
pub struct Approval<A = ()> {
    context: Context,
    draft: Result<ApprovalRequest, String>,
    has_action: bool,
    /// The id, while the request waits for a decision.
    waiting: Option<ApprovalId>,
    args: PhantomData<fn() -> A>,
}

/// The decision on an approval request.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided<A = ()> {
    /// The verdict.
    pub verdict: Verdict<A>,
    /// The approver who decided, or a description if no approver did.
    pub by: String,
    /// The time of the decision, by the clock of the store.
    pub at: Timestamp,
    reason: Option<String>,
}

/// How an approval request was decided.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<A = ()> {
    /// The action is approved.
    Approved {
        /// The action's arguments, as they were approved.
        args: A,
        /// Whether the approver edited the arguments.
        edited: bool,
    },
    /// The action is rejected.
    Rejected,
    /// The deadline passed without a decision.
    Expired,
    /// The request was withdrawn.
    Withdrawn,
}

impl<A> Decided<A> {
    /// Returns whether the request was approved.
    #[must_use]
    pub fn is_approved(&self) -> bool {
        matches!(self.verdict, Verdict::Approved { .. })
    }

    /// Returns the approved arguments.
    ///
    /// # Errors
    /// The request was not approved. The failure is not retried, and names the approver and the reason;
    /// callers that wait for the task recognize it as a refusal ([`Failure::is_refusal`]).
    ///
    /// [`Failure::is_refusal`]: crate::Failure::is_refusal
    pub fn approved(self) -> TaskResult<A> {
        let (by, reason) = (self.by, self.reason.unwrap_or_default());
        let message = match self.verdict {
            Verdict::Approved { args, .. } => return Ok(args),
            Verdict::Rejected => format!("refused by {by}: {reason}"),
            Verdict::Expired => "not approved before the deadline".to_owned(),
            Verdict::Withdrawn => format!("the approval request was withdrawn by {by}"),
        };
        Err(TaskError { failure: Failure::refused(message), retry: Retryable::Never })
    }

    /// Returns the approver's reason; empty if none was given.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or_default()
    }
}

impl Context {
    /// Creates an approval request called `name`. Requests with the same name are distinguished by their
    /// order in the run.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use countersign::{Context, TaskResult};
    /// async fn refund(ctx: Context, cents: u64) -> TaskResult<String> {
    ///     let decided = ctx
    ///         .approval("over-limit")
    ///         .title(format!("Refund {cents} cents?"))
    ///         .expires_in(Duration::from_secs(48 * 60 * 60))
    ///         .await?;
    ///     Ok(if decided.is_approved() { "refunded" } else { "kept" }.into())
    /// }
    /// ```
    pub fn approval(&self, name: impl Into<String>) -> Approval {
        let name = name.into();
        let occurrence = self.run.pending.occurrence(&name);
        let envelope = &self.run.envelope;
        let arguments =
            json!({ "args": envelope.arguments.args, "kwargs": envelope.arguments.kwargs });
        let request = ApprovalRequest {
            id: ApprovalId::of(&envelope.id, &name, occurrence),
            task: Some(envelope.id.clone()),
            task_name: Some(envelope.name.clone()),
            action: Action { name: envelope.name.clone(), version: 1, args: arguments },
            parameters: self.run.parameters().iter().map(|&name| name.to_owned()).collect(),
            name,
            ..ApprovalRequest::new("")
        };
        Approval {
            context: self.clone(),
            draft: Ok(request),
            has_action: false,
            waiting: None,
            args: PhantomData,
        }
    }
}

impl<A> Approval<A> {
    fn set(mut self, change: impl FnOnce(&mut ApprovalRequest)) -> Self {
        if let Ok(request) = &mut self.draft {
            change(request);
        }
        self
    }

    /// Sets the title: what the approver decides, in one line.
    pub fn title(self, title: impl Into<String>) -> Self {
        self.set(|request| request.title = title.into())
    }

    /// Sets the summary: the full description for the approver, in Markdown.
    pub fn summary(self, markdown: impl Into<String>) -> Self {
        self.set(|request| request.summary = markdown.into())
    }

    /// Adds one effect of the approval.
    pub fn effect(self, effect: impl Into<String>) -> Self {
        self.set(|request| request.effects.push(effect.into()))
    }

    /// Sets the risk of a wrong approval.
    pub fn risk(self, risk: Risk) -> Self {
        self.set(|request| request.risk = risk)
    }

    /// Sets the requester. The requester cannot approve the request.
    pub fn requested_by(self, name: impl Into<String>) -> Self {
        self.set(|request| request.requester = Some(name.into()))
    }

    /// Allows the requester to approve the request.
    pub fn self_approval(self) -> Self {
        self.set(|request| request.self_approval = true)
    }

    /// Sets the approvers who may decide. Default: every user.
    pub fn approvers<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        self.set(|request| request.approvers = names.into_iter().map(Into::into).collect())
    }

    /// Sets how many approvers must approve; one rejection is enough to reject.
    pub fn quorum(self, people: u32) -> Self {
        self.set(|request| request.quorum = people)
    }

    /// Sets how long the request can be decided. Default: a day.
    pub fn expires_in(self, time: Duration) -> Self {
        self.set(|request| request.expires_in = time.clamp(Duration::from_millis(1), MAX_TIME))
    }

    /// Sets the outcome if the deadline passes without a decision. Default: rejected.
    pub fn on_timeout(self, then: OnTimeout) -> Self {
        self.set(|request| request.on_timeout = then)
    }

    /// Sets the JSON Schema (draft 2020-12) that edited arguments must match. It must not refer to itself
    /// or to anything outside of it.
    pub fn schema(self, schema: Value) -> Self {
        self.set(|request| request.schema = Some(schema))
    }

    /// Sets the action to perform if the request is approved. The arguments are moved in; they are
    /// returned only by an approving decision: unchanged, or as edited by the approver.
    pub fn action<B>(mut self, name: impl Into<String>, args: B) -> Approval<B>
    where
        B: Serialize + DeserializeOwned,
    {
        let draft = std::mem::replace(&mut self.draft, Err(String::new()));
        let draft = draft.and_then(|request| {
            let args = serde_json::to_value(args).map_err(|error| {
                format!("the action's arguments cannot be encoded as JSON: {error}")
            })?;
            let action = Action { name: name.into(), version: 1, args };
            Ok(ApprovalRequest { action, editable: true, parameters: Vec::new(), ..request })
        });
        let context = self.context.clone();
        Approval { context, draft, has_action: true, waiting: None, args: PhantomData }
    }
}

impl<A: DeserializeOwned> Future for Approval<A> {
    type Output = TaskResult<Decided<A>>;

    fn poll(self: Pin<&mut Self>, polled: &mut Polled<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let request = match &this.draft {
            Ok(request) => request,
            Err(fault) => return Poll::Ready(Err(TaskError::fatal(fault.clone()))),
        };
        // The request does not change, so one check is enough.
        let fault = if this.waiting.is_none() { request.fault() } else { None };
        if let Some(fault) = inside_step().or(fault) {
            return Poll::Ready(Err(TaskError::fatal(format!("{}: {fault}", request.name))));
        }
        let outcome = match this.context.run.pending.poll(request, polled.waker()) {
            Poll::Pending => {
                this.waiting = Some(request.id.clone());
                return Poll::Pending;
            }
            Poll::Ready(outcome) => outcome,
        };
        this.waiting = None;
        Poll::Ready(outcome.and_then(|outcome| conclude(request, outcome, this.has_action)))
    }
}

impl<A> Drop for Approval<A> {
    fn drop(&mut self) {
        if let Some(id) = &self.waiting {
            self.context.run.pending.abandon(id);
        }
    }
}

fn inside_step() -> Option<String> {
    let fault = "an approval inside a step would interrupt the step: request it before the step";
    Run::is_inside_step().then(|| fault.to_owned())
}

/// Converts the outcome into the decision that the handler receives.
fn conclude<A: DeserializeOwned>(
    request: &ApprovalRequest,
    outcome: ApprovalOutcome,
    has_action: bool,
) -> TaskResult<Decided<A>> {
    let (by, reason, edited, digest) = match outcome.decision {
        Some(decision) => (decision.by, decision.reason, decision.edited, decision.edited_digest),
        None if matches!(outcome.status, ApprovalStatus::Expired(_)) => {
            (EXPIRED.into(), None, None, None)
        }
        None => (NO_APPROVER.into(), None, None, None),
    };
    let approved = |edited: Option<Value>| {
        let is_edited = edited.is_some();
        // The decision may come from another version of this library, or from other software.
        let violations = edited.as_ref().map_or_else(Vec::new, |args| {
            let is_other = digest.is_some_and(|it| it != request.action.digest_with(args));
            let other =
                is_other.then(|| "the arguments do not have the decision's digest".to_owned());
            request.schema_violations(args).into_iter().chain(other).collect()
        });
        if !violations.is_empty() {
            return Err(schema_violation(request, &violations));
        }
        let args = if has_action {
            edited.unwrap_or_else(|| request.action.args.clone())
        } else {
            Value::Null
        };
        let args = serde_json::from_value(args).map_err(|error| {
            let name = &request.name;
            TaskError::fatal(format!(
                "{name}: the approved arguments do not match the action's type: {error}"
            ))
        })?;
        Ok(Verdict::Approved { args, edited: is_edited })
    };
    let verdict = match (outcome.status, request.on_timeout) {
        (ApprovalStatus::Decided(DecisionKind::Approve), _) => approved(edited)?,
        (ApprovalStatus::Decided(DecisionKind::Reject), _) => Verdict::Rejected,
        (ApprovalStatus::Decided(DecisionKind::Withdraw), _) => Verdict::Withdrawn,
        (ApprovalStatus::Expired(_) | ApprovalStatus::Open(_), OnTimeout::Reject) => {
            Verdict::Expired
        }
        (ApprovalStatus::Expired(_) | ApprovalStatus::Open(_), OnTimeout::Approve) => {
            approved(None)?
        }
        (ApprovalStatus::Expired(_) | ApprovalStatus::Open(_), OnTimeout::Fail) => {
            let name = &request.name;
            return Err(TaskError::fatal(format!("{name}: not decided before the deadline")));
        }
    };
    Ok(Decided { verdict, by, at: outcome.at, reason })
}

fn schema_violation(request: &ApprovalRequest, violations: &[String]) -> TaskError {
    let message = format!("{}: {}", request.name, violations.join("; "));
    TaskError { failure: Failure::schema_violation(&message), retry: Retryable::Never }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approval::Decision;

    #[test]
    fn edited_arguments_run_only_under_their_own_digest() {
        let request = ApprovalRequest { editable: true, ..ApprovalRequest::new("Pay?") };
        let conclude_with = |edited_digest| {
            let decision = Decision {
                edited: Some(json!(400)),
                edited_digest,
                ..Decision::on(&request, "ana", DecisionKind::Approve)
            };
            let outcome = ApprovalOutcome {
                approval: request.id.clone(),
                digest: request.digest(),
                status: ApprovalStatus::Decided(DecisionKind::Approve),
                at: Timestamp::UNIX_EPOCH,
                decision: Some(decision),
            };
            conclude::<u64>(&request, outcome, true).map(Decided::approved)
        };
        let own = request.action.digest_with(&json!(400));
        for digest in [Some(own), None] {
            assert_eq!(conclude_with(digest).unwrap().unwrap(), 400);
        }
        let error = conclude_with(Some(request.action.digest_with(&json!(500)))).unwrap_err();
        assert_eq!(error.failure().exc_type, "Misfit");
    }
}
