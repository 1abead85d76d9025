//! The revoked tasks that this worker knows of, in memory: a check costs no round trip.
//!
//! A mark is durable in the store. A worker reads all marks before it starts its first task and after
//! every reconnect, and receives each new one at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::backend::Revocation;
use crate::keyed_notify::KeyedNotify;
use crate::task::{Revoke, TaskId};

/// How long marks are remembered: as long as the store keeps them, without a limit on their number.
const MARK_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The revoked tasks that this worker knows of.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    marks: RwLock<Marks>,
    /// Whether the stored marks have been read once.
    loaded: watch::Sender<bool>,
    /// Notifies the runs of tasks that are terminated.
    terminated: KeyedNotify<TaskId>,
}

#[derive(Debug, Default)]
struct Marks {
    by_id: HashMap<TaskId, Revoke>,
    oldest_first: VecDeque<(Instant, TaskId)>,
}

impl Revoked {
    /// Completes when the stored marks have been read once.
    pub(super) async fn loaded(&self) {
        let _ = self.loaded.subscribe().wait_for(|is_loaded| *is_loaded).await;
    }

    /// Returns whether the task must not start.
    pub(super) fn contains(&self, id: &TaskId) -> bool {
        self.mark(id).is_some()
    }

    /// Returns whether the task must end even if it runs.
    pub(super) fn is_terminated(&self, id: &TaskId) -> bool {
        self.mark(id) == Some(Revoke::Terminate)
    }

    /// Completes when a running task must end. Cancel safe.
    pub(super) async fn terminated(&self, id: &TaskId) {
        let mut terminated = self.terminated.watch(vec![id.clone()]);
        while !self.is_terminated(id) {
            terminated.changed().await;
        }
    }

    /// Adds marks. A mark never weakens an earlier one of the same task.
    pub(super) fn add(&self, revocations: Vec<Revocation>) {
        let now = Instant::now();
        let mut terminated = Vec::new();
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        for Revocation { id, revoke } in revocations {
            let earlier = marks.by_id.get(&id).copied();
            if earlier.is_none() {
                marks.oldest_first.push_back((now, id.clone()));
            }
            let revoke = earlier.map_or(revoke, |earlier| earlier.max(revoke));
            if revoke == Revoke::Terminate && earlier != Some(revoke) {
                terminated.push(id.clone());
            }
            marks.by_id.insert(id, revoke);
        }
        let is_old = |(at, _): &(Instant, TaskId)| now.duration_since(*at) > MARK_RETENTION;
        while marks.oldest_first.front().is_some_and(is_old) {
            if let Some((_, id)) = marks.oldest_first.pop_front() {
                marks.by_id.remove(&id);
            }
        }
        drop(marks);
        self.loaded.send_replace(true);
        terminated.iter().for_each(|id| self.terminated.notify(id));
    }

    fn mark(&self, id: &TaskId) -> Option<Revoke> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).by_id.get(id).copied()
    }
}

/// Adds every mark that the store sends to `revoked`, until the store is closed.
pub(super) fn follow(revoked: Arc<Revoked>, mut revocations: mpsc::Receiver<Vec<Revocation>>) {
    tokio::spawn(async move {
        while let Some(marks) = revocations.recv().await {
            revoked.add(marks);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    fn mark(id: &str, revoke: Revoke) -> Revocation {
        Revocation { id: id.into(), revoke }
    }

    #[test]
    fn a_later_mark_does_not_withdraw_a_termination() {
        let revoked = Revoked::default();
        revoked.add(vec![mark("a", Revoke::Terminate), mark("a", Revoke::IfQueued)]);
        assert!(revoked.is_terminated(&"a".into()));
        revoked.add(vec![mark("b", Revoke::IfQueued)]);
        assert!(revoked.contains(&"b".into()) && !revoked.is_terminated(&"b".into()));
    }

    #[tokio::test]
    async fn a_termination_wakes_its_own_run_only() {
        let revoked = Revoked::default();
        let (one, other) = (TaskId::from("a"), TaskId::from("b"));
        let (mut of_one, mut of_other) =
            (pin!(revoked.terminated(&one)), pin!(revoked.terminated(&other)));
        assert!(poll!(of_one.as_mut()).is_pending() && poll!(of_other.as_mut()).is_pending());
        revoked.add(vec![mark("a", Revoke::IfQueued)]);
        assert!(poll!(of_one.as_mut()).is_pending());
        revoked.add(vec![mark("a", Revoke::Terminate)]);
        of_one.await;
        assert!(poll!(of_other).is_pending());
    }

    #[test]
    fn many_marks_are_all_remembered() {
        let revoked = Revoked::default();
        revoked.add((0..60_000).map(|n| mark(&n.to_string(), Revoke::IfQueued)).collect());
        let forgotten = (0..60_000).filter(|n| !revoked.contains(&n.to_string().into())).count();
        assert_eq!(forgotten, 0);
    }
}
