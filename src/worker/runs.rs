//! The runs in progress. A run that has lasted a second is stored as STARTED and listed in the worker's
//! info.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::debug;

use crate::backend::{Queue, RunningTask, Store, StoreResult, WorkerInfo};
use crate::protocol::{Document, Envelope};

/// A run that has lasted this long is stored as STARTED.
const STARTED_AFTER: Duration = Duration::from_secs(1);
/// How often the runs are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long storing a state may take before it is retried.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// The runs of a worker, the oldest first.
#[derive(Default)]
pub(super) struct Runs {
    entries: Mutex<Entries>,
    /// Notified when more runs have lasted a second.
    pub(super) changed: Notify,
}

#[derive(Default)]
struct Entries {
    next: u64,
    runs: BTreeMap<u64, Entry>,
}

struct Entry {
    envelope: Arc<Envelope>,
    queue: String,
    started: Timestamp,
    since: Instant,
    /// Set when the state of the run is stored or is being stored; the sender is dropped when the store
    /// has replied.
    written: Option<watch::Receiver<()>>,
}

/// A run whose state is due to be stored.
struct Due {
    number: u64,
    envelope: Arc<Envelope>,
    /// Dropped when the store has replied.
    writing: watch::Sender<()>,
}

impl Runs {
    /// Adds a run, until the guard is dropped.
    pub(super) fn begin(
        &self,
        envelope: &Arc<Envelope>,
        queue: &Queue,
        started: Timestamp,
    ) -> RunInProgress<'_> {
        let mut entries = self.entries();
        let number = entries.next;
        entries.next += 1;
        let entry = Entry {
            envelope: Arc::clone(envelope),
            queue: queue.name.clone(),
            started,
            since: Instant::now(),
            written: None,
        };
        entries.runs.insert(number, entry);
        RunInProgress { runs: self, number }
    }

    /// Returns the runs that have lasted a second.
    pub(super) fn long(&self) -> Vec<RunningTask> {
        let now = Instant::now();
        let entries = self.entries();
        let long =
            entries.runs.values().take_while(|run| run.is_long(now)).take(WorkerInfo::MAX_TASKS);
        let named = long.map(|run| RunningTask {
            id: run.envelope.id.clone(),
            name: run.envelope.name.clone(),
            queue: run.queue.clone(),
            attempt: run.envelope.attempt,
            started: run.started,
        });
        named.collect()
    }

    fn due(&self, now: Instant) -> Vec<Due> {
        let mut entries = self.entries();
        let long = entries.runs.iter_mut().take_while(|(_, run)| run.is_long(now));
        let due = long.filter(|(_, run)| run.written.is_none()).map(|(number, run)| {
            let (writing, written) = watch::channel(());
            run.written = Some(written);
            Due { number: *number, envelope: Arc::clone(&run.envelope), writing }
        });
        due.collect()
    }

    /// Stores the state of runs that have lasted a second, concurrently, under the name of their worker.
    /// Runs until it is dropped.
    pub(super) async fn store_started(&self, store: &dyn Store, worker: &str) {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let due = self.due(Instant::now());
            if !due.is_empty() {
                self.changed.notify_one();
                join_all(due.into_iter().map(|due| self.store(due, store, worker))).await;
            }
        }
    }

    async fn store(&self, due: Due, store: &dyn Store, worker: &str) {
        let Due { number, envelope, writing } = due;
        if envelope.ignore_result {
            return;
        }
        let document = Document::started(&envelope, std::process::id(), worker);
        // Waiters wait for the final result only.
        let started = StoreResult { document, reply_to: None, received: None };
        let stored = timeout(STORE_TIMEOUT, store.store_result(started)).await;
        if !matches!(stored, Ok(Ok(_))) {
            debug!(task.id = %envelope.id, "cannot store the state STARTED");
            self.retry(number);
        }
        drop(writing);
    }

    /// Marks the state of this run as not stored: it is due again.
    fn retry(&self, number: u64) {
        if let Some(run) = self.entries().runs.get_mut(&number) {
            run.written = None;
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_long(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= STARTED_AFTER
    }
}

/// The guard of a run in progress.
pub(super) struct RunInProgress<'r> {
    runs: &'r Runs,
    number: u64,
}

impl RunInProgress<'_> {
    /// Ends the run. Waits while its state is being stored, so that STARTED does not overwrite the final
    /// state of the run.
    pub(super) async fn end(self) {
        let entry = self.runs.entries().runs.remove(&self.number);
        if let Some(mut written) = entry.and_then(|entry| entry.written) {
            while written.changed().await.is_ok() {}
        }
    }
}

impl Drop for RunInProgress<'_> {
    fn drop(&mut self) {
        self.runs.entries().runs.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(id: &str) -> Arc<Envelope> {
        let mut envelope = Envelope::new("t", crate::protocol::Arguments::default());
        envelope.id = id.into();
        Arc::new(envelope)
    }

    #[tokio::test]
    async fn a_run_is_due_once_it_has_lasted_a_second_and_its_end_waits_for_the_write() {
        let (runs, queue) = (Runs::default(), Queue::new("q"));
        let run = runs.begin(&envelope("a"), &queue, Timestamp::UNIX_EPOCH);
        let _young = runs.begin(&envelope("b"), &queue, Timestamp::UNIX_EPOCH);
        assert!(runs.due(Instant::now()).is_empty());
        runs.entries().runs.get_mut(&0).unwrap().since -= STARTED_AFTER;
        let mut due = runs.due(Instant::now());
        assert_eq!((due.len(), runs.long()[0].id.as_str()), (1, "a"));
        assert!(runs.due(Instant::now()).is_empty(), "it is being stored");
        runs.retry(0);
        due = runs.due(Instant::now());
        let mut ending = Box::pin(run.end());
        assert!(futures_util::poll!(&mut ending).is_pending());
        drop(due);
        ending.await;
        assert_eq!(runs.entries().runs.len(), 1);
    }
}
