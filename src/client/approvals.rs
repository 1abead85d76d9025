//! The decider's side of approvals, and requests of services outside a task.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::Client;
use crate::approval::{
    ApprovalId, ApprovalRequest, ApprovalStatus, DecideResult, Decision, DecisionKind, Digest,
    OnTimeout, name_fault,
};
use crate::backend::{ApprovalRecord, Lookup, PublishRequest, Queue, Resume};
use crate::error::{Error, Kind};
use crate::failpoints;
use crate::protocol::SuspendHeader;

/// Limits the effect of a mistyped extension, which cannot be undone: a deadline is never moved earlier.
const LONGEST_EXTENSION: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The decider sends the resume message within this time; after that, a worker sends it.
const RESUME_DEADLINE: Duration = Duration::from_secs(5);
const LISTED_AT_ONCE: usize = 100;
/// Waiters re-read the stored state at least this often, independently of notifications.
const REREAD: Duration = Duration::from_secs(15);

impl ApprovalRecord {
    /// Creates an approval by this person.
    #[must_use]
    pub fn approve(&self, by: &str) -> Decision {
        self.decision(by, DecisionKind::Approve)
    }

    /// Creates an approval by this person, with these arguments in place of the requested ones.
    #[must_use]
    pub fn approve_with(&self, by: &str, args: Value) -> Decision {
        Decision { edited: Some(args), ..self.approve(by) }
    }

    /// Creates a rejection by this person, with this reason.
    #[must_use]
    pub fn reject(&self, by: &str, reason: impl Into<String>) -> Decision {
        self.decision(by, DecisionKind::Reject).because(reason)
    }

    /// Creates a withdrawal of the request by this person.
    #[must_use]
    pub fn withdraw(&self, by: &str) -> Decision {
        self.decision(by, DecisionKind::Withdraw)
    }

    fn decision(&self, by: &str, choice: DecisionKind) -> Decision {
        Decision { nonce: self.nonce.clone(), ..Decision::on(&self.request, by, choice) }
    }
}

/// Open approval requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pending {
    /// The readable requests, nearest deadline first.
    pub requests: Vec<ApprovalRecord>,
    /// The requests that this version cannot read, each with the reason.
    pub unreadable: Vec<(ApprovalId, String)>,
}

/// The outcome of a request made outside a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Resolution {
    /// `approved`, `rejected`, `withdrawn`, `expired`; or `timeout` if there is no decision yet.
    pub status: &'static str,
    /// Whether the request is approved.
    pub approved: bool,
    /// The name of the person who decided.
    pub by: Option<String>,
    /// The reason.
    pub reason: Option<String>,
    /// The approved arguments.
    pub args: Option<Value>,
}

/// A handle to a request that no task waits for.
#[derive(Clone, Debug)]
pub struct ApprovalHandle {
    client: Client,
    id: ApprovalId,
}

impl Client {
    /// Returns an approval request. Make a decision on it with [`ApprovalRecord::approve`] or
    /// [`ApprovalRecord::reject`], and send that with [`Client::decide`].
    ///
    /// # Errors
    /// If there is no such request, or the store does not answer.
    pub async fn approval(&self, id: &ApprovalId) -> Result<ApprovalRecord, Error> {
        let found = self.look_up(id).await?;
        found.ok_or_else(|| Kind::NoApproval { id: id.clone() }.into())
    }

    async fn look_up(&self, id: &ApprovalId) -> Result<Option<ApprovalRecord>, Error> {
        let found = self.backends().store.approvals(std::slice::from_ref(id)).await?.pop();
        found.map_or(Ok(None), Lookup::readable)
    }

