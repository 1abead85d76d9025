//! Safety properties that always hold, and states that must be reachable, so that the safety properties do
//! not hold trivially.

use stateright::Property;

use super::pool::Pool;
use super::state::{DeciderState, Message, ModelState, ObservedOutcome, Step};
use super::store::{NO_HOLDER, requests_in};
use crate::protocol::SuspendKind;

/// A property and its name.
type Check = (&'static str, fn(&Pool, &ModelState) -> bool);

pub(super) const NOT_LOST: &str = "until the task has ended, it has a message";
pub(super) const NOT_REPORTED_LOST: &str =
    "a task is reported lost only when the store lost its state";
pub(super) const ONE_DECISION: &str = "one decision counts";
pub(super) const SAME_OUTCOME: &str = "every run reads the same outcome";
pub(super) const ONE_EFFECT: &str = "a handler ends once, and once more for each crash at its end";
pub(super) const ONE_RUN: &str = "at most one run of a task at a time";
pub(super) const ONE_RESUME: &str = "each suspension is resumed once";
pub(super) const OWN_TASK: &str = "a message runs only its own task";
pub(super) const NO_WAIT: &str = "a decided task does not wait for its deadline";
pub(super) const NO_LATE: &str = "an overdue task does not wait for its backstop";

const ALWAYS: [Check; 10] = [
    (OWN_TASK, |_, state| !state.observed.mixed),
    (NOT_LOST, |_, state| {
        state.observed.ended || state.observed.dead_lettered || has_message(state)
    }),
    (NOT_REPORTED_LOST, |_, state| !state.observed.lost || state.faults.wipes > 0),
    (ONE_DECISION, |_, state| {
        state.faults.wipes > 0 || state.observed.applied.iter().all(|times| *times <= 1)
    }),
    (SAME_OUTCOME, |_, state| state.faults.wipes > 0 || !state.observed.contradicted),
    (ONE_EFFECT, |_, state| {
        let excused = state.observed.died + state.faults.stalls;
        state.faults.wipes > 0 || state.observed.effects <= 1 + excused
    }),
    (ONE_RUN, |_, state| {
        let is_running = |run: &&super::state::Run| matches!(run.step, Step::Run | Step::Finish);
        let runs = || state.runs.iter().flatten().filter(is_running);
        // Two tasks with one id may run at the same time.
        let is_one =
            |generation| runs().filter(|run| run.message.generation == generation).count() <= 1;
        (is_one(0) && is_one(1)) || state.faults.wipes + state.faults.stalls > 0
    }),
    (ONE_RESUME, |_, state| state.observed.resumed.iter().all(|times| *times <= 1)),
    (NO_WAIT, |_, state| {
        let is_decided = |n: usize| state.store.decisions[n].is_some();
        state.faults.wipes > 0
            || !is_left_to_its_wake(state, is_decided, |it| it.header.kind == SuspendKind::Wake)
    }),
    (NO_LATE, |_, state| {
        let is_overlooked =
            |n: usize| state.store.is_expired(n) && state.store.indexed >> n & 1 == 0;
        state.faults.wipes > 0 || !is_left_to_its_wake(state, is_overlooked, |it| it.is_backstop)
    }),
];

pub(super) fn all(pool: &Pool) -> Vec<Property<Pool>> {
    let mut all: Vec<_> = ALWAYS.map(|(name, holds)| Property::always(name, holds)).into();
    all.push(Property::sometimes("it ends by two decisions", |_, state: &ModelState| {
        state.observed.effects > 0
            && state
                .observed
                .outcomes
                .iter()
                .all(|outcome| matches!(outcome, Some(ObservedOutcome::By(_))))
    }));
    all.push(Property::sometimes("it ends by a deadline", |_, state: &ModelState| {
        state.observed.effects > 0
            && state.observed.outcomes.contains(&Some(ObservedOutcome::Expired))
    }));
    if pool.limits.crashes > 0 {
        all.push(Property::sometimes("it ends after a crash", |_, state: &ModelState| {
            state.observed.effects > 0 && state.faults.crashes > 0 && is_settled(state)
        }));
    }
    if pool.limits.generations > 0 {
        all.push(Property::sometimes("a second task with the id ends", |_, state: &ModelState| {
            state.faults.generations > 0 && state.observed.effects > 0 && is_settled(state)
        }));
    }
    if pool.limits.wipes > 0 {
        all.push(Property::sometimes(
            "it ends after the store lost it",
            |_, state: &ModelState| state.observed.lost && is_settled(state),
        ));
    }
    all
}

/// The task has ended, and no message, run or outbox entry is left.
pub(super) fn is_settled(state: &ModelState) -> bool {
    let is_idle = state.runs == [None; 2] && state.deciders == [DeciderState::None; 3];
    state.observed.ended && is_idle && state.messages.is_empty() && state.store.outbox.is_empty()
}

/// A message of the task is in the broker, or with a worker and not acked.
fn has_message(state: &ModelState) -> bool {
    let generation = state.faults.generations;
    let is_held = state
        .runs
        .iter()
        .flatten()
        .any(|run| !run.is_acked && run.message.generation == generation);
    is_held || state.messages.iter().any(|message| message.generation == generation)
}

/// A suspended task's request `is_over`, and only a delayed message that `is_wake`, or no message at all, would
/// resume the task.
fn is_left_to_its_wake(
    state: &ModelState,
    is_over: impl Fn(usize) -> bool,
    is_wake: impl Fn(&Message) -> bool,
) -> bool {
    let Some(record) = state.store.record.filter(|record| !record.ended) else { return false };
    let has_ended_wait = requests_in(record.waits).any(is_over);
    let runs = record.claim.is_some_and(|(holder, _)| holder != NO_HOLDER);
    let is_sent = state.messages.iter().any(|message| {
        message.header.number >= record.number && !(message.delay > 0 && is_wake(message))
    });
    let is_held = state.runs.iter().flatten().any(|run| run.message.header.number >= record.number);
    let is_noted = state.store.outbox.iter().any(|(entry, _)| entry.number == record.number);
    let is_carried = state.deciders.iter().any(
        |decider| matches!(decider, DeciderState::Send(entry) if entry.number == record.number),
    );
    has_ended_wait && !(runs || is_sent || is_held || is_noted || is_carried)
}
