//! The protocol of parking and resuming, searched through: every order of every step of two workers,
//! two deciders and a sweeper, with faults between any two steps. The store answers by the very
//! functions that its scripts are compared with.

mod ends;
mod errand;
mod pool;
mod promises;
mod store;
mod variant;
mod worker;
mod world;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use ends::way_to_a_dead_end;
use pool::Pool;
use variant::Variant;
use world::Faults;

const NONE: Faults =
    Faults { crashes: 0, wipes: 0, drains: 0, stalls: 0, retries: 0, slow: 0, lives: 0 };

/// Searches all states, and prints how many there are.
fn assert_promises_hold(limits: Faults) {
    let pool = Pool { variant: Variant::Ours, limits };
    let checker = pool.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{} states with at most {limits:?}", checker.unique_state_count());
    checker.assert_properties();
}

/// Searches until `promise` is broken, and prints the way there.
fn breaks(variant: Variant, limits: Faults, promise: &'static str) -> bool {
    let pool = Pool { variant, limits };
    let enough = HasDiscoveries::AnyOf(BTreeSet::from([promise]));
    let found = pool.checker().finish_when(enough).spawn_bfs().join().discovery(promise);
    let way = found.map(stateright::Path::into_actions);
    println!("{variant:?}, {promise}: {way:#?}");
    way.is_some()
}

#[test]
fn the_promises_hold_when_a_process_dies() {
    assert_promises_hold(Faults { crashes: 1, ..NONE });
}

#[test]
fn the_promises_hold_when_the_store_forgets_everything() {
    assert_promises_hold(Faults { wipes: 1, ..NONE });
}

#[test]
fn the_promises_hold_when_a_worker_drains_and_when_a_handler_fails() {
    assert_promises_hold(Faults { drains: 1, ..NONE });
    assert_promises_hold(Faults { retries: 1, ..NONE });
}

#[test]
fn a_task_can_always_come_to_its_end() {
    for limits in [NONE, Faults { drains: 1, ..NONE }, Faults { crashes: 1, ..NONE }] {
        assert_eq!(way_to_a_dead_end(&Pool { variant: Variant::Ours, limits }), None);
    }
}

#[test]
#[ignore = "long: searches millions of states"]
fn the_promises_hold_when_much_goes_wrong() {
    for limits in [
        Faults { stalls: 1, ..NONE },
        Faults { slow: 1, ..NONE },
        Faults { crashes: 1, drains: 1, ..NONE },
        Faults { crashes: 1, retries: 1, ..NONE },
        Faults { crashes: 2, ..NONE },
    ] {
        assert_promises_hold(limits);
    }
}

#[test]
#[ignore = "long: searches millions of states"]
fn a_task_can_always_come_to_its_end_when_much_goes_wrong() {
    let ours = |limits| Pool { variant: Variant::Ours, limits };
    let crash = Faults { crashes: 1, ..NONE };
    for limits in [
        Faults { wipes: 1, ..NONE },
        Faults { retries: 1, ..NONE },
        Faults { stalls: 1, ..NONE },
        Faults { slow: 1, ..NONE },
        Faults { drains: 1, ..crash },
    ] {
        assert_eq!(way_to_a_dead_end(&ours(limits)), None);
    }
    let for_ever = Pool { variant: Variant::ClaimForEver, limits: crash };
    assert_ne!(way_to_a_dead_end(&for_ever), None);
}

#[test]
fn whoever_leaves_something_out_breaks_a_promise() {
    for (variant, promise) in [
        (Variant::AckBeforePark, promises::NOT_LOST),
        (Variant::WakeBeforeClaim, promises::NOT_SAID_LOST),
        (Variant::WakeAfterPark, promises::NOT_LOST),
        (Variant::GetThenSet, promises::ONE_DECISION),
        (Variant::GetThenSet, promises::ONE_TRUTH),
        (Variant::NoOutbox, promises::NO_WAIT),
        (Variant::ClearBeforeSend, promises::NO_WAIT),
        (Variant::ReadyUnnoted, promises::NO_WAIT),
        (Variant::TtlOnPending, promises::NOT_SAID_LOST),
        (Variant::NoClaim, promises::ONE_RUN),
        (Variant::NoClaim, promises::ONE_RESUME),
        (Variant::ClaimPerApproval, promises::ONE_RUN),
        (Variant::LeasedAcked, promises::NOT_LOST),
        (Variant::ClaimWithoutRead, promises::ONE_EFFECT),
        (Variant::HoldWithoutRead, promises::ONE_EFFECT),
    ] {
        let is_broken = breaks(variant, Faults { crashes: 1, ..NONE }, promise);
        assert!(is_broken, "{variant:?} is as good as ours: {promise}");
    }
    let silent = Pool { variant: Variant::NoWake, limits: NONE };
    assert_ne!(way_to_a_dead_end(&silent), None);
}

/// A second task has the id of the first one, whose late messages still come.
#[test]
fn the_promises_hold_when_an_id_is_used_again() {
    let again = Faults { lives: 1, ..NONE };
    assert_promises_hold(again);
    assert_eq!(way_to_a_dead_end(&Pool { variant: Variant::Ours, limits: again }), None);
    assert!(breaks(Variant::OneLife, again, promises::NOT_LOST));
}

#[test]
#[ignore = "long: searches millions of states"]
fn the_promises_hold_when_an_id_is_used_again_and_a_process_dies() {
    let again = Faults { lives: 1, crashes: 1, ..NONE };
    assert_promises_hold(again);
    assert!(breaks(Variant::NoDigest, again, promises::OWN_TASK));
}

/// The wake message of a first park may come before the park is stored, or before the message of a
/// worker that died in between comes again: the task has a record by then.
#[test]
fn the_wake_of_a_first_park_may_come_early() {
    assert!(breaks(Variant::WakeBeforeClaim, NONE, promises::NOT_SAID_LOST));
    assert_promises_hold(NONE);
}
