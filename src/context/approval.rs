//! Asking a person, from inside a task.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context as Polled, Poll};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Context, Run};
use crate::approval::{Action, ApprovalId, Choice, OnTimeout, Question, Risk, Ruling, Standing};
use crate::error::{Failure, Retryable, TaskError, TaskResult};

const EXPIRED: &str = "nobody: its deadline passed";
const ASKER: &str = "the task itself";

/// A question to a person. Await it for the decision: until then the task is parked, and holds
/// nothing. It survives the restart of every process.
///
/// The handler is dropped, and runs again from its beginning when something is decided: what it did
/// before the question belongs into steps ([`Context::step`]). Several questions that are awaited
/// together (`join!`) are asked together. What spawned tasks of the handler wait for ends with an
/// error when it is parked.
///
/// The deadline is [`Approval::expires_in`]: a timer around the approval starts anew at each run.
/// Dropped undecided, it is withdrawn.
#[must_use = "a question is asked when it is awaited"]
#[derive(Debug)]
pub struct Approval<A = ()> {
    context: Context,
    draft: Result<Question, String>,
    has_action: bool,
    asked: Option<ApprovalId>,
    args: PhantomData<fn() -> A>,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided<A = ()> {
    /// How it was decided.
    pub verdict: Verdict<A>,
    /// Who decided; in words, if it was nobody.
    pub by: String,
    /// When, in milliseconds since the epoch.
    pub at: i64,
    reason: Option<String>,
}

/// How a question was decided.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<A = ()> {
    /// Yes.
    Approved {
        /// The action's arguments, as they were approved.
        args: A,
        /// They are not those that were asked for.
        edited: bool,
    },
    /// No.
    Rejected,
    /// Nobody decided in time.
    Expired,
    /// Somebody took the question back.
    Withdrawn,
}

impl<A> Decided<A> {
    /// The answer is yes.
    #[must_use]
    pub fn is_approved(&self) -> bool {
        matches!(self.verdict, Verdict::Approved { .. })
    }

    /// The approved arguments.
    ///
    /// # Errors
    /// It is not approved: a failure that is not retried, says who refused it and why, and is known
    /// to be a refusal wherever the task is waited for ([`Failure::is_refusal`]).
    ///
    /// [`Failure::is_refusal`]: crate::Failure::is_refusal
    pub fn approved(self) -> TaskResult<A> {
        let (by, reason) = (self.by, self.reason.unwrap_or_default());
        let told = match self.verdict {
            Verdict::Approved { args, .. } => return Ok(args),
            Verdict::Rejected => format!("refused by {by}: {reason}"),
            Verdict::Expired => "nobody approved it in time".to_owned(),
            Verdict::Withdrawn => format!("the question was withdrawn by {by}"),
        };
        Err(TaskError { failure: Failure::refused(told), retry: Retryable::Never })
    }

    /// Why; empty when nobody said.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or_default()
    }
}

impl Context {
    /// A question called `name`, for a person to decide. Questions of one name are told apart by
    /// their order in the run.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use countersign::{Context, TaskResult};
    /// async fn refund(ctx: Context, cents: u64) -> TaskResult<String> {
    ///     let decided = ctx
    ///         .approval("over-limit")
    ///         .ask(format!("Refund {cents} cents?"))
    ///         .expires_in(Duration::from_secs(48 * 60 * 60))
    ///         .await?;
    ///     Ok(if decided.is_approved() { "refunded" } else { "kept" }.into())
    /// }
    /// ```
    pub fn approval(&self, name: impl Into<String>) -> Approval {
        let name = name.into();
        let occurrence = self.run.desk.occurrence(&name);
        let envelope = &self.run.envelope;
        let arguments =
            json!({ "args": envelope.arguments.args, "kwargs": envelope.arguments.kwargs });
        let question = Question {
            id: ApprovalId::of(&envelope.id, &name, occurrence),
            task: Some(envelope.id.clone()),
            task_name: Some(envelope.name.clone()),
            action: Action { name: envelope.name.clone(), version: 1, args: arguments },
            parameters: self.run.parameters().iter().map(|&name| name.to_owned()).collect(),
            name,
            ..Question::new("")
        };
        Approval {
            context: self.clone(),
            draft: Ok(question),
            has_action: false,
            asked: None,
            args: PhantomData,
        }
    }
}

