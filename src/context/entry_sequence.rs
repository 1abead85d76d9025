//! The numbers of stream entries.

use tokio::sync::Mutex;

use crate::backend::Scope;

/// Numbers the entries of one scope.
#[derive(Debug)]
pub(super) struct EntrySequence {
    pub(super) scope: Scope,
    /// The last number. Locked while an entry is written, so that entries are written in order.
    pub(super) last: Mutex<u64>,
}

impl EntrySequence {
    pub(super) fn new(scope: Scope) -> Self {
        Self { scope, last: Mutex::new(0) }
    }

    /// Creates the sequence of one execution of a step.
    pub(super) fn of_step(name: &str) -> Self {
        Self::new(Scope::Step { name: name.into(), execution: rand::random() })
    }
}
