//! The rules of decisions and votes. `backend/redis/decide.lua` and `status.lua` implement the same rules
//! inside the store; `backend/embedded` calls these functions.

use crate::approval::{ApprovalStatus, DecideResult, DecisionKind, Digest, is_policy, timestamp};

/// The rules of one request: the people who may decide, and the deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestTerms {
    /// The digest of the request.
    pub digest: Digest,
    /// The nonce of the request: a request that is made anew has another nonce. A request made by version 0.1
    /// has none.
    pub nonce: Option<String>,
    /// When the request was made.
    pub requested_at: i64,
    /// The deadline, unless it was extended.
    pub deadline: i64,
    /// The number of approvals needed.
    pub quorum: u32,
    /// The name of the requester.
    pub requester: Option<String>,
    /// Whether the requester may approve.
    pub self_approval: bool,
    /// The people who may decide; empty means everyone.
    pub approvers: Vec<String>,
    /// Whether the arguments may be edited.
    pub editable: bool,
    /// The requesting task has withdrawn it.
    pub withdrawn: bool,
}

/// The votes, decision and extension stored for one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecisionRecord {
    /// The digest of the request that the votes are about.
    pub digest: Option<Digest>,
    /// The nonce of the request that the votes are about.
    pub nonce: Option<String>,
    /// The approvers, each with the id of their decision.
    pub votes: Vec<(String, String)>,
    /// The decision that decided the request.
    pub decided: Option<RecordedDecision>,
    /// The extended deadline. It replaces the request's own deadline, unless the request was made anew after
    /// that time.
    pub extended: Option<i64>,
}

/// The decision that decided the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedDecision {
    /// The decision's id.
    pub decision: String,
    /// The kind of the decision.
    pub choice: DecisionKind,
    /// The name of the person who decided.
    pub by: String,
    /// When the decision was stored.
    pub at: i64,
}

/// The parts of one decision that these rules need.
#[derive(Clone, Debug)]
pub struct Vote<'a> {
    /// The decision's id.
    pub decision: &'a str,
    /// The kind of the decision.
    pub choice: DecisionKind,
    /// The name of the person who decides.
    pub by: &'a str,
    /// The digest of the request that the approver saw.
    pub digest: &'a Digest,
    /// The nonce of the request that the approver saw, if the decision carries one.
    pub nonce: Option<&'a str>,
    /// A policy that counts towards a quorum of people; see [`Decision::in_quorum`].
    ///
    /// [`Decision::in_quorum`]: crate::approval::Decision::in_quorum
    pub in_quorum: bool,
    /// Whether the arguments were edited.
    pub edited: bool,
}

impl DecisionRecord {
    /// Creates an empty record for this request.
    #[must_use]
    pub fn empty(terms: &RequestTerms) -> Self {
        let (digest, nonce) = (Some(terms.digest.clone()), terms.nonce.clone());
        Self { digest, nonce, ..Self::default() }
    }

    /// Returns this record if it belongs to this request, and not to an earlier one with the same id.
    ///
    /// A decider of version 0.1 writes no nonce. Its decision counts if it was made after the request; its
    /// votes on a request with a nonce do not count, because their time is unknown.
    #[must_use]
    pub fn of(&self, terms: &RequestTerms) -> Option<&Self> {
        let is_same = match (&self.nonce, &terms.nonce) {
            (None, Some(_)) => self.decided.as_ref().is_some_and(|it| it.at >= terms.requested_at),
            (nonce, wanted) => nonce == wanted,
        };
        Some(self).filter(|record| is_same && record.digest.as_ref() == Some(&terms.digest))
    }

    /// Replaces a record of another request under the same id by an empty one.
    fn about(&mut self, terms: &RequestTerms) -> &mut Self {
        if self.of(terms).is_none() {
            *self = Self::empty(terms);
        }
        self
    }

    fn has(&self, vote: &Vote<'_>) -> bool {
        let decided = self.decided.as_ref();
        decided.is_some_and(|decided| decided.decision == vote.decision)
            || self.votes.iter().any(|(by, id)| by == vote.by && id == vote.decision)
    }
}

/// Returns the status of a request at `now`. After the deadline the status is expired, without any write.
#[must_use]
pub fn status(terms: &RequestTerms, record: &DecisionRecord, now: i64) -> ApprovalStatus {
    if let Some(decided) = decided(terms, record) {
        return ApprovalStatus::Decided(decided.choice);
    }
    if terms.withdrawn {
        return ApprovalStatus::Decided(DecisionKind::Withdraw);
    }
    let deadline = deadline(terms, record);
    let is_past = now > deadline;
    let deadline = timestamp(deadline);
    if is_past { ApprovalStatus::Expired(deadline) } else { ApprovalStatus::Open(deadline) }
}

/// Returns the time until which a request can be decided.
#[must_use]
pub fn deadline(terms: &RequestTerms, record: &DecisionRecord) -> i64 {
    let extended = record.of(terms).and_then(|record| record.extended);
    extended.filter(|until| *until > terms.requested_at).unwrap_or(terms.deadline)
}

/// Returns the decision that counts; `None` if the deadline has passed or the requesting task has withdrawn
/// the request.
#[must_use]
pub fn decided<'b>(
    terms: &RequestTerms,
    record: &'b DecisionRecord,
) -> Option<&'b RecordedDecision> {
    record.of(terms).and_then(|record| record.decided.as_ref())
}

/// Returns when a request got its current status; for an open or expired request, its deadline. The time of a
/// withdrawal by the task is not stored.
#[must_use]
pub fn status_since(terms: &RequestTerms, record: &DecisionRecord, now: i64) -> i64 {
    match (status(terms, record, now), decided(terms, record)) {
        (ApprovalStatus::Open(_) | ApprovalStatus::Expired(_), _) => deadline(terms, record),
        (ApprovalStatus::Decided(_), decided) => decided.map_or(now, |decided| decided.at),
    }
}

