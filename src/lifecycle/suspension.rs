//! Claims on suspended tasks. The rules are numbered in `DESIGN.md`; `backend/redis/claim_task.lua` and `suspend.lua`
//! implement these functions inside the store, and a test compares them. `backend/embedded` calls them.

use crate::approval::{ApprovalId, ApprovalStatus};
use crate::protocol::{SuspendHeader, SuspendKind, TaskDigest};

/// A wake message arrives at least this often, in milliseconds, to check that its suspension still exists.
pub const RECHECK: i64 = 60 * 60 * 1000;
const DAY: i64 = 24 * 60 * 60 * 1000;
/// A wake message that is younger than this, in milliseconds, and finds no record proves that the store has
/// lost the task. An older one may belong to a task that has ended.
pub const LOST_WITHIN: i64 = 7 * DAY;
/// How long the record of a task's end is kept, in milliseconds. It outlives every message that was sent
/// before the end and is younger than [`LOST_WITHIN`], and also a message that a stalled worker sends within
/// a day after the end.
pub const ENDED_RETENTION: i64 = LOST_WITHIN + DAY;

/// A message that arrives before its own record is retried after this time, in milliseconds.
const MAX_AHEAD_DELAY: i64 = 1000;

/// The highest accepted difference between a message's number and the record's. Larger jumps are rejected: a
/// forged number could exhaust the range. Even after a failover no valid message is this far ahead.
const MAX_NUMBER_JUMP: u64 = 1 << 20;

/// The stored record of a task that has been suspended. Each task has one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    /// The number of the task's suspension, from 1; 0 before the first one is stored. Every message of the
    /// task carries the number of its suspension.
    pub number: u64,
    /// The digest of the suspended task, because another task may have the same id. `None` in a record of an
    /// older version, which belongs to every message with its id.
    pub digest: Option<TaskDigest>,
    /// The approval requests that the task waits for; empty while a retry is pending.
    pub waits: Vec<ApprovalId>,
    /// The claim of the run that is active, or that died.
    pub claim: Option<Claim>,
    /// The task has ended: late messages find this and are acked.
    pub ended: bool,
}

/// A lease: the right to run a suspended task for a limited time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// A unique name of the holder.
    pub holder: String,
    /// When the claim expires unless it is renewed.
    pub until: i64,
}

/// Whether a decision or deadline that a task waits for is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// There is a decision, or a deadline has passed.
    Now,
    /// The next deadline is in this many milliseconds.
    In(i64),
}

/// The action for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// Run the task: it was never suspended.
    Unclaimed,
    /// Run the task, under this number.
    Claimed(u64),
    /// Ack the message: another message continues the task, or the task has ended.
    Ack,
    /// Retry after this many milliseconds. Never ack the message, because the holder of the claim may die.
    Postpone(i64),
    /// There is no record. Either the store has lost it, and the task has failed; or the task has ended, and
    /// the record of its end has expired: see [`is_lost`].
    StateLost,
    /// A first message of a task whose suspension has ended. The task's result shows whether the message is a
    /// late copy, or was sent anew.
    Ended,
    /// A first message of another task while a task with the same id is suspended: dead-letter it.
    Occupied,
}

/// The result of suspending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendOutcome {
    /// The task is suspended.
    Waiting,
    /// A decision or deadline is already due: the run continues, and holds the claim.
    Ready,
    /// Another run of the task is ahead of this one, or the task has ended.
    Behind,
}

impl Due {
    /// Returns when the first of these is due: the status of each request (`None`: it no longer exists), and
    /// an alarm. Without any of them, the result is [`Due::Now`].
    pub fn of(
        waits: impl IntoIterator<Item = Option<ApprovalStatus>>,
        alarm: Option<i64>,
        now: i64,
    ) -> Self {
        let mut nearest = alarm;
        for status in waits {
            let Some(ApprovalStatus::Open(deadline)) = status else { return Self::Now };
            let deadline = deadline.as_millisecond();
            nearest = Some(nearest.map_or(deadline, |nearest| nearest.min(deadline)));
        }
        match nearest.map(|nearest| nearest.saturating_sub(now).saturating_add(1)) {
            Some(left @ 1..) => Self::In(left),
            _ => Self::Now,
        }
    }
}

