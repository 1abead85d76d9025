//! Approval requests and decisions, by the rules of `lifecycle/decision_rules.rs`.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::broadcast;

use super::fault::{Fault, TxResult};
use super::notifications::Event;
use super::requests::{RequestState, StoredRequest};
use super::store::EmbeddedStore;
use super::txn::Txn;
use super::{audit, outbox, requests, suspension_records};
use crate::approval::{
    ApprovalId, ApprovalRequest, ApprovalStatus, AuditKind, DecideResult, Decision, DecisionKind,
    timestamp,
};
use crate::backend::approvals::{DECISION_RETENTION, TIDY_LIMIT, stored_request, unreadable};
use crate::backend::milliseconds::milliseconds;
use crate::backend::{ApprovalRecord, Approvals, Lookup, Resume};
use crate::error::Error;
use crate::keyed_notify::KeyedWatch;
use crate::lifecycle::decision_rules::{self, Extension, Vote};
use crate::lifecycle::warning;
use crate::task::TaskId;

/// The name of the approval service in stored audit entries, as in `redis/warn.lua`.
const STORED_NAME: &str = "clerk";

impl Approvals for EmbeddedStore {
    fn request_approval(&self, request: ApprovalRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.db.write(move |txn| {
            if requests::find(txn, &request.id)?.request.is_some() {
                return Ok(());
            }
            StoredRequest::new(&request, None, txn.now).store(txn, &request.id)?;
            outbox::tidy(txn, TIDY_LIMIT).map(drop)
        }))
    }

    fn approvals(&self, ids: &[ApprovalId]) -> BoxFuture<'_, Result<Vec<Lookup>, Error>> {
        let ids = ids.to_vec();
        Box::pin(self.db.read(move |txn| ids.iter().map(|id| lookup(txn, id)).collect()))
    }

    fn pending_approvals(
        &self,
        from: usize,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ApprovalId, i64)>, Error>> {
        Box::pin(self.db.read(move |txn| requests::listed(txn, from, limit)))
    }

    fn decide(
        &self,
        decision: &Decision,
    ) -> BoxFuture<'_, Result<(DecideResult, Option<Resume>), Error>> {
        let decision = decision.clone();
        Box::pin(self.db.write(move |txn| decide(txn, &decision)))
    }

    fn extend_approval(
        &self,
        id: &ApprovalId,
        by: &str,
        is_operator: bool,
        time: Duration,
    ) -> BoxFuture<'_, Result<DecideResult, Error>> {
        let (id, by) = (id.clone(), by.to_owned());
        Box::pin(self.db.write(move |txn| extend(txn, &id, (&by, is_operator), time)))
    }

    fn record_warning(&self, id: &ApprovalId, percent: u8) -> BoxFuture<'_, Result<bool, Error>> {
        let id = id.clone();
        Box::pin(self.db.write(move |txn| {
            let RequestState { request: Some(StoredRequest { terms, task, .. }), mut stored } =
                requests::find(txn, &id)?
            else {
                return Ok(false);
            };
            let ApprovalStatus::Open(deadline) =
                decision_rules::status(&terms, &stored.record, txn.now)
            else {
                return Ok(false);
            };
            let deadline = deadline.as_millisecond();
            stored.start_record(&terms);
            if !warning::is_new(terms.requested_at, deadline, stored.warned, percent, txn.now) {
                return Ok(false);
            }
            stored.warned = Some(percent);
            stored.store(txn, &id, retained_until(deadline, txn.now))?;
            let task = task.unwrap_or_default();
            let (text, deadline) = (percent.to_string(), deadline.to_string());
            let what = [("what", "warn"), ("approval", id.as_str()), ("task", &task)];
            let how = [("by", STORED_NAME), ("percent", &text), ("deadline", &deadline)];
            audit::add(txn, AuditKind::Note, &[what, how].concat())?;
            Ok(true)
        }))
    }

    fn watch_decisions(&self, ids: Vec<ApprovalId>) -> KeyedWatch<ApprovalId> {
        self.db.shared().notifications.decided.watch(ids)
    }

    fn new_requests(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        self.db.shared().notifications.new_requests.subscribe()
    }
}

