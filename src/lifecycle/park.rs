//! Who may run a parked task. The rules are numbered in `DESIGN.md`; `backend/redis/take.lua` and
//! `park.lua` are these functions again, inside the store, and a test compares them.
//! `backend/embedded` calls them.

use crate::approval::{ApprovalId, Standing};
use crate::protocol::{Ticket, TicketKind};

/// A wake comes at least this often, in milliseconds, to look whether its park is still there.
pub const RECHECK: i64 = 60 * 60 * 1000;
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
    /// The store has lost the park: the task has failed.
    StateLost,
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
    fn is_held_by_another(&self, holder: &str, now: i64) -> Option<i64> {
        let claim = self.claim.as_ref().filter(|claim| claim.holder != holder);
        claim.map(|claim| claim.until - now).filter(|left| *left > 0)
    }
}

/// Somebody has a message in his hands. Whoever is told [`Take::Claimed`] reads the task's result
/// after that, and stops if there is one.
pub fn take(
    record: &mut Option<Park>,
    ticket: Ticket,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> Take {
    let Some(park) = record else {
        return match ticket.kind {
            TicketKind::Original if ticket.number == 0 => Take::Unclaimed,
            TicketKind::Original => {
                *record = Some(claimed(ticket.number, holder, now + lease));
                Take::Claimed(ticket.number)
            }
            TicketKind::Resume => Take::Ack,
            TicketKind::Wake => Take::StateLost,
        };
    };
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

/// A run without a claim is about to send the wake message of its first park. That one is to find a
/// record, and in it who is about to park.
pub fn begin(record: &mut Option<Park>, holder: &str, now: i64, lease: i64) -> Take {
    if record.is_none() {
        *record = Some(claimed(0, holder, now + lease));
        return Take::Claimed(0);
    }
    let first = Ticket { kind: TicketKind::Original, number: 0 };
    take(record, first, Due::Now, holder, now, lease)
}

/// A run waits for decisions, under the number after its own; or it is about to be tried again,
/// and waits for nothing.
pub fn park(
    record: &mut Option<Park>,
    number: u64,
    waits: Vec<ApprovalId>,
    due: Due,
    holder: &str,
    now: i64,
    lease: i64,
) -> Parked {
    if let Some(park) = record
        && (park.ended || park.number > number || park.is_held_by_another(holder, now).is_some())
    {
        return Parked::Behind;
    }
    let is_ready = due == Due::Now && !waits.is_empty();
    let claim = is_ready.then(|| Claim { holder: holder.to_owned(), until: now + lease });
    *record = Some(Park { number, waits, claim, ended: false });
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

/// The task's result is stored.
pub fn end(record: &mut Option<Park>) {
    if let Some(park) = record {
        park.waits.clear();
        park.claim = None;
        park.ended = true;
    }
}

fn claimed(number: u64, holder: &str, until: i64) -> Park {
    let claim = Some(Claim { holder: holder.to_owned(), until });
    Park { number, waits: Vec::new(), claim, ended: false }
}

#[cfg(test)]
mod tests;
