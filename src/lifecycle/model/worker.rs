//! What a worker does with a delivery, in the order of `worker/resume.rs`, `execute.rs`, `park.rs`
//! and `settle.rs`. A crash may come between any two calls of these.

use super::store::{LEASE, NOBODY, PATIENCE, questions, with};
use super::world::{Letter, Run, Said, Step, Variant, World};
use crate::lifecycle::park::{Parked, Take};
use crate::protocol::{Ticket, TicketKind};

const BOTH: u8 = 0b11;

impl World {
    /// A message comes to a worker, which asks the store about it.
    pub(super) fn deliver(&mut self, slot: usize, letter: Letter) {
        if let Some(at) = self.letters.iter().position(|other| *other == letter) {
            self.letters.swap_remove(at);
        }
        let mut run = Run {
            letter,
            step: Step::Read,
            number: letter.ticket.number,
            first: letter.ticket.number,
            is_leased: false,
            is_stalled: false,
            is_acked: false,
            known: 0,
        };
        let is_first_hand = letter.ticket.number == 0 && !letter.redelivered;
        let step = if is_first_hand { Some(Step::Run) } else { self.admit(slot, &mut run) };
        self.runs[slot] = step.map(|step| Run { step, ..run });
    }

    /// `None`: it is acked.
    fn admit(&mut self, slot: usize, run: &mut Run) -> Option<Step> {
        match self.take(slot, run.letter) {
            Take::Unclaimed | Take::Ended => Some(Step::Read),
            Take::Occupied => {
                self.seen.buried = true;
                None
            }
            Take::Claimed(number) => {
                let record = self.store.record?;
                self.seen.mixed |= record.life != run.letter.life && !record.has_message;
                if run.letter.ticket.kind == TicketKind::Resume && !record.has_message {
                    self.store.release(slot);
                    return Some(Step::Ack);
                }
                if record.has_message {
                    // The message that is stored takes its place.
                    run.letter.life = record.life;
                }
                self.go_on(slot, run, number, BOTH);
                let is_hasty = self.variant == Variant::ClaimWithoutRead;
                Some(if is_hasty { Step::Run } else { Step::Read })
            }
            Take::Ack => None,
            Take::Postpone(left) => {
                let is_held = self
                    .store
                    .record
                    .is_some_and(|record| record.claim.is_some_and(|claim| claim.1 > 0));
                if self.variant == Variant::LeasedAcked && is_held {
                    return None;
                }
                Some(Step::PutOff(i8::try_from(left).unwrap_or(i8::MAX)))
            }
            Take::StateLost => Some(Step::Lose),
        }
    }

    fn take(&mut self, slot: usize, Letter { ticket, about, life, .. }: Letter) -> Take {
        let is_other = self.store.record.is_some_and(|record| record.about != about);
        let is_ignored = match self.variant {
            Variant::NoClaim => true,
            Variant::ClaimPerApproval => is_other,
            _ => false,
        };
        if is_ignored && let Some(record) = &mut self.store.record {
            record.claim = None;
        }
        let known = (ticket.kind != TicketKind::Resume && self.variant != Variant::NoDigest)
            .then_some(life);
        let taken = self.store.take(ticket, known, slot);
        if matches!(taken, Take::Claimed(_))
            && let Some(record) = &mut self.store.record
        {
            record.about = about;
        }
        taken
    }

    /// The claim is granted, with what is decided among these questions.
    fn go_on(&mut self, slot: usize, run: &mut Run, number: u64, among: u8) {
        let holder = self.store.record.and_then(|record| record.claim);
        run.number = number;
        run.is_leased = holder.is_some_and(|(holder, _)| holder == slot);
        self.note_resumed(number);
        let rulings: Vec<(usize, Said)> = self.store.rulings(among).collect();
        for (n, said) in rulings {
            run.known = with(run.known, n);
            self.note_told(n, said);
        }
    }

    /// The worker does its next step.
    pub(super) fn advance(&mut self, slot: usize) {
        let Some(mut run) = self.runs[slot].take() else { return };
        let next = match run.step {
            Step::Read if self.store.has_result => Some(run.after_result()),
            Step::Read => Some(Step::Run),
            Step::Run => Some(self.handle(&mut run)),
            Step::Begin => self.begin(slot, &mut run),
            Step::Park(due) => Some(self.park(slot, &mut run, due)),
            Step::Wake(due) => {
                self.letters.push(Letter::of(&run, TicketKind::Wake, run.number, due));
                Some(Step::Hold)
            }
            Step::Finish | Step::Lose => {
                self.store.has_result = true;
                self.seen.ended = true;
                self.seen.lost |= run.step == Step::Lose;
                Some(run.after_result())
            }
            Step::End => {
                self.store.end(run.letter.life);
                Some(Step::Ack)
            }
            Step::PutOff(delay) => {
                self.letters.push(Letter { delay, ..run.letter });
                Some(Step::Ack)
            }
            Step::PassOn => {
                let _ = self.store.park((run.letter.life, run.number + 1), 0, slot, self.variant);
                Some(Step::Ack)
            }
            Step::Hold | Step::Ack => None,
        };
        match next {
            Some(step) => self.runs[slot] = Some(Run { step, ..run }),
            None => self.orphan(slot),
        }
    }

