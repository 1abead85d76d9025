//! The steps of a worker with a delivery, in the order of `worker/claim_delivery.rs`, `execute.rs`,
//! `suspend.rs` and `settle.rs`. A crash may happen between any two calls of these methods.

use super::state::{Message, ModelState, Mutant, ObservedOutcome, Run, Step};
use super::store::{DEADLINES, LEASE, NO_HOLDER, requests_in, with};
use crate::lifecycle::suspension::{ClaimOutcome, SuspendOutcome};
use crate::protocol::{SuspendHeader, SuspendKind};

const BOTH: u8 = 0b11;

impl ModelState {
    /// Delivers a message to a worker, which tries to claim its task.
    pub(super) fn deliver(&mut self, slot: usize, message: Message) {
        if let Some(at) = self.messages.iter().position(|other| *other == message) {
            self.messages.swap_remove(at);
        }
        let mut run = Run {
            message,
            step: Step::Read,
            number: message.header.number,
            first: message.header.number,
            is_leased: false,
            is_stalled: false,
            is_acked: false,
            known: 0,
        };
        let is_first_hand = message.header.number == 0 && !message.redelivered;
        let step =
            if is_first_hand { Some(Step::Run) } else { self.claim_delivery(slot, &mut run) };
        self.runs[slot] = step.map(|step| Run { step, ..run });
    }

    /// Returns the next step; `None` if the message is acked.
    fn claim_delivery(&mut self, slot: usize, run: &mut Run) -> Option<Step> {
        match self.claim_message(slot, run.message) {
            ClaimOutcome::Unclaimed | ClaimOutcome::Ended => Some(Step::Read),
            ClaimOutcome::Occupied => {
                self.observed.dead_lettered = true;
                None
            }
            ClaimOutcome::Claimed(number) => {
                let record = self.store.record?;
                self.observed.mixed |=
                    record.generation != run.message.generation && !record.has_message;
                if run.message.header.kind == SuspendKind::Resume && !record.has_message {
                    self.store.release(slot);
                    return Some(Step::Ack);
                }
                if record.has_message {
                    // The stored message replaces it.
                    run.message.generation = record.generation;
                }
                self.continue_run(slot, run, number, BOTH);
                let skips_read = self.mutant == Mutant::ClaimWithoutRead;
                Some(if skips_read { Step::Run } else { Step::Read })
            }
            ClaimOutcome::Ack => None,
            ClaimOutcome::Postpone(left) => {
                let is_held = self
                    .store
                    .record
                    .is_some_and(|record| record.claim.is_some_and(|claim| claim.1 > 0));
                if self.mutant == Mutant::LeasedAcked && is_held {
                    return None;
                }
                if self.mutant == Mutant::BackstopNotRenewed && !is_held {
                    return None;
                }
                // A message that waits for a lease is not late: no sweep looks for leases.
                run.message.is_backstop = !is_held;
                Some(Step::PutOff(i8::try_from(left).unwrap_or(i8::MAX)))
            }
            ClaimOutcome::StateLost => Some(Step::Lose),
        }
    }

    fn claim_message(
        &mut self,
        slot: usize,
        Message { header, about, generation, .. }: Message,
    ) -> ClaimOutcome {
        let is_other = self.store.record.is_some_and(|record| record.about != about);
        let is_ignored = match self.mutant {
            Mutant::NoClaim => true,
            Mutant::ClaimPerApproval => is_other,
            _ => false,
        };
        if is_ignored && let Some(record) = &mut self.store.record {
            record.claim = None;
        }
        let known = (header.kind != SuspendKind::Resume && self.mutant != Mutant::NoDigest)
            .then_some(generation);
        let outcome = self.store.claim_record(header, known, slot);
        if matches!(outcome, ClaimOutcome::Claimed(_))
            && let Some(record) = &mut self.store.record
        {
            record.about = about;
        }
        outcome
    }

