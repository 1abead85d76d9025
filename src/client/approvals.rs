//! The decider's side of approvals, and questions of services that are no tasks.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::Client;
use crate::approval::{
    Answer, ApprovalId, Choice, Decision, Digest, OnTimeout, Question, Standing, name_fault,
};
use crate::backend::{Asked, Found, Parcel, Queue, Resume};
use crate::error::{Error, Kind};
use crate::faults;
use crate::protocol::Ticket;

/// A decided task is resumed by the decider within this; after it, by a worker.
const RESUME_DEADLINE: Duration = Duration::from_secs(5);
const LISTED_AT_ONCE: usize = 100;
/// Whoever waits reads at least this often, whatever was or was not heard.
const REREAD: Duration = Duration::from_secs(15);

impl Asked {
    /// Yes, by this person.
    #[must_use]
    pub fn approve(&self, by: &str) -> Decision {
        self.decision(by, Choice::Approve)
    }

    /// Yes, by this person, with these arguments in place of those that were asked for.
    #[must_use]
    pub fn approve_with(&self, by: &str, args: Value) -> Decision {
        Decision { edited: Some(args), ..self.approve(by) }
    }

    /// No, by this person, for this reason.
    #[must_use]
    pub fn reject(&self, by: &str, reason: impl Into<String>) -> Decision {
        self.decision(by, Choice::Reject).because(reason)
    }

    /// It is not to be asked any more.
    #[must_use]
    pub fn withdraw(&self, by: &str) -> Decision {
        self.decision(by, Choice::Withdraw)
    }

    fn decision(&self, by: &str, choice: Choice) -> Decision {
        Decision { nonce: self.nonce.clone(), ..Decision::on(&self.question, by, choice) }
    }
}

/// Questions that somebody is to decide.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pending {
    /// Those with the nearest deadlines first.
    pub asked: Vec<Asked>,
    /// Those that this version cannot read, and why.
    pub unreadable: Vec<(ApprovalId, String)>,
}

/// What came of a question from outside.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Resolution {
    /// `approved`, `rejected`, `withdrawn`, `expired`; or `timeout`, when nobody has decided yet.
    pub status: &'static str,
    /// The answer is yes.
    pub approved: bool,
    /// Who decided.
    pub by: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// The arguments that were approved.
    pub args: Option<Value>,
}

/// A question that no task waits for.
#[derive(Clone, Debug)]
pub struct Requested {
    client: Client,
    id: ApprovalId,
}

impl Client {
    /// A question, for a person to look at; a decision on it is made by [`Asked::approve`] and
    /// [`Asked::reject`], and taken by [`Client::decide`].
    ///
    /// # Errors
    /// There is no such question; the store does not answer.
    pub async fn approval(&self, id: &ApprovalId) -> Result<Asked, Error> {
        let found = self.look_up(id).await?;
        found.ok_or_else(|| Kind::NoApproval { id: id.clone() }.into())
    }

    async fn look_up(&self, id: &ApprovalId) -> Result<Option<Asked>, Error> {
        let found = self.backends().store.asked(std::slice::from_ref(id)).await?.pop();
        found.map_or(Ok(None), Found::readable)
    }

