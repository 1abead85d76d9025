//! Storage of approval requests and their votes: two rows under one id. An expired row counts as
//! deleted, whether or not it was deleted yet.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::types::Type;
use rusqlite::{Row, params};
use serde::de::DeserializeOwned;

use super::fault::TxResult;
use super::notifications::Event;
use super::txn::Txn;
use crate::approval::{
    ApprovalId, ApprovalOutcome, ApprovalRequest, ApprovalStatus, DecisionKind, Digest, timestamp,
};
use crate::backend::approvals::{REQUEST_RETENTION, nonce};
use crate::backend::milliseconds::milliseconds;
use crate::lifecycle::decision_rules::{self, DecisionRecord, RecordedDecision, RequestTerms};
use crate::lifecycle::suspension::Due;
use crate::task::TaskId;

const FIND: &str = "\
    SELECT q.digest AS digest, q.deadline AS deadline, q.quorum AS quorum, \
      q.requester AS requester, q.self_approval AS self_approval, q.approvers AS approvers, \
      q.editable AS editable, q.open AS open, q.task AS task, q.at AS requested_at, \
      q.document AS request, q.nonce AS nonce, \
      b.digest AS record_digest, b.nonce AS record_nonce, b.votes AS votes, b.decision AS decision_id, b.choice AS choice, \
      b.by AS by, b.at AS decided_at, b.extended AS extended, b.warned AS warned, \
      b.document AS decision \
    FROM (SELECT ?1 AS id) AS k \
      LEFT JOIN questions AS q ON q.id = k.id AND (q.expires IS NULL OR q.expires > ?2) \
      LEFT JOIN ballots AS b ON b.id = k.id AND (b.expires IS NULL OR b.expires > ?2)";

/// The stored state of one approval id.
#[derive(Debug, Default)]
pub(super) struct RequestState {
    /// `None` when there is no request.
    pub(super) request: Option<StoredRequest>,
    pub(super) stored: StoredVotes,
}

/// A stored approval request.
#[derive(Debug)]
pub(super) struct StoredRequest {
    pub(super) terms: RequestTerms,
    /// The request, as JSON.
    pub(super) document: String,
    pub(super) task: Option<String>,
}

/// The stored votes and the decision of a request.
#[derive(Debug, Default)]
pub(super) struct StoredVotes {
    pub(super) record: DecisionRecord,
    /// The decision that counts, as JSON.
    pub(super) document: Option<String>,
    /// The percentage of its time that had passed when approvers were warned.
    pub(super) warned: Option<u8>,
}

impl RequestState {
    pub(super) fn status(&self, now: i64) -> Option<ApprovalStatus> {
        let request = self.request.as_ref()?;
        Some(decision_rules::status(&request.terms, &self.stored.record, now))
    }

    pub(super) fn is_open(&self, now: i64) -> bool {
        matches!(self.status(now), Some(ApprovalStatus::Open(_)))
    }

    /// Returns the outcome of the request, unless it is open or does not exist.
    fn outcome(&self, id: &ApprovalId, now: i64) -> Option<ApprovalOutcome> {
        let status = self.status(now)?;
        let terms = &self.request.as_ref()?.terms;
        if matches!(status, ApprovalStatus::Open(_)) {
            return None;
        }
        let is_decided = decision_rules::decided(terms, &self.stored.record).is_some();
        let document = self.stored.document.as_deref().filter(|_| is_decided);
        Some(ApprovalOutcome {
            approval: id.clone(),
            digest: terms.digest.clone(),
            status,
            at: timestamp(decision_rules::status_since(terms, &self.stored.record, now)),
            decision: document.and_then(|json| serde_json::from_str(json).ok()),
        })
    }

    /// Stores the request of a task. Returns false if the existing request stays unchanged.
    pub(super) fn add(
        &mut self,
        approval: &ApprovalRequest,
        task: &TaskId,
        awaits: bool,
        now: i64,
    ) -> bool {
        if let Some(StoredRequest { terms, .. }) = &self.request
            && approval.has_digest(&terms.digest)
            && decision_rules::is_unchanged(terms, &self.stored.record, &terms.digest, awaits, now)
        {
            return false;
        }
        self.request = Some(StoredRequest::new(approval, Some(task), now));
        true
    }

    /// Withdraws the request. Returns false if it is not open.
    pub(super) fn withdraw(&mut self, now: i64) -> bool {
        let is_open = self.is_open(now);
        if let Some(request) = self.request.as_mut().filter(|_| is_open) {
            request.terms.withdrawn = true;
        }
        is_open
    }
}

