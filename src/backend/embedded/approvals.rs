//! Questions and decisions, by the rules of `lifecycle/vote.rs`.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use super::bells::Ring;
use super::parks::{Wish, milliseconds};
use super::questions::{Asking, Case};
use super::store::EmbeddedStore;
use super::txn::{Done, Fault, Txn};
use super::{audit, journal, outbox, parks, questions};
use crate::approval::{Answer, ApprovalId, Choice, Decision, Question, Standing};
use crate::backend::approvals::{DECISION_KEPT, SWEPT, TIDIED, stored_question, unreadable};
use crate::backend::{Approvals, Asked, Found, Parked, Parking, Resume, Taken};
use crate::error::Error;
use crate::lifecycle::vote::{self, Extension, Vote};
use crate::lifecycle::warning;
use crate::protocol::{TaskDigest, Ticket, TicketKind};
use crate::task::TaskId;

impl Approvals for EmbeddedStore {
    fn take_parked(
        &self,
        id: &TaskId,
        ticket: Ticket,
        digest: Option<&TaskDigest>,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Taken, Error>> {
        let (id, holder, kept) = (id.clone(), holder.to_owned(), self.retention.running());
        let digest = digest.cloned();
        Box::pin(self.db.write(move |txn| {
            if ticket.kind == TicketKind::Wake {
                // What a parked task has left outlives the park: a wake comes every hour.
                journal::keep(txn, &id, kept)?;
            }
            parks::take(txn, &id, Wish::Message(ticket, digest.as_ref()), &holder, lease)
        }))
    }

    fn begin_park(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        starts_anew: bool,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Taken, Error>> {
        let (id, digest, holder) = (id.clone(), digest.clone(), holder.to_owned());
        Box::pin(self.db.write(move |txn| {
            parks::take(txn, &id, Wish::FirstPark(&digest, starts_anew), &holder, lease)
        }))
    }

    fn park(&self, parking: Parking) -> BoxFuture<'_, Result<Parked, Error>> {
        Box::pin(self.db.write(move |txn| parks::park(txn, &parking)))
    }

    fn renew_claim(
        &self,
        id: &TaskId,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let (id, holder) = (id.clone(), holder.to_owned());
        Box::pin(self.db.write(move |txn| parks::renew(txn, &id, &holder, lease)))
    }

    fn release_claim(&self, id: &TaskId, holder: &str) -> BoxFuture<'_, Result<(), Error>> {
        let (id, holder) = (id.clone(), holder.to_owned());
        Box::pin(self.db.write(move |txn| parks::release(txn, &id, &holder)))
    }

    fn end_parked(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>> {
        let (id, digest) = (id.clone(), digest.cloned());
        Box::pin(self.db.write(move |txn| parks::end(txn, &id, digest.as_ref())))
    }

    fn ask(&self, question: Question) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.db.write(move |txn| {
            if questions::find(txn, &question.id)?.asking.is_some() {
                return Ok(());
            }
            Asking::new(&question, None, txn.now).store(txn, &question.id)?;
            questions::tidy(txn, TIDIED).map(drop)
        }))
    }

    fn asked(&self, ids: &[ApprovalId]) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        let ids = ids.to_vec();
        Box::pin(self.db.read(move |txn| ids.iter().map(|id| asked(txn, id)).collect()))
    }

    fn pending(
        &self,
        from: usize,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ApprovalId, i64)>, Error>> {
        Box::pin(self.db.read(move |txn| questions::listed(txn, from, limit)))
    }

    fn decide(
        &self,
        decision: &Decision,
    ) -> BoxFuture<'_, Result<(Answer, Option<Resume>), Error>> {
        let decision = decision.clone();
        Box::pin(self.db.write(move |txn| decide(txn, &decision)))
    }

    fn extend(
        &self,
        id: &ApprovalId,
        by: &str,
        is_operator: bool,
        time: Duration,
    ) -> BoxFuture<'_, Result<Answer, Error>> {
        let (id, by) = (id.clone(), by.to_owned());
        Box::pin(self.db.write(move |txn| extend(txn, &id, (&by, is_operator), time)))
    }

    fn warn(&self, id: &ApprovalId, percent: u8) -> BoxFuture<'_, Result<bool, Error>> {
        let id = id.clone();
        Box::pin(self.db.write(move |txn| warn(txn, &id, percent)))
    }

    fn resume_sent(&self, resume: &Resume) -> BoxFuture<'_, Result<(), Error>> {
        let resume = resume.clone();
        Box::pin(self.db.write(move |txn| outbox::clear(txn, &resume)))
    }

    fn overdue_resumes(&self) -> BoxFuture<'_, Result<Vec<Resume>, Error>> {
        Box::pin(self.db.write(|txn| {
            let mut resumes = outbox::overdue(txn)?;
            resumes.extend(questions::tidy(txn, SWEPT)?);
            Ok(resumes)
        }))
    }

    fn decisions(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        self.db.shared().bells.decided.subscribe()
    }

    fn questions(&self) -> broadcast::Receiver<Option<ApprovalId>> {
        self.db.shared().bells.asked.subscribe()
    }
}