/// Returns whether a request keeps its deadline and votes when its task makes the same request again.
/// `awaits`: the task's suspension record lists the request. After the task has ended or its record was lost,
/// no record lists it, so that a decision counts for one execution of a task only. A request that the
/// requesting task has withdrawn is made anew, too.
#[must_use]
pub fn is_unchanged(
    terms: &RequestTerms,
    record: &DecisionRecord,
    digest: &Digest,
    awaits: bool,
    now: i64,
) -> bool {
    let is_withdrawn = || {
        terms.withdrawn
            && status(terms, record, now) == ApprovalStatus::Decided(DecisionKind::Withdraw)
    };
    awaits && terms.digest == *digest && !is_withdrawn()
}

/// Applies a decision. The first sufficient one decides the request; later ones get `AlreadyDecided`.
pub fn decide(
    terms: Option<&RequestTerms>,
    record: &mut DecisionRecord,
    vote: &Vote<'_>,
    now: i64,
) -> DecideResult {
    let Some(terms) = terms else { return DecideResult::Unknown };
    let status = status(terms, record, now);
    let record = record.about(terms);
    if record.has(vote) {
        return DecideResult::Replayed;
    }
    match (status, &record.decided) {
        (ApprovalStatus::Decided(DecisionKind::Withdraw), _) => return DecideResult::Withdrawn,
        (ApprovalStatus::Decided(choice), Some(RecordedDecision { by, at, .. })) => {
            return DecideResult::AlreadyDecided { by: by.clone(), at: timestamp(*at), choice };
        }
        (ApprovalStatus::Decided(_), None) => return DecideResult::Withdrawn,
        (ApprovalStatus::Expired(at), _) => return DecideResult::Expired { at },
        (ApprovalStatus::Open(_), _) => {}
    }
    let is_of_another = vote.nonce.is_some_and(|nonce| terms.nonce.as_deref() != Some(nonce));
    if *vote.digest != terms.digest || is_of_another {
        return DecideResult::DigestMismatch;
    }
    if !may(terms, vote) {
        return DecideResult::NotAllowed;
    }
    if vote.choice == DecisionKind::Approve {
        if !record.votes.iter().any(|(by, _)| is_same_voter(by, vote.by)) {
            record.votes.push((vote.by.to_owned(), vote.decision.to_owned()));
        }
        let votes = u32::try_from(record.votes.len()).unwrap_or(u32::MAX);
        if votes < terms.quorum {
            return DecideResult::Counted { votes, quorum: terms.quorum };
        }
    }
    record.decided = Some(RecordedDecision {
        decision: vote.decision.to_owned(),
        choice: vote.choice,
        by: vote.by.to_owned(),
        at: now,
    });
    DecideResult::Applied
}

/// Returns whether this person may make this decision. The requester may withdraw the request.
fn may(terms: &RequestTerms, vote: &Vote<'_>) -> bool {
    let is_editable = terms.editable && terms.quorum == 1;
    match vote.choice {
        DecisionKind::Withdraw if terms.requester.as_deref() == Some(vote.by) => true,
        DecisionKind::Approve => {
            let counts = terms.quorum <= 1 || vote.in_quorum || !is_policy(vote.by);
            counts && may_approve(terms, vote.by) && (!vote.edited || is_editable)
        }
        _ => is_named(terms, vote.by) && (!vote.edited || is_editable),
    }
}

/// All policies share one vote, so that a renamed policy cannot vote twice.
fn is_same_voter(one: &str, other: &str) -> bool {
    one == other || (is_policy(one) && is_policy(other))
}

fn is_named(terms: &RequestTerms, person: &str) -> bool {
    terms.approvers.is_empty() || terms.approvers.iter().any(|by| by == person)
}

/// Returns whether this person may approve: a requester may not, unless `self_approval` is set.
fn may_approve(terms: &RequestTerms, person: &str) -> bool {
    let is_own = terms.requester.as_deref() == Some(person) && !terms.self_approval;
    is_named(terms, person) && !is_own
}

/// An extension of a request's deadline.
#[derive(Clone, Copy, Debug)]
pub struct Extension<'a> {
    /// The name of the person who extends it.
    pub by: &'a str,
    /// Whether the configuration lists this person as an operator.
    pub is_operator: bool,
    /// The new deadline.
    pub until: i64,
}

/// Extends the deadline of a request, by one of its approvers or an operator. A deadline is never brought
/// forward, because a passed deadline may approve.
pub fn extend(
    terms: Option<&RequestTerms>,
    record: &mut DecisionRecord,
    extension: Extension<'_>,
    now: i64,
) -> DecideResult {
    let Some(terms) = terms else { return DecideResult::Unknown };
    let status = status(terms, record, now);
    let record = record.about(terms);
    match (status, &record.decided) {
        (ApprovalStatus::Open(deadline), _) => {
            let Extension { by, is_operator, until } = extension;
            if !is_operator && !may_approve(terms, by) {
                return DecideResult::NotAllowed;
            }
            if timestamp(until) < deadline {
                return DecideResult::Earlier { deadline };
            }
            record.extended = Some(until);
            DecideResult::Applied
        }
        (ApprovalStatus::Expired(at), _) => DecideResult::Expired { at },
        (ApprovalStatus::Decided(DecisionKind::Withdraw), _)
        | (ApprovalStatus::Decided(_), None) => DecideResult::Withdrawn,
        (ApprovalStatus::Decided(choice), Some(RecordedDecision { by, at, .. })) => {
            DecideResult::AlreadyDecided { by: by.clone(), at: timestamp(*at), choice }
        }
    }
}

#[cfg(test)]
mod tests;
