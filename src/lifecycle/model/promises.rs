//! What is promised, whatever happens; and what is to happen at all, so that the promises are not
//! kept by a world in which nothing does.

use stateright::Property;

use super::pool::Pool;
use super::store::{NOBODY, questions};
use super::world::{Errand, Said, Step, World};
use crate::protocol::TicketKind;

/// A promise, by its name.
type Promise = (&'static str, fn(&Pool, &World) -> bool);

pub(super) const NOT_LOST: &str = "until the task has ended, a message of it is there";
pub(super) const NOT_SAID_LOST: &str = "a task is said to be lost only when the store forgot it";
pub(super) const ONE_DECISION: &str = "one decision counts";
pub(super) const ONE_TRUTH: &str = "every run is told the same decision";
pub(super) const ONE_EFFECT: &str =
    "a handler ends once, and once more for each that died at its end";
pub(super) const ONE_RUN: &str = "nobody runs beside another";
pub(super) const ONE_RESUME: &str = "each park is taken up once";
pub(super) const OWN_TASK: &str = "a message runs only its own task";
pub(super) const NO_WAIT: &str = "a decided task does not wait for its deadline";

const ALWAYS: [Promise; 9] = [
    (OWN_TASK, |_, world| !world.seen.mixed),
    (NOT_LOST, |_, world| world.seen.ended || world.seen.buried || has_message(world)),
    (NOT_SAID_LOST, |_, world| !world.seen.lost || world.faults.wipes > 0),
    (ONE_DECISION, |_, world| {
        world.faults.wipes > 0 || world.seen.applied.iter().all(|times| *times <= 1)
    }),
    (ONE_TRUTH, |_, world| world.faults.wipes > 0 || !world.seen.contradicted),
    (ONE_EFFECT, |_, world| {
        let excused = world.seen.died + world.faults.stalls;
        world.faults.wipes > 0 || world.seen.effects <= 1 + excused
    }),
    (ONE_RUN, |_, world| {
        let is_running = |run: &&super::world::Run| matches!(run.step, Step::Run | Step::Finish);
        let runs = || world.runs.iter().flatten().filter(is_running);
        // Two tasks with one id may run at the same time.
        let is_one = |life| runs().filter(|run| run.letter.life == life).count() <= 1;
        (is_one(0) && is_one(1)) || world.faults.wipes + world.faults.stalls > 0
    }),
    (ONE_RESUME, |_, world| world.seen.resumed.iter().all(|times| *times <= 1)),
    (NO_WAIT, |_, world| world.faults.wipes > 0 || !is_left_to_its_wake(world)),
];

pub(super) fn all(pool: &Pool) -> Vec<Property<Pool>> {
    let mut all: Vec<_> = ALWAYS.map(|(name, holds)| Property::always(name, holds)).into();
    all.push(Property::sometimes("it ends by two decisions", |_, world: &World| {
        world.seen.effects > 0
            && world.seen.told.iter().all(|said| matches!(said, Some(Said::By(_))))
    }));
    all.push(Property::sometimes("it ends by a deadline", |_, world: &World| {
        world.seen.effects > 0 && world.seen.told.contains(&Some(Said::Expired))
    }));
    if pool.limits.crashes > 0 {
        all.push(Property::sometimes("it ends after a crash", |_, world: &World| {
            world.seen.effects > 0 && world.faults.crashes > 0 && is_settled(world)
        }));
    }
    if pool.limits.lives > 0 {
        all.push(Property::sometimes("a second task with the id ends", |_, world: &World| {
            world.faults.lives > 0 && world.seen.effects > 0 && is_settled(world)
        }));
    }
    if pool.limits.wipes > 0 {
        all.push(Property::sometimes("it ends after the store forgot it", |_, world: &World| {
            world.seen.lost && is_settled(world)
        }));
    }
    all
}

/// The task has ended, and nothing of it is on its way.
pub(super) fn is_settled(world: &World) -> bool {
    let nobody_acts = world.runs == [None; 2] && world.errands == [Errand::None; 3];
    world.seen.ended && nobody_acts && world.letters.is_empty() && world.store.outbox.is_empty()
}

/// In the broker, or in a worker's hands and not acked.
fn has_message(world: &World) -> bool {
    let life = world.faults.lives;
    let is_held = world.runs.iter().flatten().any(|run| !run.is_acked && run.letter.life == life);
    is_held || world.letters.iter().any(|letter| letter.life == life)
}

/// Something is decided that a parked task waits for, and only a delayed wake message, or none,
/// will tell it.
fn is_left_to_its_wake(world: &World) -> bool {
    let Some(record) = world.store.record.filter(|record| !record.ended) else { return false };
    let is_decided = questions(record.waits).any(|n| world.store.ballots[n].is_some());
    let runs = record.claim.is_some_and(|(holder, _)| holder != NOBODY);
    let is_sent = world.letters.iter().any(|letter| {
        let is_delayed = letter.ticket.kind == TicketKind::Wake && letter.delay > 0;
        letter.ticket.number >= record.number && !is_delayed
    });
    let is_held = world.runs.iter().flatten().any(|run| run.letter.ticket.number >= record.number);
    let is_noted = world.store.outbox.iter().any(|(entry, _)| entry.number == record.number);
    let is_carried = world
        .errands
        .iter()
        .any(|errand| matches!(errand, Errand::Send(entry) if entry.number == record.number));
    is_decided && !(runs || is_sent || is_held || is_noted || is_carried)
}
