//! Who may run a parked task. The rules are numbered in `DESIGN.md`; `backend/redis/take.lua` and
//! `park.lua` are these functions again, inside the store, and a test compares them.
//! `backend/embedded` calls them.

use crate::approval::{ApprovalId, Standing};
use crate::protocol::{TaskDigest, Ticket, TicketKind};

/// A wake comes at least this often, in milliseconds, to look whether its park is still there.
pub const RECHECK: i64 = 60 * 60 * 1000;
const DAY: i64 = 24 * 60 * 60 * 1000;
/// A wake message that is younger than this, in milliseconds, and finds no record says that the store has
/// lost the task. An older one may be of a task that has ended.
pub const LOST_WITHIN: i64 = 7 * DAY;
/// How long the note of a task's end is kept, in milliseconds. It outlives every message that was sent
/// before the end and is younger than [`LOST_WITHIN`]; a message that a stalled worker sends within a day
/// after the end, too.
pub const ENDED_KEPT: i64 = LOST_WITHIN + DAY;

/// A message that overtakes its own record is looked at again after this long, in milliseconds.
const OVERTAKEN: i64 = 1000;

/// Nobody honest is this far ahead of a record, not even of one that a failover has set back. Who
/// was let, could use the numbers up.
const LEAP: u64 = 1 << 20;

/// What the store remembers of a task that has been parked. There is one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Park {
    /// Which park of the task, from 1; 0 while its first one is on its way. Every message of the task
    /// has the number of its park.
    pub number: u64,
    /// Which task is suspended: another one with the same id may come. `None` in a record of an older
    /// version, which belongs to every message with its id.
    pub digest: Option<TaskDigest>,
    /// The questions that it waits for; none while a retry is on its way.
    pub waits: Vec<ApprovalId>,
    /// Who runs the task, or ran it until he died.
    pub claim: Option<Claim>,
    /// The task has ended: late messages find that here.
    pub ended: bool,
}

/// The right to run a parked task, for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// A name that nobody else has.
    pub holder: String,
    /// Until then, unless it is renewed.
    pub until: i64,
}

/// Whether something that a task waits for is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A decision, or a deadline that has passed.
    Now,
    /// Not before the next deadline, in so many milliseconds.
    In(i64),
}

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Run it: it was never parked.
    Unclaimed,
    /// Run it, under this number.
    Claimed(u64),
    /// Ack it: another message carries the task on, or it has ended.
    Ack,
    /// Look at it again after so many milliseconds. Never ack it: who holds the claim may die.
    Postpone(i64),
    /// There is no record. The store has lost it, and the task has failed; or the task has ended so long
    /// ago that the note of that is gone: see [`is_lost`].
    StateLost,
    /// A first message of a task whose suspension has ended. Its result says whether it is a copy that
    /// comes late, or the same message sent anew.
    Ended,
    /// A first message of another task, while one with the same id is suspended: dead-letter it.
    Occupied,
}

/// What came of parking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    /// It waits.
    Waiting,
    /// Something that it waits for is there: it runs on, and holds the claim.
    Ready,
    /// Another run of the task is ahead of this one, or it has ended.
    Behind,
}

impl Due {
    /// When the first of these is due: how the questions stand (`None`: one that is gone), and an
    /// alarm. Who waits for nothing has waited long enough.
    pub fn of(
        waits: impl IntoIterator<Item = Option<Standing>>,
        alarm: Option<i64>,
        now: i64,
    ) -> Self {
        let mut nearest = alarm;
        for standing in waits {
            let Some(Standing::Open(deadline)) = standing else { return Self::Now };
            nearest = Some(nearest.map_or(deadline, |nearest| nearest.min(deadline)));
        }
        match nearest.map(|nearest| nearest.saturating_sub(now).saturating_add(1)) {
            Some(left @ 1..) => Self::In(left),
            _ => Self::Now,
        }
    }
}

impl Park {
    /// A record of a run that waits for these, held by no one.
    #[must_use]
    pub fn waiting(number: u64, digest: TaskDigest, waits: Vec<ApprovalId>) -> Self {
        Self { number, digest: Some(digest), waits, claim: None, ended: false }
    }

    /// Whether the record is known to belong to another task with the same id.
    fn is_of_another(&self, digest: Option<&TaskDigest>) -> bool {
        self.digest.as_ref().zip(digest).is_some_and(|(own, other)| own != other)
    }

    fn is_held_by_another(&self, holder: &str, now: i64) -> Option<i64> {
        let claim = self.claim.as_ref().filter(|claim| claim.holder != holder);
        claim.map(|claim| claim.until - now).filter(|left| *left > 0)
    }
}

