//! One task that asks two questions under one `join!`, and everything that may touch it.

use super::store::{NOBODY, QUESTIONS, Store};
pub(super) use super::variant::Variant;
use crate::protocol::{Ticket, TicketKind};

/// The whole state: what the servers have, where every process is, and what happened so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) variant: Variant,
    /// In the broker, and with nobody. It gives them out in any order.
    pub(super) letters: Vec<Letter>,
    /// One for each worker.
    pub(super) runs: [Option<Run>; 2],
    /// Two deciders, and a sweeper.
    pub(super) errands: [Errand; 3],
    pub(super) store: Store,
    /// So much went wrong.
    pub(super) faults: Faults,
    pub(super) seen: Seen,
}

/// A message of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Letter {
    pub(super) ticket: Ticket,
    /// Of which task: 0 for the first one, 1 for the second one with the same id.
    pub(super) life: u8,
    /// In the delay ladder for so many ticks.
    pub(super) delay: i8,
    /// Of an original only: the others are looked up whenever they come.
    pub(super) redelivered: bool,
    /// Which decision it is of; see [`Variant::ClaimPerApproval`].
    pub(super) about: usize,
}

/// A delivery in a worker's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Run {
    pub(super) letter: Letter,
    pub(super) step: Step,
    /// As `Claim::number` and `Claim::first` of `worker/claim.rs`.
    pub(super) number: u64,
    pub(super) first: u64,
    /// It holds a claim, and renews it.
    pub(super) is_leased: bool,
    /// It does not come to renewing it.
    pub(super) is_stalled: bool,
    /// It was acked already; see [`Variant::AckBeforePark`].
    pub(super) is_acked: bool,
    /// The questions whose answers its handler knows, as a set.
    pub(super) known: u8,
}

/// What a worker does next with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Step {
    /// Looks for a result.
    Read,
    /// Runs the handler until it asks or has done all.
    Run,
    /// Claims the task for its first park.
    Begin,
    /// Stores the park; the wake message is confirmed, and comes in so many ticks.
    Park(i8),
    /// Sends a wake message that comes sooner.
    Wake(i8),
    /// Waits for a decision with the slot, then acks.
    Hold,
    /// Stores the result.
    Finish,
    /// Stores that the park is lost.
    Lose,
    /// Notes that the task has ended.
    End,
    /// Sends the same message again.
    PutOff(i8),
    /// Stores that the next attempt, which is sent, is ahead.
    PassOn,
    Ack,
}

/// What a decider or a sweeper does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Errand {
    #[default]
    None,
    /// Writes a decision on this question; see [`Variant::GetThenSet`].
    Write(usize),
    Send(Entry),
    Clear(Entry),
}

/// An entry of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) about: usize,
}

/// How often each thing went wrong; or how often it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    /// A process dies.
    pub(super) crashes: u8,
    /// The store forgets everything.
    pub(super) wipes: u8,
    /// A worker gives back what it runs.
    pub(super) drains: u8,
    /// A worker runs on, and does not renew its lease.
    pub(super) stalls: u8,
    /// The handler fails, and is tried again.
    pub(super) retries: u8,
    /// A sweeper sends what its decider, who lives, is about to send.
    pub(super) slow: u8,
    /// A task ends, its result is deleted, and another one is sent with its id.
    pub(super) lives: u8,
}

/// What an observer has noted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    /// How many decisions on each question were said to count.
    pub(super) applied: [u8; QUESTIONS],
    /// What a handler was told about each question.
    pub(super) told: [Option<Said>; QUESTIONS],
    /// Another run was told something else.
    pub(super) contradicted: bool,
    /// So often a handler came to its end, past both questions.
    pub(super) effects: u8,
    /// So many died between that and its record.
    pub(super) died: u8,
    /// A park was taken up twice.
    pub(super) resumed: [u8; 6],
    /// A message ran under the claim of another task, with its own arguments.
    pub(super) mixed: bool,
    /// A message was dead-lettered: the first task is suspended, since its worker died before it noted
    /// the end.
    pub(super) buried: bool,
    /// The task was said to be lost.
    pub(super) lost: bool,
    pub(super) ended: bool,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Said {
    By(usize),
    Expired,
    Withdrawn,
}