impl StoredRequest {
    pub(super) fn new(approval: &ApprovalRequest, task: Option<&TaskId>, now: i64) -> Self {
        let time = i64::try_from(approval.expires_in.as_millis()).unwrap_or(i64::MAX);
        let terms = RequestTerms {
            digest: approval.digest(),
            nonce: Some(nonce()),
            requested_at: now,
            deadline: now.saturating_add(time),
            quorum: approval.quorum,
            requester: approval.requester.clone(),
            self_approval: approval.self_approval,
            approvers: approval.approvers.clone(),
            editable: approval.editable,
            withdrawn: false,
        };
        let document = serde_json::to_string(approval).unwrap_or_default();
        Self { terms, document, task: task.map(TaskId::to_string) }
    }

    /// Stores the request in the list of open ones, and notifies.
    pub(super) fn store(&self, txn: &mut Txn<'_>, id: &ApprovalId) -> TxResult<()> {
        let RequestTerms { digest, nonce, requested_at, deadline, quorum, requester, .. } =
            &self.terms;
        let RequestTerms { self_approval, approvers, editable, withdrawn, .. } = &self.terms;
        let approvers = serde_json::json!(approvers).to_string();
        let put = "INSERT OR REPLACE INTO questions (id, digest, deadline, quorum, requester, \
                   self_approval, approvers, editable, open, task, at, listed, document, nonce) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?3, ?12, ?13)";
        txn.execute(
            put,
            params![
                id.as_str(),
                digest.as_str(),
                deadline,
                quorum,
                requester,
                self_approval,
                approvers,
                editable,
                !withdrawn,
                self.task,
                requested_at,
                self.document,
                nonce
            ],
        )?;
        txn.notify(Event::NewRequest(Some(id.clone())));
        Ok(())
    }
}

impl StoredVotes {
    /// Discards the votes on another request under the same id. Returns whether there were any.
    pub(super) fn start_record(&mut self, terms: &RequestTerms) -> bool {
        if self.record.of(terms).is_some() {
            return false;
        }
        let had_record = self.record.digest.is_some();
        *self = Self { record: DecisionRecord::empty(terms), ..Self::default() };
        had_record
    }

    /// Stores the votes until `expires`.
    pub(super) fn store(&self, txn: &Txn<'_>, id: &ApprovalId, expires: i64) -> TxResult<()> {
        let DecisionRecord { digest, nonce, votes, decided, extended } = &self.record;
        let votes = serde_json::json!(votes).to_string();
        let decided = decided.as_ref();
        let put = "INSERT OR REPLACE INTO ballots (id, digest, votes, decision, choice, by, at, \
                   extended, warned, expires, document, nonce) \
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        txn.execute(
            put,
            params![
                id.as_str(),
                digest.as_ref().map(Digest::as_str),
                votes,
                decided.map(|it| it.decision.as_str()),
                decided.map(|it| it.choice.as_str()),
                decided.map(|it| it.by.as_str()),
                decided.map(|it| it.at),
                extended,
                self.warned,
                expires,
                self.document,
                nonce
            ],
        )?;
        Ok(())
    }
}

/// Deletes the votes of an id: they belong to another request.
pub(super) fn delete_votes(txn: &Txn<'_>, id: &ApprovalId) -> TxResult<()> {
    txn.execute("DELETE FROM ballots WHERE id = ?", [id.as_str()])?;
    Ok(())
}

/// Returns the stored state of this id.
pub(super) fn find(txn: &Txn<'_>, id: &ApprovalId) -> TxResult<RequestState> {
    let read = |row: &Row<'_>| {
        Ok(RequestState { request: stored_request(row)?, stored: stored_votes(row)? })
    };
    Ok(txn.first(FIND, params![id.as_str(), txn.now], read)?.unwrap_or_default())
}

/// Returns whether the error is about the content of a record, and not about the database.
pub(super) fn is_malformed(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    matches!(
        error,
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..)
    )
}

fn stored_request(row: &Row<'_>) -> rusqlite::Result<Option<StoredRequest>> {
    let Some(digest) = row.get::<_, Option<String>>("digest")? else { return Ok(None) };
    let terms = RequestTerms {
        digest: digest.into(),
        nonce: row.get("nonce")?,
        requested_at: row.get("requested_at")?,
        deadline: row.get("deadline")?,
        quorum: row.get("quorum")?,
        requester: row.get("requester")?,
        self_approval: row.get("self_approval")?,
        approvers: json(row, "approvers")?,
        editable: row.get("editable")?,
        withdrawn: !row.get::<_, bool>("open")?,
    };
    let (document, task) = (row.get("request")?, row.get("task")?);
    Ok(Some(StoredRequest { terms, document, task }))
}