/// Somebody has a message in his hands. Whoever is told [`Take::Claimed`] reads the task's result
/// after that, and stops if there is one.
///
/// `digest` is the message's; `None` for one that does not carry its task, which runs what the record
/// has.
pub fn take(
    record: &mut Option<Park>,
    ticket: Ticket,
    digest: Option<&TaskDigest>,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> Take {
    let Some(park) = record else {
        return match ticket.kind {
            TicketKind::Original if ticket.number == 0 => Take::Unclaimed,
            TicketKind::Original => {
                *record = Some(claimed(ticket.number, digest, holder, now + lease));
                Take::Claimed(ticket.number)
            }
            TicketKind::Resume => Take::Ack,
            TicketKind::Wake => Take::StateLost,
        };
    };
    let is_first = ticket == Ticket { kind: TicketKind::Original, number: 0 };
    if park.is_of_another(digest) {
        return match (is_first, park.ended) {
            (true, true) => Take::Unclaimed,
            (true, false) => Take::Occupied,
            (false, _) => Take::Ack,
        };
    }
    if park.ended && is_first && park.digest.is_some() && digest.is_some() {
        return Take::Ended;
    }
    let is_ahead = ticket.number > park.number;
    let is_forged =
        is_ahead && (ticket.kind == TicketKind::Resume || ticket.number - park.number > LEAP);
    if park.ended || ticket.number < park.number || is_forged {
        return Take::Ack;
    }
    if let Some(left) = park.is_held_by_another(holder, now) {
        return Take::Postpone(if is_ahead { left.min(OVERTAKEN) } else { left });
    }
    match (ticket.kind, due) {
        (TicketKind::Resume, Due::In(_)) => return Take::Ack,
        (TicketKind::Wake, Due::In(left)) if !is_ahead => {
            return Take::Postpone(left.clamp(0, RECHECK));
        }
        _ => {}
    }
    if is_ahead {
        // What the older park waited for is no matter any more.
        park.waits.clear();
    }
    park.number = ticket.number;
    park.claim = Some(Claim { holder: holder.to_owned(), until: now + lease });
    Take::Claimed(ticket.number)
}

/// Whether a wake message that finds no record says that the store has lost the task. When the message was
/// sent, the task had a record. A message of version 0.1 does not say when it was sent.
#[must_use]
pub fn is_lost(sent_at: Option<i64>, now: i64) -> bool {
    sent_at.is_none_or(|sent_at| now.saturating_sub(sent_at) < LOST_WITHIN)
}

/// A run without a claim is about to send the wake message of its first park. That one is to find a
/// record, and in it who is about to park.
///
/// The record of another task that has ended is replaced. So is one of the same task, if the run
/// `starts_anew`: it reads the task's result after [`Take::Claimed`], and stops if there is one. The
/// number that it is told then is that of the last message of the task before: its own parks come after
/// that, while its message, number 0, still finds the record.
pub fn begin(
    record: &mut Option<Park>,
    digest: &TaskDigest,
    starts_anew: bool,
    holder: &str,
    now: i64,
    lease: i64,
) -> Take {
    let is_over = record.as_ref().is_some_and(|park| {
        let is_same = park.digest.as_ref() == Some(digest);
        park.ended && (park.is_of_another(Some(digest)) || (is_same && starts_anew))
    });
    if record.is_none() || is_over {
        // The last wake message of the task before was one ahead of its record.
        let past = record.as_ref().map(|park| park.number.saturating_add(1));
        *record = Some(claimed(0, Some(digest), holder, now + lease));
        return Take::Claimed(past.filter(|past| *past < LEAP).unwrap_or(0));
    }
    let first = Ticket { kind: TicketKind::Original, number: 0 };
    match take(record, first, Some(digest), Due::Now, holder, now, lease) {
        Take::Ended => Take::Ack,
        other => other,
    }
}

/// A run waits for decisions, under the number after its own; or it is about to be tried again,
/// and waits for nothing. `next` is the record that is to be stored.
pub fn park(
    record: &mut Option<Park>,
    next: Park,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> Parked {
    if let Some(park) = record
        && (park.ended
            || park.is_of_another(next.digest.as_ref())
            || park.number > next.number
            || park.is_held_by_another(holder, now).is_some())
    {
        return Parked::Behind;
    }
    let is_ready = due == Due::Now && !next.waits.is_empty();
    let claim = is_ready.then(|| Claim { holder: holder.to_owned(), until: now + lease });
    *record = Some(Park { claim, ..next });
    if is_ready { Parked::Ready } else { Parked::Waiting }
}

/// The holder of a claim still runs. False: the claim is somebody else's, and this run must stop.
pub fn renew(record: &mut Option<Park>, holder: &str, now: i64, lease: i64) -> bool {
    let claim = record.as_mut().filter(|park| !park.ended).and_then(|park| park.claim.as_mut());
    match claim.filter(|claim| claim.holder == holder) {
        Some(claim) => {
            claim.until = now + lease;
            true
        }
        None => false,
    }
}

/// The holder gives the claim back: the message that it came with is delivered again.
pub fn release(record: &mut Option<Park>, holder: &str) {
    if let Some(park) = record
        && park.claim.as_ref().is_some_and(|claim| claim.holder == holder)
    {
        park.claim = None;
    }
}

/// The result of the task with this digest is stored. False: the record is another task's, or there is
/// none.
pub fn end(record: &mut Option<Park>, digest: Option<&TaskDigest>) -> bool {
    let Some(park) = record.as_mut().filter(|park| !park.is_of_another(digest)) else {
        return false;
    };
    park.waits.clear();
    park.claim = None;
    park.ended = true;
    true
}

/// The task is to leave nothing behind. What stays of its record only keeps late messages of it from
/// being run: it is ended, and of another task than any message. False: the task is suspended.
pub fn forget(record: &mut Option<Park>) -> bool {
    if let Some(park) = record {
        if !park.ended {
            return false;
        }
        park.digest = Some(TaskDigest::of_none());
    }
    true
}

fn claimed(number: u64, digest: Option<&TaskDigest>, holder: &str, until: i64) -> Park {
    let claim = Some(Claim { holder: holder.to_owned(), until });
    Park { number, digest: digest.cloned(), waits: Vec::new(), claim, ended: false }
}

#[cfg(test)]
mod tests;