fn lookup(txn: &Txn<'_>, id: &ApprovalId) -> TxResult<Lookup> {
    let state = match requests::find(txn, id) {
        // A column that cannot be decoded must not hide the other requests.
        Err(Fault::Sql(error)) if requests::is_malformed(&error) => {
            let status = ApprovalStatus::Open(Timestamp::UNIX_EPOCH);
            return Ok(Lookup::Unreadable(status, unreadable(&error.to_string())));
        }
        found => found?,
    };
    let RequestState { request: Some(StoredRequest { terms, document, .. }), stored } = state
    else {
        return Ok(Lookup::Nothing);
    };
    let status = decision_rules::status(&terms, &stored.record, txn.now);
    let request = match stored_request(&document) {
        Ok(request) => request,
        Err(error) => return Ok(Lookup::Unreadable(status, error)),
    };
    let votes = stored.record.of(&terms).map(|record| record.votes.len());
    let decision = stored.document.filter(|_| votes.is_some());
    Ok(Lookup::Found(Box::new(ApprovalRecord {
        request,
        nonce: terms.nonce.clone(),
        status,
        requested_at: timestamp(terms.requested_at),
        at: timestamp(decision_rules::status_since(&terms, &stored.record, txn.now)),
        read_at: timestamp(txn.now),
        decision: decision.and_then(|json| serde_json::from_str(&json).ok()),
        votes: votes.map_or(0, |votes| u32::try_from(votes).unwrap_or(u32::MAX)),
        warned: stored.warned.filter(|_| votes.is_some()),
    })))
}

/// Takes a decision. In the same transaction: the audit entry, the outbox entry that resumes the task,
/// and the notification.
fn decide(txn: &mut Txn<'_>, decision: &Decision) -> TxResult<(DecideResult, Option<Resume>)> {
    let Decision { id: name, approval, digest, by, choice, edited, .. } = decision;
    let RequestState { request: Some(StoredRequest { terms, task, .. }), mut stored } =
        requests::find(txn, approval)?
    else {
        return Ok((DecideResult::Unknown, None));
    };
    let had_record = stored.start_record(&terms);
    let deadline = decision_rules::deadline(&terms, &stored.record);
    let votes = stored.record.votes.len();
    let (choice, edited) = (*choice, edited.is_some());
    let nonce = decision.nonce.as_deref();
    let in_quorum = decision.in_quorum;
    let vote = Vote { decision: name, choice, by, digest, nonce, in_quorum, edited };
    let result = decision_rules::decide(Some(&terms), &mut stored.record, &vote, txn.now);
    let is_applied = result == DecideResult::Applied;
    if !is_applied && !matches!(result, DecideResult::Counted { .. }) {
        if had_record {
            requests::delete_votes(txn, approval)?;
        }
        let task = task.as_deref().unwrap_or_default();
        audit::refuse(txn, choice.as_str(), approval, (task, by), &result)?;
        return Ok((result, None));
    }
    let document = serde_json::to_string(decision).unwrap_or_default();
    if choice != DecisionKind::Approve || stored.record.votes.len() > votes {
        let task = task.as_deref().unwrap_or_default();
        let what = [("what", choice.as_str()), ("approval", approval.as_str()), ("task", task)];
        let how = [("by", by.as_str()), ("digest", digest.as_str()), ("decision", &document)];
        let edited =
            decision.edited_digest.as_ref().map(|digest| ("edited_digest", digest.as_str()));
        let fields: Vec<_> = what.into_iter().chain(how).chain(edited).collect();
        audit::add(txn, AuditKind::Decision, &fields)?;
    }
    stored.document = is_applied.then_some(document);
    stored.store(txn, approval, retained_until(deadline, txn.now))?;
    if !is_applied {
        return Ok((result, None));
    }
    txn.notify(Event::Decided(Some(approval.clone())));
    let Some(task) = task.map(TaskId::from) else {
        // No suspended task owns this request, so the end of a task does not remove it.
        requests::expire(txn, approval, false)?;
        return Ok((result, None));
    };
    let resume = match suspension_records::waiting(txn, &task, approval)? {
        Some((number, queue)) => outbox::add(txn, &task, number, &queue, txn.now)?,
        None => None,
    };
    Ok((result, resume))
}

/// Returns when a record of votes expires: 30 days after the deadline of its request or `now`, the later one.
fn retained_until(deadline: i64, now: i64) -> i64 {
    deadline.max(now).saturating_add(milliseconds(DECISION_RETENTION))
}

/// Extends a request.
fn extend(
    txn: &Txn<'_>,
    id: &ApprovalId,
    (by, is_operator): (&str, bool),
    time: Duration,
) -> TxResult<DecideResult> {
    let RequestState { request: Some(StoredRequest { terms, task, .. }), mut stored } =
        requests::find(txn, id)?
    else {
        return Ok(DecideResult::Unknown);
    };
    stored.start_record(&terms);
    let until = txn.now + milliseconds(time);
    let extension = Extension { by, is_operator, until };
    let result = decision_rules::extend(Some(&terms), &mut stored.record, extension, txn.now);
    let task = task.unwrap_or_default();
    if result != DecideResult::Applied {
        audit::refuse(txn, "extend", id, (&task, by), &result)?;
        return Ok(result);
    }
    // Approvers are warned again before the new deadline.
    stored.warned = None;
    stored.store(txn, id, retained_until(until, txn.now))?;
    let until = until.to_string();
    let what = [("what", "extend"), ("approval", id.as_str()), ("task", &task)];
    let fields = [&what[..], &[("by", by), ("until", &until)]].concat();
    audit::add(txn, AuditKind::Decision, &fields)?;
    Ok(result)
}
