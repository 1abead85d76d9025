//! The checked protocol, and its actions.

use super::state::{DeciderState, Entry, Faults, Message, Mutant, Step};

/// A protocol, and the maximum number of faults.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) mutant: Mutant,
    pub(super) limits: Faults,
}

/// One step of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Delivers this message to this worker.
    Deliver(usize, Message),
    Advance(usize, Step),
    Notify(usize),
    LoseClaim(usize),
    /// This decider decides this request.
    Decide(usize, usize),
    RunDecider(usize, DeciderState),
    Sweep(Entry, bool),
    /// The sweeper finds an expired request.
    Expire(usize),
    Tick,
    /// The time advances, and every backstop is late: its queue has one TTL, which is longer than most waits.
    TickLate,
    /// The handler fails.
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
    /// Returns whether the action is a fault.
    pub(super) fn is_fault(self) -> bool {
        use Action::{Crash, Drain, Fail, Quit, Reuse, Stall, Wipe};
        matches!(self, Crash(_) | Drain(_) | Fail(_) | Quit(_) | Stall(_) | Wipe | Reuse)
    }
}