    /// The claim was granted: reads the outcomes of these requests.
    fn continue_run(&mut self, slot: usize, run: &mut Run, number: u64, among: u8) {
        let holder = self.store.record.and_then(|record| record.claim);
        run.number = number;
        run.is_leased = holder.is_some_and(|(holder, _)| holder == slot);
        self.count_resume(number);
        let outcomes: Vec<(usize, ObservedOutcome)> = self.store.outcomes(among).collect();
        for (n, outcome) in outcomes {
            run.known = with(run.known, n);
            self.observe_outcome(n, outcome);
        }
    }

    /// Runs the worker's next step.
    pub(super) fn advance(&mut self, slot: usize) {
        let Some(mut run) = self.runs[slot].take() else { return };
        let next = match run.step {
            Step::Read if self.store.has_result => Some(run.after_result()),
            Step::Read => Some(Step::Run),
            Step::Run => Some(self.handle(&mut run)),
            Step::Begin => self.begin(slot, &mut run),
            Step::Suspend(due) => Some(self.suspend(slot, &mut run, due)),
            Step::Wake(due) => {
                self.messages.push(Message::of(&run, SuspendKind::Wake, run.number, due));
                Some(Step::Hold)
            }
            Step::Finish | Step::Lose => {
                self.store.has_result = true;
                self.observed.ended = true;
                self.observed.lost |= run.step == Step::Lose;
                Some(run.after_result())
            }
            Step::End => {
                self.store.end(run.message.generation);
                Some(Step::Ack)
            }
            Step::PutOff(delay) => {
                self.messages.push(Message { delay, ..run.message });
                Some(Step::Ack)
            }
            Step::PassOn => {
                let _ = self.store.suspend(
                    (run.message.generation, run.number + 1),
                    0,
                    slot,
                    self.mutant,
                );
                Some(Step::Ack)
            }
            Step::Hold | Step::Ack => None,
        };
        match next {
            Some(step) => self.runs[slot] = Some(Run { step, ..run }),
            None => self.orphan(slot),
        }
    }

    /// The handler finishes, or makes the undecided requests: then the wake message is sent.
    fn handle(&mut self, run: &mut Run) -> Step {
        if run.known == BOTH {
            // An earlier task runs again if its worker died before it stored the end.
            self.observed.effects += u8::from(run.message.generation == self.faults.generations);
            return Step::Finish;
        }
        run.is_acked |= self.mutant == Mutant::AckBeforeSuspend;
        if run.has_no_record() && self.mutant != Mutant::WakeBeforeClaim {
            return Step::Begin;
        }
        let due = requests_in(BOTH & !run.known).map(|n| DEADLINES[n]).min().unwrap_or(0);
        if !matches!(
            self.mutant,
            Mutant::WakeAfterSuspend | Mutant::NoWake | Mutant::NeitherWakeNorSweep
        ) {
            self.messages.push(Message::of(run, SuspendKind::Wake, run.number + 1, due));
        }
        Step::Suspend(due)
    }

    /// Returns the next step; `None` if the message is acked.
    fn begin(&mut self, slot: usize, run: &mut Run) -> Option<Step> {
        let is_replaced = self.store.record.is_some_and(|record| record.ended);
        let starts_anew = self.mutant != Mutant::OneGeneration;
        match self.store.begin(run.message.generation, starts_anew, slot) {
            ClaimOutcome::Claimed(number) => {
                (run.number, run.first) = (number, number);
                run.is_leased = true;
                // Another copy of its message may have ended.
                Some(if is_replaced { Step::Read } else { Step::Run })
            }
            ClaimOutcome::Ack => None,
            ClaimOutcome::Occupied => {
                self.observed.dead_lettered = true;
                None
            }
            _ => {
                run.message = run.message.returned();
                Some(Step::PutOff(LEASE))
            }
        }
    }