fn stored_votes(row: &Row<'_>) -> rusqlite::Result<StoredVotes> {
    let Some(digest) = row.get::<_, Option<String>>("record_digest")? else {
        return Ok(StoredVotes::default());
    };
    let decided = match row.get::<_, Option<String>>("decision_id")? {
        Some(decision) => {
            // An unknown decision of a newer version must not count as an approval.
            let choice = DecisionKind::named(&row.get::<_, String>("choice")?)
                .unwrap_or(DecisionKind::Reject);
            Some(RecordedDecision {
                decision,
                choice,
                by: row.get("by")?,
                at: row.get("decided_at")?,
            })
        }
        None => None,
    };
    let (votes, extended) = (json(row, "votes")?, row.get("extended")?);
    let nonce = row.get("record_nonce")?;
    let record = DecisionRecord { digest: Some(digest.into()), nonce, votes, decided, extended };
    Ok(StoredVotes { record, document: row.get("decision")?, warned: row.get("warned")? })
}

fn json<T: DeserializeOwned>(row: &Row<'_>, name: &str) -> rusqlite::Result<T> {
    let text: String = row.get(name)?;
    serde_json::from_str(&text).map_err(|error| {
        let column = row.as_ref().column_index(name).unwrap_or_default();
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}

/// Withdraws a request: removes it from the list of open ones.
pub(super) fn withdraw(txn: &Txn<'_>, id: &ApprovalId) -> TxResult<()> {
    txn.execute("UPDATE questions SET open = 0, listed = NULL WHERE id = ?", [id.as_str()])?;
    Ok(())
}

/// Lets a request expire: its task has ended, or it has no task and is decided. It can be read for a week.
pub(super) fn expire(txn: &Txn<'_>, id: &ApprovalId, is_withdrawn: bool) -> TxResult<()> {
    let expire_request = "UPDATE questions SET open = open AND NOT ?2, listed = NULL, expires = ?3 \
                  WHERE id = ?1";
    let expires = txn.now + milliseconds(REQUEST_RETENTION);
    txn.execute(expire_request, params![id.as_str(), is_withdrawn, expires])?;
    Ok(())
}

/// Removes a request from the list of open ones.
pub(super) fn unlist(txn: &Txn<'_>, id: &ApprovalId) -> TxResult<()> {
    let unlist_request = "UPDATE questions SET listed = NULL WHERE id = ? AND listed IS NOT NULL";
    txn.execute(unlist_request, [id.as_str()])?;
    Ok(())
}

/// Returns the requests that are listed as open, by the deadlines under which they are listed.
pub(super) fn listed(txn: &Txn<'_>, from: usize, limit: usize) -> TxResult<Vec<(ApprovalId, i64)>> {
    let list = "SELECT id, listed FROM questions WHERE listed IS NOT NULL \
                ORDER BY listed, id LIMIT ? OFFSET ?";
    let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    // A malformed row must not hide the others.
    let read = |row: &Row<'_>| {
        let id = row.get_ref(0)?.as_bytes_or_null().ok().flatten().unwrap_or_default();
        Ok((ApprovalId::listed(id), row.get(1).unwrap_or(0)))
    };
    txn.all(list, [number(limit), number(from)], read)
}

/// The requests that one transaction uses: each is read once.
#[derive(Debug, Default)]
pub(super) struct RequestCache(HashMap<ApprovalId, RequestState>);

impl RequestCache {
    pub(super) fn state(&mut self, txn: &Txn<'_>, id: &ApprovalId) -> TxResult<&mut RequestState> {
        Ok(match self.0.entry(id.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(find(txn, id)?),
        })
    }

    /// Returns when the first of these requests, or the alarm, is due.
    pub(super) fn due(
        &mut self,
        txn: &Txn<'_>,
        ids: &[ApprovalId],
        alarm: Option<i64>,
    ) -> TxResult<Due> {
        let mut statuses = Vec::with_capacity(ids.len());
        for id in ids {
            statuses.push(self.state(txn, id)?.status(txn.now));
        }
        Ok(Due::of(statuses, alarm, txn.now))
    }

    /// Returns the outcomes of those requests that are not open.
    pub(super) fn outcomes(
        &mut self,
        txn: &Txn<'_>,
        ids: &[ApprovalId],
    ) -> TxResult<Vec<ApprovalOutcome>> {
        let mut outcomes = Vec::new();
        for id in ids {
            outcomes.extend(self.state(txn, id)?.outcome(id, txn.now));
        }
        Ok(outcomes)
    }
}
