//! A database in memory, and the jobs that wait for it. There is no thread: the callers do the work.
//!
//! A caller adds its job, lets the other ready tasks of its runtime add theirs, and then runs all of them in
//! one transaction.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rusqlite::Connection;

use super::commit::{Work, commit, work_of};
use super::maintenance;
use super::shared::Shared;

/// The number of transactions between two maintenance passes.
const COMMITS_BETWEEN_MAINTENANCE: u32 = 1024;

/// A database in memory.
pub(super) struct Memory {
    connection: Mutex<Connection>,
    pending: Mutex<Vec<Work>>,
    /// Counts commits: there is no thread that runs maintenance between the calls.
    commits: AtomicU32,
}

impl Memory {
    pub(super) fn new(connection: Connection) -> Self {
        let (connection, pending) = (Mutex::new(connection), Mutex::default());
        Self { connection, pending, commits: AtomicU32::new(0) }
    }

    /// Adds a job. The caller must call [`Memory::run`] next, at once or after other jobs were added.
    pub(super) fn add(&self, work: Work) {
        self.pending().push(work);
    }

    /// Runs all jobs that were added, unless another caller does: it then looks for more jobs when it is done.
    pub(super) fn run(&self, shared: &Arc<Shared>) {
        while !self.pending().is_empty() {
            let connection = match self.connection.try_lock() {
                Ok(connection) => connection,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let mut works = std::mem::take(&mut *self.pending());
            if works.is_empty() {
                continue;
            }
            let commits = self.commits.fetch_add(1, Ordering::Relaxed);
            if commits.is_multiple_of(COMMITS_BETWEEN_MAINTENANCE) {
                let of = Arc::clone(&shared.session);
                works.push(work_of(move |txn| maintenance::run(txn, &of), drop));
            }
            let events = commit(&connection, works, shared);
            drop(connection);
            events.publish(shared);
        }
    }

    fn pending(&self) -> MutexGuard<'_, Vec<Work>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
