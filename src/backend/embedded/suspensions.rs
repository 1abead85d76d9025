//! Suspended tasks, by the rules of `lifecycle/suspension.rs`: a record is read, changed by them, and
//! written back.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rusqlite::params;

use super::fault::TxResult;
use super::requests::{self, RequestCache};
use super::store::EmbeddedStore;
use super::suspension_records::{self, FORMAT, PACKED, Row};
use super::txn::Txn;
use super::{documents, outbox, packed, results, retention};
use crate::approval::ApprovalId;
use crate::backend::milliseconds::milliseconds;
use crate::backend::outbox::OVERDUE;
use crate::backend::suspensions::ENDED_RETENTION;
use crate::backend::{
    ClaimResult, Recorded, StoreResult, SuspendRequest, SuspendResult, Suspensions,
};
use crate::error::{Error, Kind};
use crate::lifecycle::suspension::{self, ClaimOutcome, Due, Suspension};
use crate::protocol::{SuspendHeader, SuspendKind, TaskDigest};
use crate::task::TaskId;

impl Suspensions for EmbeddedStore {
    fn claim_suspended(
        &self,
        id: &TaskId,
        header: SuspendHeader,
        digest: Option<&TaskDigest>,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<ClaimResult, Error>> {
        let (id, holder, retention) = (id.clone(), holder.to_owned(), self.retention.running());
        let digest = digest.cloned();
        Box::pin(self.db.write(move |txn| {
            if header.kind == SuspendKind::Wake {
                // The journal must outlive the suspension: a wake message comes every hour and extends it.
                retention::extend(txn, &id, retention)?;
            }
            claim_task(txn, &id, ClaimKind::Message(header, digest.as_ref()), &holder, lease)
        }))
    }

    fn claim_first(
        &self,
        id: &TaskId,
        digest: &TaskDigest,
        starts_anew: bool,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<ClaimResult, Error>> {
        let (id, digest, holder) = (id.clone(), digest.clone(), holder.to_owned());
        Box::pin(self.db.write(move |txn| {
            claim_task(txn, &id, ClaimKind::FirstSuspension(&digest, starts_anew), &holder, lease)
        }))
    }

    fn suspend(&self, request: SuspendRequest) -> BoxFuture<'_, Result<SuspendResult, Error>> {
        Box::pin(async move {
            let what = || format!("the message of suspended task {}", request.id);
            // Compressed here, and not in the single writer thread.
            let packed = packed::pack(&request.id, &request.message)
                .map_err(|error| Kind::Codec { what: what(), cause: error.to_string() })?;
            self.db.write(move |txn| suspend(txn, &request, &packed)).await
        })
    }

    fn renew_claim(
        &self,
        id: &TaskId,
        holder: &str,
        lease: Duration,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        let (id, holder) = (id.clone(), holder.to_owned());
        Box::pin(self.db.write(move |txn| {
            let Some(row) = suspension_records::find(txn, &id)? else { return Ok(false) };
            let mut record = Some(row.suspension);
            let is_held = suspension::renew(&mut record, &holder, txn.now, milliseconds(lease));
            if let Some(suspension) = record.filter(|_| is_held) {
                suspension_records::update(txn, &id, &suspension, row.alarm)?;
            }
            Ok(is_held)
        }))
    }

    fn release_claim(&self, id: &TaskId, holder: &str) -> BoxFuture<'_, Result<(), Error>> {
        let (id, holder) = (id.clone(), holder.to_owned());
        Box::pin(self.db.write(move |txn| {
            let Some(row) = suspension_records::find(txn, &id)? else { return Ok(()) };
            let mut record = Some(row.suspension.clone());
            suspension::release(&mut record, &holder);
            match record {
                Some(suspension) if suspension != row.suspension => {
                    suspension_records::update(txn, &id, &suspension, row.alarm)
                }
                _ => Ok(()),
            }
        }))
    }

    fn end_suspended(
        &self,
        id: &TaskId,
        digest: Option<&TaskDigest>,
    ) -> BoxFuture<'_, Result<Vec<ApprovalId>, Error>> {
        let (id, digest) = (id.clone(), digest.cloned());
        Box::pin(self.db.write(move |txn| end(txn, &id, digest.as_ref())))
    }

    fn finish_suspended(
        &self,
        result: StoreResult,
        digest: &TaskDigest,
    ) -> BoxFuture<'_, Result<(Recorded, Vec<ApprovalId>), Error>> {
        let (id, digest, retention) =
            (result.document.id.clone(), digest.clone(), self.retention.results);
        Box::pin(async move {
            let task = id.clone();
            let finishing = self.retry_until_ok(move |txn| {
                results::store(txn, &result, retention)?;
                end(txn, &task, Some(&digest))
            });
            let withdrawn = finishing.await?;
            Ok((Recorded::new(id), withdrawn))
        })
    }
}