impl<A> Approval<A> {
    fn set(mut self, change: impl FnOnce(&mut Question)) -> Self {
        if let Ok(question) = &mut self.draft {
            change(question);
        }
        self
    }

    /// What is asked, in one line.
    pub fn ask(self, title: impl Into<String>) -> Self {
        self.set(|question| question.title = title.into())
    }

    /// What is asked, at length, in Markdown.
    pub fn summary(self, markdown: impl Into<String>) -> Self {
        self.set(|question| question.summary = markdown.into())
    }

    /// One more thing that happens once it is approved.
    pub fn effect(self, effect: impl Into<String>) -> Self {
        self.set(|question| question.effects.push(effect.into()))
    }

    /// How bad a wrong yes would be.
    pub fn risk(self, risk: Risk) -> Self {
        self.set(|question| question.risk = risk)
    }

    /// Who wants it. This person does not approve it.
    pub fn requested_by(self, name: impl Into<String>) -> Self {
        self.set(|question| question.requester = Some(name.into()))
    }

    /// Who wants it may approve it.
    pub fn self_approval(self) -> Self {
        self.set(|question| question.self_approval = true)
    }

    /// Who may decide: anybody, unless said otherwise.
    pub fn approvers<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        self.set(|question| question.approvers = names.into_iter().map(Into::into).collect())
    }

    /// So many people must approve it; one rejection is enough.
    pub fn quorum(self, people: u32) -> Self {
        self.set(|question| question.quorum = people)
    }

    /// It can be decided for this long: a day, unless said otherwise.
    pub fn expires_in(self, time: Duration) -> Self {
        self.set(|question| question.expires_in = milliseconds(time))
    }

    /// What holds when nobody decides in time: it is not approved, unless said otherwise.
    pub fn on_timeout(self, then: OnTimeout) -> Self {
        self.set(|question| question.on_timeout = then)
    }

    /// The JSON Schema (draft 2020-12) that changed arguments must fit. It refers to nothing outside
    /// of it, and not to itself.
    pub fn schema(self, schema: Value) -> Self {
        self.set(|question| question.schema = Some(schema))
    }

    /// What is to be done if it is approved. The arguments are given away, and only an approving
    /// decision gives them back: as they were asked for, or as the person changed them.
    pub fn action<B>(mut self, name: impl Into<String>, args: B) -> Approval<B>
    where
        B: Serialize + DeserializeOwned,
    {
        let draft = std::mem::replace(&mut self.draft, Err(String::new()));
        let draft = draft.and_then(|question| {
            let args = serde_json::to_value(args)
                .map_err(|error| format!("the action's arguments are no JSON: {error}"))?;
            let action = Action { name: name.into(), version: 1, args };
            Ok(Question { action, editable: true, parameters: Vec::new(), ..question })
        });
        let context = self.context.clone();
        Approval { context, draft, has_action: true, asked: None, args: PhantomData }
    }
}

impl<A: DeserializeOwned> Future for Approval<A> {
    type Output = TaskResult<Decided<A>>;

    fn poll(self: Pin<&mut Self>, polled: &mut Polled<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let question = match &this.draft {
            Ok(question) => question,
            Err(fault) => return Poll::Ready(Err(TaskError::fatal(fault.clone()))),
        };
        // Once is enough for what does not change.
        let fault = if this.asked.is_none() { question.fault() } else { None };
        if let Some(fault) = inside_step().or(fault) {
            return Poll::Ready(Err(TaskError::fatal(format!("{}: {fault}", question.name))));
        }
        let ruling = match this.context.run.desk.poll(question, polled.waker()) {
            Poll::Pending => {
                this.asked = Some(question.id.clone());
                return Poll::Pending;
            }
            Poll::Ready(ruling) => ruling,
        };
        this.asked = None;
        Poll::Ready(ruling.and_then(|ruling| conclude(question, ruling, this.has_action)))
    }
}

