//! Everything that may happen next, in any order.

use stateright::{Model, Property};

use super::errand::SWEEPER;
use super::promises;
use super::store::{NOBODY, QUESTIONS, Store};
use super::world::{Entry, Errand, Faults, Letter, Step, Variant, World};

/// A protocol, and how much may go wrong.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) variant: Variant,
    pub(super) limits: Faults,
}

/// One step of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// To this worker, this message.
    Deliver(usize, Letter),
    Advance(usize, Step),
    HearBell(usize),
    LoseClaim(usize),
    /// This decider decides this question.
    Decide(usize, usize),
    RunErrand(usize, Errand),
    Sweep(Entry, bool),
    Tick,
    /// The handler's own fault.
    Fail(usize),
    Crash(usize),
    Quit(usize),
    Drain(usize),
    Stall(usize),
    Wipe,
    /// The id is used again.
    Reuse,
}

impl Action {
    /// Nothing needs to go wrong so.
    pub(super) fn is_fault(self) -> bool {
        use Action::{Crash, Drain, Fail, Quit, Reuse, Stall, Wipe};
        matches!(self, Crash(_) | Drain(_) | Fail(_) | Quit(_) | Stall(_) | Wipe | Reuse)
    }
}

impl Model for Pool {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.variant)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.deliveries(world, actions);
        for (slot, run) in world.runs.iter().enumerate() {
            let Some(run) = run else { continue };
            actions.push(Action::Advance(slot, run.step));
            if world.hears_bell(slot) {
                actions.push(Action::HearBell(slot));
            }
            if world.has_lost(slot) {
                actions.push(Action::LoseClaim(slot));
            }
        }
        for (who, errand) in world.errands.iter().enumerate() {
            if *errand != Errand::None {
                actions.push(Action::RunErrand(who, *errand));
            } else if who != SWEEPER {
                actions.extend((0..QUESTIONS).map(|n| Action::Decide(who, n)));
            } else {
                let may_be_slow = world.faults.slow < self.limits.slow;
                let swept = world.overdue().filter(|(_, is_doubled)| may_be_slow || !is_doubled);
                actions.extend(swept.map(|(entry, is_doubled)| Action::Sweep(entry, is_doubled)));
            }
        }
        actions.push(Action::Tick);
        self.faults(world, actions);
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Deliver(slot, letter) => world.deliver(slot, letter),
            Action::Advance(slot, _) => world.advance(slot),
            Action::HearBell(slot) => world.claim_back(slot),
            Action::LoseClaim(slot) => world.lose_claim(slot),
            Action::Decide(who, n) => world.decide(who, n).then_some(())?,
            Action::RunErrand(who, _) => world.run_errand(who),
            Action::Sweep(entry, is_doubled) => world.sweep(entry, is_doubled),
            Action::Tick => world.tick(),
            Action::Fail(slot) => world.fail(slot),
            Action::Crash(slot) => world.crash(slot),
            Action::Quit(who) => world.quit(who),
            Action::Drain(slot) => world.drain(slot),
            Action::Stall(slot) => {
                world.runs[slot].as_mut()?.is_stalled = true;
                world.faults.stalls += 1;
            }
            Action::Reuse => world.reuse(),
            Action::Wipe => {
                world.store = Store::default();
                world.faults.wipes += 1;
            }
        }
        let world = world.normal(&self.limits);
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::all(self)
    }
}

impl Pool {
    /// A worker with nothing to do takes any message that is not delayed.
    fn deliveries(&self, world: &World, actions: &mut Vec<Action>) {
        let Some(slot) = (0..NOBODY).find(|slot| world.runs[*slot].is_none()) else { return };
        let mut last = None;
        for letter in world.letters.iter().filter(|letter| letter.delay == 0) {
            if last.replace(letter) != Some(letter) {
                actions.push(Action::Deliver(slot, *letter));
            }
        }
    }

    fn faults(&self, world: &World, actions: &mut Vec<Action>) {
        let (limits, happened) = (self.limits, world.faults);
        let may_crash = happened.crashes < limits.crashes;
        for (slot, run) in world.runs.iter().enumerate() {
            let Some(run) = run else { continue };
            let is_running = run.step == Step::Run;
            if may_crash {
                actions.push(Action::Crash(slot));
            }
            if is_running && happened.drains < limits.drains {
                actions.push(Action::Drain(slot));
            }
            if run.is_leased && !run.is_stalled && happened.stalls < limits.stalls {
                actions.push(Action::Stall(slot));
            }
            if is_running && run.known == 0b11 && happened.retries < limits.retries {
                actions.push(Action::Fail(slot));
            }
        }
        for (who, errand) in world.errands.iter().enumerate() {
            if may_crash && *errand != Errand::None {
                actions.push(Action::Quit(who));
            }
        }
        if happened.lives < limits.lives && world.may_be_reused() {
            actions.push(Action::Reuse);
        }
        if happened.wipes < limits.wipes && !world.seen.ended {
            actions.push(Action::Wipe);
        }
    }
}