/// Records that a suspended task has ended, and withdraws its open requests. Returns these.
fn end(txn: &Txn<'_>, id: &TaskId, digest: Option<&TaskDigest>) -> TxResult<Vec<ApprovalId>> {
    let Some(row) = suspension_records::find(txn, id)? else { return Ok(Vec::new()) };
    let mut record = Some(row.suspension);
    if !suspension::end(&mut record, digest) {
        return Ok(Vec::new());
    }
    let mut withdrawn = Vec::new();
    for approval in row.listed {
        let is_open = requests::find(txn, &approval)?.is_open(txn.now);
        requests::expire(txn, &approval, is_open)?;
        withdrawn.extend(Some(approval).filter(|_| is_open));
    }
    if let Some(suspension) = record {
        suspension_records::update(txn, id, &suspension, row.alarm)?;
    }
    let update = "UPDATE parks SET v = ?, asked = '', message = NULL, packed = NULL, \
                  wake_queue = NULL, wake_at = NULL, wake_number = NULL, wake_sent = NULL, \
                  expires = ? WHERE task = ?";
    let expires = txn.now + milliseconds(ENDED_RETENTION);
    txn.execute(update, params![FORMAT, expires, id.as_str()])?;
    Ok(withdrawn)
}

/// The reason for claiming a task.
#[derive(Clone, Copy, Debug)]
enum ClaimKind<'w> {
    /// The caller has this message of the task. With the task's digest, if the message carries the task.
    Message(SuspendHeader, Option<&'w TaskDigest>),
    /// A run is about to suspend for the first time. The flag says whether it starts anew.
    FirstSuspension(&'w TaskDigest, bool),
}

/// Claims a task that may have been suspended, for one of its messages or for a run that is about to
/// suspend for the first time, and returns the action for it.
fn claim_task(
    txn: &Txn<'_>,
    id: &TaskId,
    kind: ClaimKind<'_>,
    holder: &str,
    lease: Duration,
) -> TxResult<ClaimResult> {
    let found = suspension_records::find(txn, id)?;
    if found.as_ref().is_some_and(|row| row.v > PACKED) {
        return Ok(ClaimResult::Newer);
    }
    let mut cache = RequestCache::default();
    let due = match &found {
        Some(row) => cache.due(txn, &row.suspension.waits, row.alarm)?,
        None => Due::Now,
    };
    let mut record = found.as_ref().map(|row| row.suspension.clone());
    let (now, lease) = (txn.now, milliseconds(lease));
    let outcome = match kind {
        ClaimKind::Message(header, digest) => {
            suspension::claim(&mut record, header, digest, due, holder, now, lease)
        }
        ClaimKind::FirstSuspension(digest, starts_anew) => {
            suspension::begin(&mut record, digest, starts_anew, holder, now, lease)
        }
    };
    match (&found, &record) {
        (Some(row), Some(suspension)) if row.suspension != *suspension && !row.suspension.ended => {
            // An alarm of an older suspension does not apply any more.
            let alarm = row.alarm.filter(|_| row.suspension.number == suspension.number);
            suspension_records::update(txn, id, suspension, alarm)?;
        }
        (Some(Row { suspension: before, .. }), Some(suspension)) if before == suspension => {}
        // A record that has ended is never updated, only replaced.
        (_, Some(suspension)) => {
            let (suspension, listed, queue) = (suspension.clone(), Vec::new(), String::new());
            let row = Row { v: FORMAT, suspension, listed, alarm: None, queue };
            suspension_records::insert(txn, id, &row, None)?;
        }
        _ => {}
    }
    Ok(match outcome {
        ClaimOutcome::Unclaimed => ClaimResult::Unclaimed,
        ClaimOutcome::Claimed(number) => {
            if let Some(Row { suspension, queue, alarm: Some(_), .. }) = &found {
                // A message has arrived: no sweeper has to send one when the sleep ends.
                outbox::cancel(txn, id, suspension.number, queue)?;
            }
            let listed = found.map_or_else(Vec::new, |row| row.listed);
            claimed(txn, id, number, &listed, cache)?
        }
        ClaimOutcome::Ack => ClaimResult::Over(Recorded::new(id.clone())),
        ClaimOutcome::Postpone(delay) => {
            ClaimResult::Postpone(Duration::from_millis(delay.max(0).unsigned_abs()))
        }
        ClaimOutcome::StateLost => ClaimResult::StateLost,
        ClaimOutcome::Ended => ClaimResult::Ended(Recorded::new(id.clone())),
        ClaimOutcome::Occupied => {
            ClaimResult::Occupied(suspension_records::message(txn, id)?.map(Box::new))
        }
    })
}

/// Returns a claim with the data of its task.
fn claimed(
    txn: &Txn<'_>,
    id: &TaskId,
    number: u64,
    listed: &[ApprovalId],
    mut cache: RequestCache,
) -> TxResult<ClaimResult> {
    let outcomes = cache.outcomes(txn, listed)?;
    for outcome in &outcomes {
        requests::unlist(txn, &outcome.approval)?;
    }
    let message = suspension_records::message(txn, id)?.map(Box::new);
    let result = documents::read_final(txn, id)?.map(Box::new);
    Ok(ClaimResult::Claimed { number, message, result, outcomes })
}

/// Suspends a run, and publishes its approval requests to approvers.
fn suspend(txn: &mut Txn<'_>, request: &SuspendRequest, packed: &[u8]) -> TxResult<SuspendResult> {
    let (id, number, now) = (&request.id, request.number, txn.now);
    let behind = || Ok(SuspendResult::Behind(Recorded::new(id.clone())));
    let found = suspension_records::find(txn, id)?;
    if found.as_ref().is_some_and(|row| row.v > PACKED) {
        // The newer process has sent messages of its own.
        return behind();
    }
    let (mut record, mut listed) = match found {
        Some(row) => (Some(row.suspension), row.listed),
        None => (None, Vec::new()),
    };
    // Nothing is written until it is known that this run is not behind.
    let mut cache = RequestCache::default();
    let (mut added, mut withdrawn) = (Vec::new(), Vec::new());
    for approval in &request.requests {
        let awaits = listed.contains(&approval.id);
        if cache.state(txn, &approval.id)?.add(approval, id, awaits, now) {
            added.push(&approval.id);
        }
        if !awaits {
            listed.push(approval.id.clone());
        }
    }
    for approval in &request.abandoned {
        if cache.state(txn, approval)?.withdraw(now) {
            withdrawn.push(approval);
        }
    }
    let alarm = request.alarm.map(|sleep| now + milliseconds(sleep));
    let waits: Vec<_> = request.requests.iter().map(|approval| approval.id.clone()).collect();
    let due = cache.due(txn, &waits, alarm)?;
    let (holder, lease) = (&request.holder, milliseconds(request.lease));
    let next = Suspension::waiting(number, request.digest.clone(), waits.clone());
    let outcome = suspension::suspend(&mut record, next, due, holder, now, lease);
    let Some(suspension) = record.filter(|_| outcome != suspension::SuspendOutcome::Behind) else {
        return behind();
    };

    for approval in added {
        if let Some(stored) = &cache.state(txn, approval)?.request {
            stored.store(txn, approval)?;
        }
    }
    for approval in withdrawn {
        requests::withdraw(txn, approval)?;
    }
    let row = Row { v: PACKED, suspension, listed, alarm, queue: request.queue.clone() };
    suspension_records::insert(txn, id, &row, Some(packed))?;
    if outcome == suspension::SuspendOutcome::Ready {
        // No other process will send a resume message: if this run dies, a sweeper does.
        outbox::add(txn, id, number, &row.queue, now + lease)?;
        return Ok(SuspendResult::Ready(cache.outcomes(txn, &waits)?));
    }
    if let Some(alarm) = alarm {
        // The wake message may be late or lost: a sweeper resumes the task after its sleep.
        outbox::add(txn, id, number, &row.queue, alarm + 1 - milliseconds(OVERDUE))?;
    }
    let left = match due {
        Due::Now => 0,
        Due::In(left) => left.unsigned_abs(),
    };
    Ok(SuspendResult::Waiting(Recorded::new(id.clone()), Duration::from_millis(left)))
}
