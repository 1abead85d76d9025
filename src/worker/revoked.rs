//! The tasks that were revoked, as far as this worker has heard: looking costs no round trip.
//!
//! A mark is durable in the store. A worker reads all of them before it takes its first task and
//! after every reconnect, and hears of each new one at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Crew;
use crate::backend::Revocation;
use crate::task::{Revoke, TaskId};

/// As long as the store keeps marks; however many there are.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What this worker knows of revoked tasks.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    marks: RwLock<Marks>,
    /// Changes whenever something was heard; 0 until all that is stored has been read.
    heard: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Marks {
    by_id: HashMap<TaskId, Revoke>,
    oldest_first: VecDeque<(Instant, TaskId)>,
}

impl Revoked {
    /// Completes when the marks that are stored have been read once.
    pub(super) async fn loaded(&self) {
        let _ = self.heard.subscribe().wait_for(|heard| *heard > 0).await;
    }

    /// Whether the task is not to start any more.
    pub(super) fn contains(&self, id: &TaskId) -> bool {
        self.mark(id).is_some()
    }

    /// Whether the task is to end even if it runs.
    pub(super) fn is_terminated(&self, id: &TaskId) -> bool {
        self.mark(id) == Some(Revoke::EvenRunning)
    }

    /// Completes when the task is to end although it runs. Cancel safe.
    pub(super) async fn terminated(&self, id: &TaskId) {
        let mut heard = self.heard.subscribe();
        while !self.is_terminated(id) {
            if heard.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes in marks. One that says more than what was known of its task counts.
    pub(super) fn note(&self, revocations: Vec<Revocation>) {
        let now = Instant::now();
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        for Revocation { id, revoke } in revocations {
            let known = marks.by_id.get(&id).copied();
            if known.is_none() {
                marks.oldest_first.push_back((now, id.clone()));
            }
            let revoke = known.map_or(revoke, |known| known.max(revoke));
            marks.by_id.insert(id, revoke);
        }
        let is_old = |(at, _): &(Instant, TaskId)| now.duration_since(*at) > REMEMBERED;
        while marks.oldest_first.front().is_some_and(is_old) {
            if let Some((_, id)) = marks.oldest_first.pop_front() {
                marks.by_id.remove(&id);
            }
        }
        drop(marks);
        self.heard.send_modify(|heard| *heard += 1);
    }

    fn mark(&self, id: &TaskId) -> Option<Revoke> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).by_id.get(id).copied()
    }
}

/// Keeps `crew.revoked` up to date, until the store is closed.
pub(super) fn follow(crew: &Arc<Crew>) {
    let mut revocations = crew.backends.store.revocations();
    let crew = Arc::clone(crew);
    tokio::spawn(async move {
        while let Some(heard) = revocations.recv().await {
            crew.revoked.note(heard);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(id: &str, revoke: Revoke) -> Revocation {
        Revocation { id: id.into(), revoke }
    }

    #[test]
    fn a_termination_is_not_taken_back_by_a_later_mark() {
        let revoked = Revoked::default();
        revoked.note(vec![mark("a", Revoke::EvenRunning), mark("a", Revoke::IfQueued)]);
        assert!(revoked.is_terminated(&"a".into()));
        revoked.note(vec![mark("b", Revoke::IfQueued)]);
        assert!(revoked.contains(&"b".into()) && !revoked.is_terminated(&"b".into()));
    }

    #[test]
    fn many_marks_are_all_remembered() {
        let revoked = Revoked::default();
        revoked.note((0..60_000).map(|n| mark(&n.to_string(), Revoke::IfQueued)).collect());
        let forgotten = (0..60_000).filter(|n| !revoked.contains(&n.to_string().into())).count();
        assert_eq!(forgotten, 0);
    }
}
