//! The lock that keeps a suspect task apart from all other runs of its worker.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::timeout;

/// The lock that a run holds: shared with other runs, or exclusive for a suspect task.
#[derive(Debug, Default)]
pub(super) struct IsolationLock {
    runs: Arc<RwLock<()>>,
    /// Held by one suspect task at a time.
    suspect: Mutex<()>,
}

/// The guard that a run holds on [`IsolationLock`].
#[derive(Debug)]
pub(super) enum IsolationGuard<'l> {
    Shared {
        _runs: OwnedRwLockReadGuard<()>,
    },
    Exclusive {
        _suspect: MutexGuard<'l, ()>,
        /// `None` when the other runs did not end in time.
        runs: Option<OwnedRwLockWriteGuard<()>>,
    },
}

impl IsolationGuard<'_> {
    /// Returns whether no other run holds the lock.
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::Exclusive { runs: Some(_), .. })
    }
}

impl IsolationLock {
    /// Acquires the lock together with other runs.
    pub(super) async fn shared(&self) -> IsolationGuard<'_> {
        IsolationGuard::Shared { _runs: Arc::clone(&self.runs).read_owned().await }
    }

    /// Acquires the lock for one suspect task, and waits at most `time` until the other runs have ended.
    pub(super) async fn exclusive(&self, time: Duration) -> IsolationGuard<'_> {
        let suspect = self.suspect.lock().await;
        let runs = timeout(time, Arc::clone(&self.runs).write_owned()).await.ok();
        IsolationGuard::Exclusive { _suspect: suspect, runs }
    }
}
