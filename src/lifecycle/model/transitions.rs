//! All possible next actions, in any order.

use stateright::{Model, Property};

use super::decider::SWEEPER;
use super::pool::{Action, Pool};
use super::properties;
use super::state::{DeciderState, ModelState, Step};
use super::store::{NO_HOLDER, REQUESTS, Store};

impl Model for Pool {
    type State = ModelState;
    type Action = Action;

    fn init_states(&self) -> Vec<ModelState> {
        vec![ModelState::new(self.mutant)]
    }

    fn actions(&self, state: &ModelState, actions: &mut Vec<Action>) {
        self.deliveries(state, actions);
        for (slot, run) in state.runs.iter().enumerate() {
            let Some(run) = run else { continue };
            actions.push(Action::Advance(slot, run.step));
            if state.is_notified(slot) {
                actions.push(Action::Notify(slot));
            }
            if state.has_lost(slot) {
                actions.push(Action::LoseClaim(slot));
            }
        }
        for (who, decider) in state.deciders.iter().enumerate() {
            if *decider != DeciderState::None {
                actions.push(Action::RunDecider(who, *decider));
            } else if who != SWEEPER {
                actions.extend((0..REQUESTS).map(|n| Action::Decide(who, n)));
            } else {
                let may_be_slow = state.faults.slow < self.limits.slow;
                let swept = state.overdue().filter(|(_, is_doubled)| may_be_slow || !is_doubled);
                actions.extend(swept.map(|(entry, is_doubled)| Action::Sweep(entry, is_doubled)));
                actions.extend(state.expired().map(Action::Expire));
            }
        }
        actions.extend([Action::Tick, Action::TickLate]);
        self.faults(state, actions);
    }

    fn next_state(&self, before: &ModelState, action: Action) -> Option<ModelState> {
        let mut state = before.clone();
        match action {
            Action::Deliver(slot, message) => state.deliver(slot, message),
            Action::Advance(slot, _) => state.advance(slot),
            Action::Notify(slot) => state.reacquire(slot),
            Action::LoseClaim(slot) => state.lose_claim(slot),
            Action::Decide(who, n) => state.decide(who, n).then_some(())?,
            Action::RunDecider(who, _) => state.run_decider(who),
            Action::Sweep(entry, is_doubled) => state.sweep(entry, is_doubled),
            Action::Expire(n) => state.expire(n),
            Action::Tick => state.tick(false),
            Action::TickLate => state.tick(true),
            Action::Fail(slot) => state.fail(slot),
            Action::Crash(slot) => state.crash(slot),
            Action::Quit(who) => state.quit(who),
            Action::Drain(slot) => state.drain(slot),
            Action::Stall(slot) => {
                state.runs[slot].as_mut()?.is_stalled = true;
                state.faults.stalls += 1;
            }
            Action::Reuse => state.reuse(),
            Action::Wipe => {
                state.store = Store::default();
                state.faults.wipes += 1;
            }
        }
        let state = state.normalized(&self.limits);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }
}

impl Pool {
    /// An idle worker consumes any message that is not delayed.
    fn deliveries(&self, state: &ModelState, actions: &mut Vec<Action>) {
        let Some(slot) = (0..NO_HOLDER).find(|slot| state.runs[*slot].is_none()) else { return };
        let mut last = None;
        for message in state.messages.iter().filter(|message| message.delay == 0) {
            if last.replace(message) != Some(message) {
                actions.push(Action::Deliver(slot, *message));
            }
        }
    }

    fn faults(&self, state: &ModelState, actions: &mut Vec<Action>) {
        let (limits, happened) = (self.limits, state.faults);
        let may_crash = happened.crashes < limits.crashes;
        for (slot, run) in state.runs.iter().enumerate() {
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
        for (who, decider) in state.deciders.iter().enumerate() {
            if may_crash && *decider != DeciderState::None {
                actions.push(Action::Quit(who));
            }
        }
        if happened.generations < limits.generations && state.may_be_reused() {
            actions.push(Action::Reuse);
        }
        if happened.wipes < limits.wipes && !state.observed.ended {
            actions.push(Action::Wipe);
        }
    }
}