    fn suspend(&mut self, slot: usize, run: &mut Run, due: i8) -> Step {
        let waits = BOTH & !run.known;
        match self.store.suspend((run.message.generation, run.number + 1), waits, slot, self.mutant)
        {
            SuspendOutcome::Ready => {
                let number = run.number + 1;
                self.continue_run(slot, run, number, waits);
                Step::Run
            }
            SuspendOutcome::Waiting => {
                run.number += 1;
                run.is_leased = false;
                let sooner = self.store.due_in(waits);
                let is_sooner = sooner < due || self.mutant == Mutant::WakeAfterSuspend;
                if is_sooner { Step::Wake(sooner) } else { Step::Hold }
            }
            SuspendOutcome::Behind => Step::Ack,
        }
    }

    /// A decision arrives during the inline wait: the run continues, unless another run has claimed the task.
    pub(super) fn reacquire(&mut self, slot: usize) {
        let Some(mut run) = self.runs[slot].take() else { return };
        let header = SuspendHeader { kind: SuspendKind::Resume, number: run.number };
        if let ClaimOutcome::Claimed(number) =
            self.claim_message(slot, Message { header, ..run.message })
        {
            self.continue_run(slot, &mut run, number, BOTH);
            let skips_read = self.mutant == Mutant::HoldWithoutRead;
            let step = if skips_read { Step::Run } else { Step::Read };
            self.runs[slot] = Some(Run { step, ..run });
        }
    }

    /// Returns whether a run in its inline wait gets a notification.
    pub(super) fn is_notified(&self, slot: usize) -> bool {
        let held = self.runs[slot].filter(|run| run.step == Step::Hold);
        held.is_some_and(|run| {
            requests_in(BOTH & !run.known).any(|n| self.store.decisions[n].is_some())
        })
    }

    /// The handler fails at its end: the next attempt is sent.
    pub(super) fn fail(&mut self, slot: usize) {
        if let Some(run) = &mut self.runs[slot] {
            let next = Message::of(run, SuspendKind::Original, run.number + 1, 1);
            self.messages.push(next);
            run.is_leased = false;
            run.step = Step::PassOn;
            self.faults.retries += 1;
        }
    }

    /// Returns whether a renewal would find that another run has the claim.
    pub(super) fn has_lost(&self, slot: usize) -> bool {
        let leased = self.runs[slot].filter(|run| run.is_leased && run.step == Step::Run);
        leased.is_some() && !self.store.clone().renew(slot)
    }

    pub(super) fn lose_claim(&mut self, slot: usize) {
        if let Some(run) = &mut self.runs[slot] {
            let is_of_message = run.first == run.number;
            run.step = if is_of_message { Step::PutOff(LEASE) } else { Step::Ack };
            run.message = run.message.returned();
            run.is_leased = false;
        }
    }

    pub(super) fn crash(&mut self, slot: usize) {
        if let Some(run) = self.runs[slot].take() {
            self.observed.died += u8::from(run.step == Step::Finish);
            self.faults.crashes += 1;
            self.orphan(slot);
            self.messages.extend((!run.is_acked).then(|| run.message.returned()));
        }
    }

    /// A draining worker returns its running task.
    pub(super) fn drain(&mut self, slot: usize) {
        if let Some(run) = self.runs[slot].take() {
            self.faults.drains += 1;
            if run.is_leased {
                self.store.release(slot);
            }
            self.messages.push(run.message.returned());
        }
    }

    /// Advances the time for all delays, deadlines and leases; backstops may be late. Live workers renew their
    /// leases.
    pub(super) fn tick(&mut self, are_backstops_late: bool) {
        for message in &mut self.messages {
            let is_late = are_backstops_late && message.is_backstop;
            message.delay = (message.delay - i8::from(!is_late)).max(0);
            message.is_backstop &= message.delay > 0;
        }
        self.store.tick(self.mutant);
        for slot in 0..NO_HOLDER {
            if self.runs[slot].is_some_and(|run| run.is_leased && !run.is_stalled) {
                self.store.renew(slot);
            }
        }
    }
}

impl Run {
    /// Returns the next step after a result was found or stored.
    fn after_result(&self) -> Step {
        if self.has_no_record() { Step::Ack } else { Step::End }
    }

    /// The negation of `Claim::has_record` of `worker/claim.rs`.
    fn has_no_record(&self) -> bool {
        self.number == 0 && !self.is_leased
    }
}