impl<A> Drop for Approval<A> {
    fn drop(&mut self) {
        if let Some(id) = &self.asked {
            self.context.run.desk.abandon(id);
        }
    }
}

fn inside_step() -> Option<String> {
    let told = "an approval inside a step would cut the step: ask before it";
    Run::is_inside_step().then(|| told.to_owned())
}

/// What the handler is told.
fn conclude<A: DeserializeOwned>(
    question: &Question,
    ruling: Ruling,
    has_action: bool,
) -> TaskResult<Decided<A>> {
    let (by, reason, edited, digest) = match ruling.decision {
        Some(decision) => (decision.by, decision.reason, decision.edited, decision.edited_digest),
        None if matches!(ruling.standing, Standing::Expired(_)) => {
            (EXPIRED.into(), None, None, None)
        }
        None => (ASKER.into(), None, None, None),
    };
    let approved = |edited: Option<Value>| {
        let is_edited = edited.is_some();
        // Whoever decided may have another version of us, or none.
        let misfits = edited.as_ref().map_or_else(Vec::new, |args| {
            let is_other = digest.is_some_and(|it| it != question.action.digest_with(args));
            let told = is_other.then(|| "they are not those of the decision's digest".to_owned());
            question.misfits(args).into_iter().chain(told).collect()
        });
        if !misfits.is_empty() {
            return Err(misfit(question, &misfits));
        }
        let args = if has_action {
            edited.unwrap_or_else(|| question.action.args.clone())
        } else {
            Value::Null
        };
        let args = serde_json::from_value(args).map_err(|error| {
            let name = &question.name;
            TaskError::fatal(format!("{name}: the approved arguments do not fit: {error}"))
        })?;
        Ok(Verdict::Approved { args, edited: is_edited })
    };
    let verdict = match (ruling.standing, question.on_timeout) {
        (Standing::Decided(Choice::Approve), _) => approved(edited)?,
        (Standing::Decided(Choice::Reject), _) => Verdict::Rejected,
        (Standing::Decided(Choice::Withdraw), _) => Verdict::Withdrawn,
        (Standing::Expired(_) | Standing::Open(_), OnTimeout::Reject) => Verdict::Expired,
        (Standing::Expired(_) | Standing::Open(_), OnTimeout::Approve) => approved(None)?,
        (Standing::Expired(_) | Standing::Open(_), OnTimeout::Fail) => {
            let name = &question.name;
            return Err(TaskError::fatal(format!("{name}: nobody decided in time")));
        }
    };
    Ok(Decided { verdict, by, at: ruling.at, reason })
}

fn misfit(question: &Question, misfits: &[String]) -> TaskError {
    let told = format!("{}: {}", question.name, misfits.join("; "));
    TaskError { failure: Failure::misfit(&told), retry: Retryable::Never }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approval::Decision;

    #[test]
    fn edited_arguments_run_only_under_their_own_digest() {
        let question = Question { editable: true, ..Question::new("Pay?") };
        let ruled = |edited_digest| {
            let decision = Decision {
                edited: Some(json!(400)),
                edited_digest,
                ..Decision::on(&question, "ana", Choice::Approve)
            };
            let ruling = Ruling {
                approval: question.id.clone(),
                digest: question.digest(),
                standing: Standing::Decided(Choice::Approve),
                at: 0,
                decision: Some(decision),
            };
            conclude::<u64>(&question, ruling, true).map(Decided::approved)
        };
        let own = question.action.digest_with(&json!(400));
        for digest in [Some(own), None] {
            assert_eq!(ruled(digest).unwrap().unwrap(), 400);
        }
        let error = ruled(Some(question.action.digest_with(&json!(500)))).unwrap_err();
        assert_eq!(error.failure().exc_type, "Misfit");
    }
}