    /// Returns the open requests with the nearest deadlines, at most `limit`. Requests that only a newer
    /// version can read are listed as unreadable.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn pending_approvals(&self, limit: usize) -> Result<Pending, Error> {
        let (mut open, mut from) = (Pending::default(), 0);
        while open.requests.len() + open.unreadable.len() < limit {
            // Some of the listed requests may have been decided by now.
            let listed = self.backends().store.pending_approvals(from, LISTED_AT_ONCE).await?;
            if listed.is_empty() {
                break;
            }
            from += listed.len();
            let ids: Vec<_> = listed.into_iter().map(|(id, _)| id).collect();
            let found = self.backends().store.approvals(&ids).await?;
            for (id, found) in ids.into_iter().zip(found) {
                match found {
                    Lookup::Found(record) if matches!(record.status, ApprovalStatus::Open(_)) => {
                        open.requests.push(*record);
                    }
                    Lookup::Unreadable(ApprovalStatus::Open(_), error) => {
                        open.unreadable.push((id, error.to_string()));
                    }
                    _ => {}
                }
            }
        }
        open.unreadable.truncate(limit);
        open.requests.truncate(limit - open.unreadable.len());
        Ok(open)
    }

    /// Sends a decision. The returned result is authoritative: one decision decides the request, and later
    /// ones get [`DecideResult::AlreadyDecided`]. A task that waits for the request is resumed at once; if
    /// the resume message cannot be sent, a worker sends it within a few seconds.
    ///
    /// After an error the same decision may be sent again; it counts once.
    ///
    /// # Errors
    /// If the decision is invalid, or its edited arguments violate the request's schema
    /// ([`Error::is_schema_violation`]): then nothing was sent. If the store does not answer: then it is unknown
    /// whether the decision was stored.
    pub async fn decide(&self, decision: &Decision) -> Result<DecideResult, Error> {
        if let Some(fault) = decision.fault() {
            return Err(Kind::Decision(fault).into());
        }
        let edited_digest = match &decision.edited {
            Some(args) => self.check_edited(decision, args).await?,
            None => None,
        };
        let decision = Decision { edited_digest, ..decision.clone() };
        let (result, resume) = self.backends().store.decide(&decision).await?;
        failpoints::point("decided");
        if let Some(resume) = resume
            && let Err(error) = self.resume(&resume).await
        {
            warn!(task.id = %resume.task, "cannot send the resume message; a worker will send it: {error}");
        }
        Ok(result)
    }

    /// Returns the digest of the action with the edited arguments. If the request is gone or has changed, the
    /// store's result reports it.
    async fn check_edited(
        &self,
        decision: &Decision,
        args: &Value,
    ) -> Result<Option<Digest>, Error> {
        let Some(ApprovalRecord { request, .. }) = self.look_up(&decision.approval).await? else {
            return Ok(None);
        };
        if request.digest() != decision.digest {
            return Ok(None);
        }
        let violations = request.schema_violations(args);
        let digest = request.action.digest_with(args);
        if violations.is_empty() {
            Ok(Some(digest))
        } else {
            Err(Kind::SchemaViolation(violations).into())
        }
    }

    async fn resume(&self, resume: &Resume) -> Result<(), Error> {
        let timeout = self.config().publish_timeout.min(RESUME_DEADLINE);
        self.publish_resume(resume, timeout).await?;
        failpoints::point("resume sent");
        self.backends().store.resume_sent(resume).await
    }

    /// Publishes the resume message of a decision, to the workers of its task's queue.
    pub(crate) async fn publish_resume(
        &self,
        resume: &Resume,
        timeout: Duration,
    ) -> Result<(), Error> {
        let request = PublishRequest {
            message: SuspendHeader::resume(&resume.task, resume.number),
            queue: Queue::configured(&resume.queue, self.config()).resume(),
            delay: None,
            timeout,
        };
        self.backends().broker.publish(request).await.map(drop)
    }

    /// Sets the deadline of a request to this long from now. Its approvers may do this, and the names in
    /// `approvals.operators`. A deadline is never moved earlier.
    ///
    /// # Errors
    /// If the name is empty or malformed, the time is over 366 days, or the store does not answer.
    pub async fn extend_approval(
        &self,
        id: &ApprovalId,
        by: &str,
        time: Duration,
    ) -> Result<DecideResult, Error> {
        if let Some(fault) = name_fault(by) {
            return Err(Kind::Decision(fault).into());
        }
        if time > LONGEST_EXTENSION {
            let fault = "a request is extended by at most 366 days at a time".to_owned();
            return Err(Kind::Decision(fault).into());
        }
        let is_operator = self.config().operators.iter().any(|name| name == by);
        self.backends().store.extend_approval(id, by, is_operator, time).await
    }

    /// Makes a request that no task waits for, from any service. It is stored when this returns.
    ///
    /// ```no_run
    /// # async fn example(client: countersign::Client) -> Result<(), countersign::Error> {
    /// use countersign::approval::{ApprovalRequest, Risk};
    /// let request = ApprovalRequest { risk: Risk::High, ..ApprovalRequest::new("Deploy version 7?") };
    /// let handle = client.request_approval(request).await?;
    /// let resolution = handle.wait(std::time::Duration::from_secs(600)).await?;
    /// println!("{}", resolution.approved);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// If the request is invalid, or the store does not answer.
    pub async fn request_approval(
        &self,
        request: ApprovalRequest,
    ) -> Result<ApprovalHandle, Error> {
        if let Some(fault) = request.fault() {
            return Err(Kind::Decision(fault).into());
        }
        let id = request.id.clone();
        self.backends().store.request_approval(request).await?;
        Ok(ApprovalHandle { client: self.clone(), id })
    }

    /// Returns a handle to an existing request, to wait for it again.
    #[must_use]
    pub fn requested_approval(&self, id: &ApprovalId) -> ApprovalHandle {
        ApprovalHandle { client: self.clone(), id: id.clone() }
    }
}

impl ApprovalHandle {
    /// Returns the approval's id.
    #[must_use]
    pub fn id(&self) -> &ApprovalId {
        &self.id
    }

    /// Waits for the outcome; after `timeout` without a decision, [`Resolution::status`] is `timeout`. A
    /// timeout does not change the request: `wait` may be called again.
    ///
    /// # Errors
    /// If there is no such request, or the store does not answer.
    pub async fn wait(&self, timeout: Duration) -> Result<Resolution, Error> {
        let until = Instant::now() + timeout;
        // Subscribe before the first read, so that no decision is missed.
        let mut decided = self.client.backends().store.watch_decisions(vec![self.id.clone()]);
        loop {
            let record = self.client.approval(&self.id).await?;
            let left = match record.status {
                ApprovalStatus::Open(deadline) => {
                    deadline.duration_since(record.read_at).unsigned_abs()
                        + Duration::from_millis(1)
                }
                _ => return Ok(resolution(record)),
            };
            let next = async {
                tokio::select! {
                    () = decided.changed() => {}
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

fn resolution(record: ApprovalRecord) -> Resolution {
    let ApprovalRecord { request, status, decision, .. } = record;
    let expired = matches!(status, ApprovalStatus::Expired(_));
    let approved = status == ApprovalStatus::Decided(DecisionKind::Approve)
        || (expired && request.on_timeout == OnTimeout::Approve);
    let (by, reason, edited) = match decision {
        Some(Decision { by, reason, edited, .. }) => (Some(by), reason, edited),
        None => (None, None, None),
    };
    let args = approved.then(|| edited.unwrap_or(request.action.args));
    Resolution { status: status.as_str(), approved, by, reason, args }
}