fn asked(txn: &Txn<'_>, id: &ApprovalId) -> Done<Found> {
    let case = match questions::find(txn, id) {
        // A column that cannot be read hides none of the other questions.
        Err(Fault::Sql(error)) if questions::is_malformed(&error) => {
            return Ok(Found::Unreadable(Standing::Open(0), unreadable(&error.to_string())));
        }
        found => found?,
    };
    let Case { asking: Some(Asking { terms, document, .. }), said } = case else {
        return Ok(Found::Nothing);
    };
    let standing = vote::standing(&terms, &said.ballot, txn.now);
    let question = match stored_question(&document) {
        Ok(question) => question,
        Err(error) => return Ok(Found::Unreadable(standing, error)),
    };
    let votes = said.ballot.of(&terms).map(|ballot| ballot.votes.len());
    let decision = said.document.filter(|_| votes.is_some());
    Ok(Found::Asked(Box::new(Asked {
        question,
        nonce: terms.nonce.clone(),
        standing,
        asked_at: terms.asked_at,
        at: vote::since(&terms, &said.ballot, txn.now),
        read_at: txn.now,
        decision: decision.and_then(|json| serde_json::from_str(&json).ok()),
        votes: votes.map_or(0, |votes| u32::try_from(votes).unwrap_or(u32::MAX)),
        warned: said.warned.filter(|_| votes.is_some()),
    })))
}

/// Takes a decision. With it: the audit entry, the entry in the outbox by which the task is
/// resumed, and the bell.
fn decide(txn: &mut Txn<'_>, decision: &Decision) -> Done<(Answer, Option<Resume>)> {
    let Decision { id: name, approval, digest, by, choice, edited, .. } = decision;
    let Case { asking: Some(Asking { terms, task, .. }), mut said } =
        questions::find(txn, approval)?
    else {
        return Ok((Answer::Unknown, None));
    };
    let was_of_another = said.turn_to(&terms);
    let deadline = vote::deadline(&terms, &said.ballot);
    let votes = said.ballot.votes.len();
    let (choice, edited) = (*choice, edited.is_some());
    let nonce = decision.nonce.as_deref();
    let in_quorum = decision.in_quorum;
    let vote = Vote { decision: name, choice, by, digest, nonce, in_quorum, edited };
    let answer = vote::decide(Some(&terms), &mut said.ballot, &vote, txn.now);
    let is_applied = answer == Answer::Applied;
    if !is_applied && !matches!(answer, Answer::Counted { .. }) {
        if was_of_another {
            questions::forget_said(txn, approval)?;
        }
        return Ok((answer, None));
    }
    let document = serde_json::to_string(decision).unwrap_or_default();
    if choice != Choice::Approve || said.ballot.votes.len() > votes {
        let task = task.as_deref().unwrap_or_default();
        let what = [("what", choice.as_str()), ("approval", approval.as_str()), ("task", task)];
        let how = [("by", by.as_str()), ("digest", digest.as_str()), ("decision", &document)];
        let edited =
            decision.edited_digest.as_ref().map(|digest| ("edited_digest", digest.as_str()));
        let fields: Vec<_> = what.into_iter().chain(how).chain(edited).collect();
        audit::add(txn, &fields)?;
    }
    said.document = is_applied.then_some(document);
    said.store(txn, approval, kept_until(deadline, txn.now))?;
    if !is_applied {
        return Ok((answer, None));
    }
    txn.ring(Ring::Decided(Some(approval.clone())));
    let Some(task) = task.map(TaskId::from) else {
        // No suspended task owns this request, so the end of a task does not remove it.
        questions::retire(txn, approval, false)?;
        return Ok((answer, None));
    };
    let resume = match parks::waiting(txn, &task, approval)? {
        Some((number, queue)) => outbox::leave(txn, &task, number, &queue, txn.now)?,
        None => None,
    };
    Ok((answer, resume))
}

/// Until when what was said is kept: for as long as the request can be decided, and a while more.
fn kept_until(deadline: i64, now: i64) -> i64 {
    deadline.max(now).saturating_add(milliseconds(DECISION_KEPT))
}

/// Gives a question more time.
fn extend(
    txn: &Txn<'_>,
    id: &ApprovalId,
    (by, is_operator): (&str, bool),
    time: Duration,
) -> Done<Answer> {
    let Case { asking: Some(Asking { terms, task, .. }), mut said } = questions::find(txn, id)?
    else {
        return Ok(Answer::Unknown);
    };
    said.turn_to(&terms);
    let until = txn.now + milliseconds(time);
    let extension = Extension { by, is_operator, until };
    let answer = vote::extend(Some(&terms), &mut said.ballot, extension, txn.now);
    if answer != Answer::Applied {
        return Ok(answer);
    }
    // People are warned of the new deadline anew.
    said.warned = None;
    said.store(txn, id, kept_until(until, txn.now))?;
    let (task, until) = (task.unwrap_or_default(), until.to_string());
    let what = [("what", "extend"), ("approval", id.as_str()), ("task", &task)];
    audit::add(txn, &[&what[..], &[("by", by), ("until", &until)]].concat())?;
    Ok(answer)
}

/// Notes that people are warned of a question's deadline: once for each part of its time, whoever
/// asks.
fn warn(txn: &Txn<'_>, id: &ApprovalId, percent: u8) -> Done<bool> {
    let Case { asking: Some(Asking { terms, task, .. }), mut said } = questions::find(txn, id)?
    else {
        return Ok(false);
    };
    let Standing::Open(deadline) = vote::standing(&terms, &said.ballot, txn.now) else {
        return Ok(false);
    };
    said.turn_to(&terms);
    if !warning::is_new(terms.asked_at, deadline, said.warned, percent, txn.now) {
        return Ok(false);
    }
    said.warned = Some(percent);
    said.store(txn, id, kept_until(deadline, txn.now))?;
    let task = task.unwrap_or_default();
    let (percent, deadline) = (percent.to_string(), deadline.to_string());
    let what = [("what", "warn"), ("approval", id.as_str()), ("task", &task)];
    let how = [("by", "clerk"), ("percent", &percent), ("deadline", &deadline)];
    audit::add(txn, &[what, how].concat())?;
    Ok(true)
}