impl Suspension {
    /// Creates a record of a run that waits for these requests, without a claim.
    #[must_use]
    pub fn waiting(number: u64, digest: TaskDigest, waits: Vec<ApprovalId>) -> Self {
        Self { number, digest: Some(digest), waits, claim: None, ended: false }
    }

    /// Returns whether the record is known to belong to another task with the same id.
    fn is_of_another(&self, digest: Option<&TaskDigest>) -> bool {
        self.digest.as_ref().zip(digest).is_some_and(|(own, other)| own != other)
    }

    fn is_held_by_another(&self, holder: &str, now: i64) -> Option<i64> {
        let claim = self.claim.as_ref().filter(|claim| claim.holder != holder);
        claim.map(|claim| claim.until - now).filter(|left| *left > 0)
    }
}

/// Claims a task for a delivered message. After [`ClaimOutcome::Claimed`] the caller must read the task's
/// result, and stop if there is one.
///
/// `digest` is the message's; `None` for a message without the task's data, which runs the task in the
/// record.
pub fn claim(
    record: &mut Option<Suspension>,
    header: SuspendHeader,
    digest: Option<&TaskDigest>,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> ClaimOutcome {
    let Some(suspension) = record else {
        return match header.kind {
            SuspendKind::Original if header.number == 0 => ClaimOutcome::Unclaimed,
            SuspendKind::Original => {
                *record = Some(claimed(header.number, digest, holder, now + lease));
                ClaimOutcome::Claimed(header.number)
            }
            SuspendKind::Resume => ClaimOutcome::Ack,
            SuspendKind::Wake => ClaimOutcome::StateLost,
        };
    };
    let is_first = header == SuspendHeader { kind: SuspendKind::Original, number: 0 };
    if suspension.is_of_another(digest) {
        return match (is_first, suspension.ended) {
            (true, true) => ClaimOutcome::Unclaimed,
            (true, false) => ClaimOutcome::Occupied,
            (false, _) => ClaimOutcome::Ack,
        };
    }
    if suspension.ended && is_first && suspension.digest.is_some() && digest.is_some() {
        return ClaimOutcome::Ended;
    }
    let is_ahead = header.number > suspension.number;
    let is_forged = is_ahead
        && (header.kind == SuspendKind::Resume
            || header.number - suspension.number > MAX_NUMBER_JUMP);
    if suspension.ended || header.number < suspension.number || is_forged {
        return ClaimOutcome::Ack;
    }
    if let Some(left) = suspension.is_held_by_another(holder, now) {
        return ClaimOutcome::Postpone(if is_ahead { left.min(MAX_AHEAD_DELAY) } else { left });
    }
    match (header.kind, due) {
        (SuspendKind::Resume, Due::In(_)) => return ClaimOutcome::Ack,
        (SuspendKind::Wake, Due::In(left)) if !is_ahead => {
            return ClaimOutcome::Postpone(left.clamp(0, RECHECK));
        }
        _ => {}
    }
    if is_ahead {
        // The requests of the older suspension have no effect any more.
        suspension.waits.clear();
    }
    suspension.number = header.number;
    suspension.claim = Some(Claim { holder: holder.to_owned(), until: now + lease });
    ClaimOutcome::Claimed(header.number)
}

/// Returns whether a wake message without a record proves that the store has lost the task: the task had a
/// record when the message was sent. A message of version 0.1 has no send time; it counts as proof.
#[must_use]
pub fn is_lost(sent_at: Option<i64>, now: i64) -> bool {
    sent_at.is_none_or(|sent_at| now.saturating_sub(sent_at) < LOST_WITHIN)
}

/// Claims the task for a run without a claim that is about to send the wake message of its first suspension.
/// The wake message must find a record with that run's claim.
///
/// Replaces the ended record of another task. Also replaces the ended record of the same task, if the run
/// `starts_anew`: it reads the task's result after [`ClaimOutcome::Claimed`], and stops if there is one. The
/// returned number then is that of the last message of the previous task: the run's own suspensions get
/// higher numbers, while its message, number 0, still finds the record.
pub fn begin(
    record: &mut Option<Suspension>,
    digest: &TaskDigest,
    starts_anew: bool,
    holder: &str,
    now: i64,
    lease: i64,
) -> ClaimOutcome {
    let is_over = record.as_ref().is_some_and(|suspension| {
        let is_same = suspension.digest.as_ref() == Some(digest);
        suspension.ended && (suspension.is_of_another(Some(digest)) || (is_same && starts_anew))
    });
    if record.is_none() || is_over {
        // The last wake message of the previous task had the record's number plus one.
        let past = record.as_ref().map(|suspension| suspension.number.saturating_add(1));
        *record = Some(claimed(0, Some(digest), holder, now + lease));
        return ClaimOutcome::Claimed(past.filter(|past| *past < MAX_NUMBER_JUMP).unwrap_or(0));
    }
    let first = SuspendHeader { kind: SuspendKind::Original, number: 0 };
    match claim(record, first, Some(digest), Due::Now, holder, now, lease) {
        ClaimOutcome::Ended => ClaimOutcome::Ack,
        other => other,
    }
}

/// Suspends a run until decisions, under the number after its own; or records that its next attempt is
/// pending, without requests. `next` is the record to store.
pub fn suspend(
    record: &mut Option<Suspension>,
    next: Suspension,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> SuspendOutcome {
    if let Some(suspension) = record
        && (suspension.ended
            || suspension.is_of_another(next.digest.as_ref())
            || suspension.number > next.number
            || suspension.is_held_by_another(holder, now).is_some())
    {
        return SuspendOutcome::Behind;
    }
    let is_ready = due == Due::Now && !next.waits.is_empty();
    let claim = is_ready.then(|| Claim { holder: holder.to_owned(), until: now + lease });
    *record = Some(Suspension { claim, ..next });
    if is_ready { SuspendOutcome::Ready } else { SuspendOutcome::Waiting }
}

/// Renews the holder's claim. False: the claim belongs to another run, and this run must stop.
pub fn renew(record: &mut Option<Suspension>, holder: &str, now: i64, lease: i64) -> bool {
    let claim = record
        .as_mut()
        .filter(|suspension| !suspension.ended)
        .and_then(|suspension| suspension.claim.as_mut());
    match claim.filter(|claim| claim.holder == holder) {
        Some(claim) => {
            claim.until = now + lease;
            true
        }
        None => false,
    }
}

/// Releases the holder's claim: the message that it came with will be redelivered.
pub fn release(record: &mut Option<Suspension>, holder: &str) {
    if let Some(suspension) = record
        && suspension.claim.as_ref().is_some_and(|claim| claim.holder == holder)
    {
        suspension.claim = None;
    }
}

/// Records that the result of the task with this digest is stored. False: the record belongs to another task,
/// or does not exist.
pub fn end(record: &mut Option<Suspension>, digest: Option<&TaskDigest>) -> bool {
    let Some(suspension) = record.as_mut().filter(|suspension| !suspension.is_of_another(digest))
    else {
        return false;
    };
    suspension.waits.clear();
    suspension.claim = None;
    suspension.ended = true;
    true
}

/// Forgets the task. The remaining record only prevents late messages from running: it is ended, and its
/// digest matches no message. False: the task is suspended.
pub fn forget(record: &mut Option<Suspension>) -> bool {
    if let Some(suspension) = record {
        if !suspension.ended {
            return false;
        }
        suspension.digest = Some(TaskDigest::of_none());
    }
    true
}

fn claimed(number: u64, digest: Option<&TaskDigest>, holder: &str, until: i64) -> Suspension {
    let claim = Some(Claim { holder: holder.to_owned(), until });
    Suspension { number, digest: digest.cloned(), waits: Vec::new(), claim, ended: false }
}

#[cfg(test)]
mod tests;
