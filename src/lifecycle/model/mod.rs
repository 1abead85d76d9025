//! A model check of the suspend and resume protocol: every order of every step of two workers, two deciders
//! and a sweeper, with faults between any two steps. The model's store uses the same functions that its
//! scripts are compared with.

mod decider;
mod liveness;
mod mutant;
mod observed_outcome;
mod outbox_entry;
mod pool;
mod properties;
mod state;
mod store;
mod transitions;
mod worker;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use liveness::path_to_dead_end;
use mutant::Mutant;
use pool::Pool;
use state::Faults;

const NONE: Faults =
    Faults { crashes: 0, wipes: 0, drains: 0, stalls: 0, retries: 0, slow: 0, generations: 0 };

/// Searches all states, and prints their number.
fn assert_properties_hold(limits: Faults) {
    let pool = Pool { mutant: Mutant::Correct, limits };
    let checker = pool.checker().threads(threads()).finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    println!("{} states with at most {limits:?}", checker.unique_state_count());
    checker.assert_properties();
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Searches for a violation of `property`, and prints the path to it.
fn breaks(mutant: Mutant, limits: Faults, property: &'static str) -> bool {
    let pool = Pool { mutant, limits };
    let enough = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = pool.checker().threads(threads()).finish_when(enough);
    let found = checker.spawn_bfs().join().discovery(property);
    let path = found.map(stateright::Path::into_actions);
    println!("{mutant:?}, {property}: {path:#?}");
    path.is_some()
}

#[test]
fn the_properties_hold_when_a_process_dies() {
    assert_properties_hold(Faults { crashes: 1, ..NONE });
}

#[test]
fn the_properties_hold_when_the_store_loses_everything() {
    assert_properties_hold(Faults { wipes: 1, ..NONE });
}

#[test]
fn the_properties_hold_when_a_worker_drains_and_when_a_handler_fails() {
    assert_properties_hold(Faults { drains: 1, ..NONE });
    assert_properties_hold(Faults { retries: 1, ..NONE });
}

#[test]
fn every_task_can_end() {
    for limits in [NONE, Faults { drains: 1, ..NONE }, Faults { crashes: 1, ..NONE }] {
        assert_eq!(path_to_dead_end(&Pool { mutant: Mutant::Correct, limits }), None);
    }
}

#[test]
#[ignore = "long: searches millions of states"]
fn the_properties_hold_despite_several_faults() {
    for limits in [
        Faults { stalls: 1, ..NONE },
        Faults { slow: 1, ..NONE },
        Faults { crashes: 1, drains: 1, ..NONE },
        Faults { crashes: 1, retries: 1, ..NONE },
        Faults { crashes: 2, ..NONE },
    ] {
        assert_properties_hold(limits);
    }
}

#[test]
#[ignore = "long: searches millions of states"]
fn every_task_can_end_despite_several_faults() {
    let ours = |limits| Pool { mutant: Mutant::Correct, limits };
    let crash = Faults { crashes: 1, ..NONE };
    for limits in [
        Faults { wipes: 1, ..NONE },
        Faults { retries: 1, ..NONE },
        Faults { stalls: 1, ..NONE },
        Faults { slow: 1, ..NONE },
        Faults { drains: 1, ..crash },
    ] {
        assert_eq!(path_to_dead_end(&ours(limits)), None);
    }
    let for_ever = Pool { mutant: Mutant::ClaimNeverExpires, limits: crash };
    assert_ne!(path_to_dead_end(&for_ever), None);
}

#[test]
fn every_mutant_breaks_a_property() {
    for (mutant, property) in [
        (Mutant::AckBeforeSuspend, properties::NOT_LOST),
        (Mutant::WakeBeforeClaim, properties::NOT_REPORTED_LOST),
        (Mutant::WakeAfterSuspend, properties::NOT_LOST),
        (Mutant::GetThenSet, properties::ONE_DECISION),
        (Mutant::GetThenSet, properties::SAME_OUTCOME),
        (Mutant::NoOutbox, properties::NO_WAIT),
        (Mutant::ClearBeforeSend, properties::NO_WAIT),
        (Mutant::ReadyWithoutOutbox, properties::NO_WAIT),
        (Mutant::TtlOnPending, properties::NOT_REPORTED_LOST),
        (Mutant::NoClaim, properties::ONE_RUN),
        (Mutant::NoClaim, properties::ONE_RESUME),
        (Mutant::ClaimPerApproval, properties::ONE_RUN),
        (Mutant::LeasedAcked, properties::NOT_LOST),
        (Mutant::ClaimWithoutRead, properties::ONE_EFFECT),
        (Mutant::HoldWithoutRead, properties::ONE_EFFECT),
        (Mutant::NoWake, properties::NOT_LOST),
        (Mutant::ExpireWithoutOutbox, properties::NO_LATE),
        (Mutant::BackstopNotRenewed, properties::NOT_LOST),
    ] {
        let is_broken = breaks(mutant, Faults { crashes: 1, ..NONE }, property);
        assert!(is_broken, "{mutant:?} does not break this property: {property}");
    }
    // A sweep resumes an overdue task without a wake message, unless the store has lost the task.
    let wiped = Faults { wipes: 1, ..NONE };
    for (mutant, limits) in [(Mutant::NoWake, wiped), (Mutant::BackstopNotRenewed, wiped)] {
        assert_ne!(path_to_dead_end(&Pool { mutant, limits }), None, "{mutant:?}");
    }
    // Without the sweep, the wake message is the only one.
    let without_both = Pool { mutant: Mutant::NeitherWakeNorSweep, limits: NONE };
    assert_ne!(path_to_dead_end(&without_both), None);
}

/// A second task uses the id of the first one while late messages of the first one still arrive.
#[test]
fn the_properties_hold_when_an_id_is_reused() {
    let again = Faults { generations: 1, ..NONE };
    assert_properties_hold(again);
    assert_eq!(path_to_dead_end(&Pool { mutant: Mutant::Correct, limits: again }), None);
    assert!(breaks(Mutant::OneGeneration, again, properties::NOT_LOST));
}

#[test]
#[ignore = "long: searches millions of states"]
fn the_properties_hold_when_an_id_is_reused_and_a_process_dies() {
    let again = Faults { generations: 1, crashes: 1, ..NONE };
    assert_properties_hold(again);
    assert!(breaks(Mutant::NoDigest, again, properties::OWN_TASK));
}

/// The wake message of a first suspension may arrive before the suspension is stored, or before the message
/// of a dead worker is redelivered: the task already has a record then.
#[test]
fn the_wake_of_a_first_suspension_may_arrive_early() {
    assert!(breaks(Mutant::WakeBeforeClaim, NONE, properties::NOT_REPORTED_LOST));
    assert_properties_hold(NONE);
}