    /// The handler runs to its end, or asks what it does not know: then the wake message is sent.
    fn handle(&mut self, run: &mut Run) -> Step {
        if run.known == BOTH {
            // An earlier task runs again if its worker died before it noted the end.
            self.seen.effects += u8::from(run.letter.life == self.faults.lives);
            return Step::Finish;
        }
        run.is_acked |= self.variant == Variant::AckBeforePark;
        if run.has_no_record() && self.variant != Variant::WakeBeforeClaim {
            return Step::Begin;
        }
        let due = questions(BOTH & !run.known).map(|n| PATIENCE[n]).min().unwrap_or(0);
        if !matches!(self.variant, Variant::WakeAfterPark | Variant::NoWake) {
            self.letters.push(Letter::of(run, TicketKind::Wake, run.number + 1, due));
        }
        Step::Park(due)
    }

    /// `None`: it is acked.
    fn begin(&mut self, slot: usize, run: &mut Run) -> Option<Step> {
        let is_replaced = self.store.record.is_some_and(|record| record.ended);
        let starts_anew = self.variant != Variant::OneLife;
        match self.store.begin(run.letter.life, starts_anew, slot) {
            Take::Claimed(number) => {
                (run.number, run.first) = (number, number);
                run.is_leased = true;
                // Another copy of its message may have ended.
                Some(if is_replaced { Step::Read } else { Step::Run })
            }
            Take::Ack => None,
            Take::Occupied => {
                self.seen.buried = true;
                None
            }
            _ => {
                run.letter = run.letter.returned();
                Some(Step::PutOff(LEASE))
            }
        }
    }

    fn park(&mut self, slot: usize, run: &mut Run, due: i8) -> Step {
        let waits = BOTH & !run.known;
        match self.store.park((run.letter.life, run.number + 1), waits, slot, self.variant) {
            Parked::Ready => {
                let number = run.number + 1;
                self.go_on(slot, run, number, waits);
                Step::Run
            }
            Parked::Waiting => {
                run.number += 1;
                run.is_leased = false;
                let sooner = self.store.due_in(waits);
                let is_sooner = sooner < due || self.variant == Variant::WakeAfterPark;
                if is_sooner { Step::Wake(sooner) } else { Step::Hold }
            }
            Parked::Behind => Step::Ack,
        }
    }

    /// A decision comes in the hold: the run goes on, unless another one has begun to.
    pub(super) fn claim_back(&mut self, slot: usize) {
        let Some(mut run) = self.runs[slot].take() else { return };
        let ticket = Ticket { kind: TicketKind::Resume, number: run.number };
        if let Take::Claimed(number) = self.take(slot, Letter { ticket, ..run.letter }) {
            self.go_on(slot, &mut run, number, BOTH);
            let is_hasty = self.variant == Variant::HoldWithoutRead;
            let step = if is_hasty { Step::Run } else { Step::Read };
            self.runs[slot] = Some(Run { step, ..run });
        }
    }

    /// What a run in its hold hears.
    pub(super) fn hears_bell(&self, slot: usize) -> bool {
        let held = self.runs[slot].filter(|run| run.step == Step::Hold);
        held.is_some_and(|run| {
            questions(BOTH & !run.known).any(|n| self.store.ballots[n].is_some())
        })
    }

    /// The handler fails at its end: the next attempt is sent.
    pub(super) fn fail(&mut self, slot: usize) {
        if let Some(run) = &mut self.runs[slot] {
            let next = Letter::of(run, TicketKind::Original, run.number + 1, 1);
            self.letters.push(next);
            run.is_leased = false;
            run.step = Step::PassOn;
            self.faults.retries += 1;
        }
    }

    /// A renewal finds that the claim is not its own any more.
    pub(super) fn has_lost(&self, slot: usize) -> bool {
        let leased = self.runs[slot].filter(|run| run.is_leased && run.step == Step::Run);
        leased.is_some() && !self.store.clone().renew(slot)
    }

    pub(super) fn lose_claim(&mut self, slot: usize) {
        if let Some(run) = &mut self.runs[slot] {
            let is_of_message = run.first == run.number;
            run.step = if is_of_message { Step::PutOff(LEASE) } else { Step::Ack };
            run.letter = run.letter.returned();
            run.is_leased = false;
        }
    }

    pub(super) fn crash(&mut self, slot: usize) {
        if let Some(run) = self.runs[slot].take() {
            self.seen.died += u8::from(run.step == Step::Finish);
            self.faults.crashes += 1;
            self.orphan(slot);
            self.letters.extend((!run.is_acked).then(|| run.letter.returned()));
        }
    }

    /// A worker that drains gives back what it runs.
    pub(super) fn drain(&mut self, slot: usize) {
        if let Some(run) = self.runs[slot].take() {
            self.faults.drains += 1;
            if run.is_leased {
                self.store.release(slot);
            }
            self.letters.push(run.letter.returned());
        }
    }

    /// A tick passes for all: delays, deadlines, leases. Whoever lives renews his.
    pub(super) fn tick(&mut self) {
        for letter in &mut self.letters {
            letter.delay = (letter.delay - 1).max(0);
        }
        self.store.tick(self.variant);
        for slot in 0..NOBODY {
            if self.runs[slot].is_some_and(|run| run.is_leased && !run.is_stalled) {
                self.store.renew(slot);
            }
        }
    }
}

impl Run {
    /// There is a result.
    fn after_result(&self) -> Step {
        if self.has_no_record() { Step::Ack } else { Step::End }
    }

    /// As `Claim::has_record` of `worker/claim.rs` does not say.
    fn has_no_record(&self) -> bool {
        self.number == 0 && !self.is_leased
    }
}