impl World {
    pub(super) fn new(variant: Variant) -> Self {
        Self {
            variant,
            letters: vec![Letter::new(TicketKind::Original, 0, 0)],
            runs: [None; 2],
            errands: [Errand::None; 3],
            store: Store::default(),
            faults: Faults::default(),
            seen: Seen::default(),
        }
    }

    /// The task has ended, and of its messages only late ones are left: its id may be used again.
    pub(super) fn may_be_reused(&self) -> bool {
        let is_first =
            |letter: &Letter| letter.ticket == Letter::new(TicketKind::Original, 0, 0).ticket;
        let has_errand = self.errands.iter().any(|errand| *errand != Errand::None);
        self.seen.ended
            && !has_errand
            && self.runs == [None; 2]
            && !self.letters.iter().any(is_first)
    }

    /// The result is deleted, and another task is sent with the same id. Its questions are others.
    pub(super) fn reuse(&mut self) {
        self.store.has_result = false;
        (self.store.asks, self.store.ballots) = ([None; QUESTIONS], [None; QUESTIONS]);
        self.seen = Seen::default();
        self.faults.lives += 1;
        let life = self.faults.lives;
        self.letters.push(Letter { life, ..Letter::new(TicketKind::Original, 0, 0) });
    }

    /// The store says that a handler may go on under this number.
    pub(super) fn note_resumed(&mut self, number: u64) {
        if self.faults == Faults::default()
            && let Some(times) =
                usize::try_from(number).ok().and_then(|n| self.seen.resumed.get_mut(n))
        {
            *times += 1;
        }
    }

    pub(super) fn note_told(&mut self, n: usize, said: Said) {
        let known = self.seen.told[n].get_or_insert(said);
        self.seen.contradicted |= *known != said;
    }

    /// A claim of a worker that has left its delivery is nobody's.
    pub(super) fn orphan(&mut self, slot: usize) {
        if let Some((holder, _)) = self.claim().filter(|(holder, _)| *holder == slot) {
            *holder = NOBODY;
        }
    }

    fn claim(&mut self) -> Option<&mut (usize, i8)> {
        self.store.record.as_mut().and_then(|record| record.claim.as_mut())
    }

    /// One of all states between which nobody can tell: the two workers are alike, the broker has no
    /// order, and some things matter no more.
    pub(super) fn normal(mut self, limits: &Faults) -> Self {
        if self.faults.crashes == limits.crashes {
            // Nobody sees what is between sending a message again and acking it.
            for slot in 0..NOBODY {
                if let Some(Run { step: Step::PutOff(_) | Step::Ack, .. }) = self.runs[slot] {
                    self.advance(slot);
                }
                self.runs[slot] = self.runs[slot].filter(|run| run.step != Step::Ack);
            }
        }
        if self.faults.wipes == limits.wipes || self.seen.ended {
            // A second task with the id may still come.
            let (store, lives) = (&self.store, self.faults.lives);
            let is_last = lives == limits.lives && self.variant != Variant::NoDigest;
            self.letters.retain(|letter| !is_last || !store.is_past(letter.ticket, letter.life));
        }
        self.store.forget_what_matters_no_more();
        self.letters.sort_unstable();
        if self.runs[0] > self.runs[1] {
            self.runs.swap(0, 1);
            if let Some((holder, _)) = self.claim().filter(|(holder, _)| *holder != NOBODY) {
                *holder = 1 - *holder;
            }
        }
        self
    }
}

impl Letter {
    pub(super) fn new(kind: TicketKind, number: u64, delay: i8) -> Self {
        Self { ticket: Ticket { kind, number }, life: 0, delay, redelivered: false, about: 0 }
    }

    /// The same, of the task that `run` runs.
    pub(super) fn of(run: &Run, kind: TicketKind, number: u64, delay: i8) -> Self {
        Self { life: run.letter.life, ..Self::new(kind, number, delay) }
    }

    /// The broker has it back.
    pub(super) fn returned(self) -> Self {
        Self { redelivered: self.ticket.number == 0, delay: 0, ..self }
    }
}