    /// The open questions with the nearest deadlines, at most so many. One that only a newer
    /// Countersign can read hides none of the others.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn pending_approvals(&self, limit: usize) -> Result<Pending, Error> {
        let (mut open, mut from) = (Pending::default(), 0);
        while open.asked.len() + open.unreadable.len() < limit {
            // Among those that are listed, some have been decided.
            let listed = self.backends().store.pending(from, LISTED_AT_ONCE).await?;
            if listed.is_empty() {
                break;
            }
            from += listed.len();
            let ids: Vec<_> = listed.into_iter().map(|(id, _)| id).collect();
            let found = self.backends().store.asked(&ids).await?;
            for (id, found) in ids.into_iter().zip(found) {
                match found {
                    Found::Asked(asked) if matches!(asked.standing, Standing::Open(_)) => {
                        open.asked.push(*asked);
                    }
                    Found::Unreadable(Standing::Open(_), error) => {
                        open.unreadable.push((id, error.to_string()));
                    }
                    _ => {}
                }
            }
        }
        open.unreadable.truncate(limit);
        open.asked.truncate(limit - open.unreadable.len());
        Ok(open)
    }

    /// Takes a decision. The answer is the truth: one decision counts, and whoever is later is told
    /// which. A task that waits for it is resumed at once; if that cannot be sent, a worker sends
    /// it within a few seconds.
    ///
    /// Sent again after an error, the same decision counts once.
    ///
    /// # Errors
    /// The decision lacks something, or its edited arguments do not fit the question's schema
    /// ([`Error::is_misfit`]): then nothing was sent. Or the store does not answer, and whether it
    /// was taken is not known.
    pub async fn decide(&self, decision: &Decision) -> Result<Answer, Error> {
        if let Some(fault) = decision.fault() {
            return Err(Kind::Decision(fault).into());
        }
        let edited_digest = match &decision.edited {
            Some(args) => self.check_edited(decision, args).await?,
            None => None,
        };
        let decision = Decision { edited_digest, ..decision.clone() };
        let (answer, resume) = self.backends().store.decide(&decision).await?;
        faults::point("decided");
        if let Some(resume) = resume
            && let Err(error) = self.resume(&resume).await
        {
            warn!(task.id = %resume.task, "decided, and left to the workers to resume: {error}");
        }
        Ok(answer)
    }

    /// The digest of what is approved instead. A question that has gone, or changed, is left to the
    /// store: its answer says so.
    async fn check_edited(
        &self,
        decision: &Decision,
        args: &Value,
    ) -> Result<Option<Digest>, Error> {
        let Some(Asked { question, .. }) = self.look_up(&decision.approval).await? else {
            return Ok(None);
        };
        if question.digest() != decision.digest {
            return Ok(None);
        }
        let misfits = question.misfits(args);
        let digest = question.action.digest_with(args);
        if misfits.is_empty() { Ok(Some(digest)) } else { Err(Kind::Misfit(misfits).into()) }
    }

    async fn resume(&self, resume: &Resume) -> Result<(), Error> {
        let parcel = Parcel {
            message: Ticket::resume(&resume.task, resume.number),
            queue: Queue::configured(&resume.queue, self.config()).resume(),
            delay: None,
            timeout: self.config().publish_timeout.min(RESUME_DEADLINE),
        };
        let _ = self.backends().broker.publish(parcel).await?;
        faults::point("resume sent");
        self.backends().store.resume_sent(resume).await
    }

    /// Gives a request this long from now. One of its approvers may, and the names in
    /// `approvals.operators`; a deadline is never brought forward.
    ///
    /// # Errors
    /// A person without a name; the store does not answer.
    pub async fn extend_approval(
        &self,
        id: &ApprovalId,
        by: &str,
        time: Duration,
    ) -> Result<Answer, Error> {
        if let Some(fault) = name_fault(by) {
            return Err(Kind::Decision(fault).into());
        }
        let is_operator = self.config().operators.iter().any(|name| name == by);
        self.backends().store.extend(id, by, is_operator, time).await
    }

    /// Asks a question that no task waits for, for any service. It is there when this returns.
    ///
    /// ```no_run
    /// # async fn example(client: countersign::Client) -> Result<(), countersign::Error> {
    /// use countersign::approval::{Question, Risk};
    /// let question = Question { risk: Risk::High, ..Question::new("Deploy version 7?") };
    /// let requested = client.request_approval(question).await?;
    /// let resolution = requested.wait(std::time::Duration::from_secs(600)).await?;
    /// println!("{}", resolution.approved);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The question lacks something; the store does not answer.
    pub async fn request_approval(&self, question: Question) -> Result<Requested, Error> {
        if let Some(fault) = question.fault() {
            return Err(Kind::Decision(fault).into());
        }
        let id = question.id.clone();
        self.backends().store.ask(question).await?;
        Ok(Requested { client: self.clone(), id })
    }

    /// A question that was asked before, to wait for again.
    #[must_use]
    pub fn requested_approval(&self, id: &ApprovalId) -> Requested {
        Requested { client: self.clone(), id: id.clone() }
    }
}

impl Requested {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &ApprovalId {
        &self.id
    }

    /// What came of it; after `timeout` without a decision, [`Resolution::status`] says `timeout`.
    /// It stays as it is then: one may wait again, as often as one likes.
    ///
    /// # Errors
    /// There is no such question; the store does not answer.
    pub async fn wait(&self, timeout: Duration) -> Result<Resolution, Error> {
        let until = Instant::now() + timeout;
        // Subscribed before it is read.
        let mut bell = self.client.backends().store.decisions();
        loop {
            let asked = self.client.approval(&self.id).await?;
            let left = match asked.standing {
                Standing::Open(deadline) => {
                    Duration::from_millis(deadline.abs_diff(asked.read_at) + 1)
                }
                _ => return Ok(resolution(asked)),
            };
            let next = async {
                tokio::select! {
                    () = heard(&mut bell, &self.id) => {}
                    () = sleep(left.min(REREAD)) => {}
                }
            };
            if timeout_at(until, next).await.is_err() {
                let status = "timeout";
                return Ok(Resolution {
                    status,
                    approved: false,
                    by: None,
                    reason: None,
                    args: None,
                });
            }
        }
    }
}

/// Completes when this question may have been decided.
async fn heard(bell: &mut tokio::sync::broadcast::Receiver<Option<ApprovalId>>, id: &ApprovalId) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match bell.recv().await {
            Ok(Some(other)) if other != *id => {}
            Ok(_) | Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn resolution(asked: Asked) -> Resolution {
    let Asked { question, standing, decision, .. } = asked;
    let expired = matches!(standing, Standing::Expired(_));
    let approved = standing == Standing::Decided(Choice::Approve)
        || (expired && question.on_timeout == OnTimeout::Approve);
    let (by, reason, edited) = match decision {
        Some(Decision { by, reason, edited, .. }) => (Some(by), reason, edited),
        None => (None, None, None),
    };
    let args = approved.then(|| edited.unwrap_or(question.action.args));
    Resolution { status: standing.as_str(), approved, by, reason, args }
}
