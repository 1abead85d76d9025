//! One run of a task, shared by its handler and its worker.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::entry_sequence::EntrySequence;
use super::pending_waits::PendingWaits;
use crate::backend::{EntryKind, RunOwner, Scope, Store, StreamAppend, TaskHistory};
use crate::error::{Error, TaskError, TaskResult};
use crate::journal::{Journal, Limits};
use crate::protocol::{Arguments, Envelope};
use crate::task::TaskId;
use crate::trace::TraceParent;

tokio::task_local! {
    /// The step whose future is being polled. Set around each poll, so exact even under `join!`.
    static STEP: Arc<EntrySequence>;
}

/// The services and limits that all runs of a worker share.
#[derive(Debug)]
pub(crate) struct RunServices {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) limits: Limits,
    /// The number of protected sections and steps that run now.
    pub(crate) critical_sections: AtomicUsize,
    /// The latest time at which an entered protected section ends by its own limit.
    pub(crate) protected_until: Mutex<Option<Instant>>,
}

/// One run: its envelope, its journal, and its critical sections.
#[derive(Debug)]
pub(crate) struct Run {
    pub(super) envelope: Arc<Envelope>,
    pub(super) trace: TraceParent,
    pub(super) cancelled: CancellationToken,
    pub(super) services: Arc<RunServices>,
    /// Whether earlier runs may have stored data.
    is_rerun: bool,
    /// The names of the handler's parameters, in their order.
    parameters: OnceLock<&'static [&'static str]>,
    owner: OnceLock<RunOwner>,
    stored: OnceCell<StoredData>,
    /// Numbers the stream entries of the handler's body.
    body_entries: Arc<EntrySequence>,
    /// Whether the run has stored a journal or a stream.
    pub(super) has_stored: AtomicBool,
    /// Whether the run found an entry that only a newer worker can read.
    pub(super) outdated: AtomicBool,
    sections: watch::Sender<CriticalSections>,
    /// The decisions and sleeps that it waits for.
    pub(crate) pending: PendingWaits,
}

/// The data of earlier runs, read on first use.
#[derive(Debug, Default)]
struct StoredData {
    journal: Mutex<Journal>,
    streamed: std::collections::HashSet<String>,
}

/// The number of running protected sections and steps, and the stage of the run.
#[derive(Debug, Default)]
struct CriticalSections {
    protected: usize,
    steps: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Running,
    /// The run is dropped as soon as no critical section prevents it.
    Ending,
    Over,
}

/// A section that is not interrupted: a protected section, which ends by its own limit, or a step.
#[derive(Clone, Copy, Debug)]
enum Section {
    Protected,
    Step,
}

impl Run {
    pub(super) fn new(
        envelope: Arc<Envelope>,
        is_rerun: bool,
        cancelled: CancellationToken,
        services: Arc<RunServices>,
    ) -> Self {
        let trace =
            TraceParent::read(&envelope.headers).map_or_else(TraceParent::root, TraceParent::child);
        Self {
            envelope,
            trace,
            cancelled,
            services,
            is_rerun,
            parameters: OnceLock::new(),
            owner: OnceLock::new(),
            stored: OnceCell::new(),
            body_entries: Arc::new(EntrySequence::new(Scope::Body)),
            has_stored: AtomicBool::new(false),
            outdated: AtomicBool::new(false),
            sections: watch::Sender::default(),
            pending: PendingWaits::default(),
        }
    }

    pub(crate) fn id(&self) -> &TaskId {
        &self.envelope.id
    }

    /// Returns the arguments of the task.
    pub(crate) fn arguments(&self) -> &Arguments {
        &self.envelope.arguments
    }

    /// Stores the names of the handler's parameters. Only the first call has an effect.
    pub(crate) fn set_parameters(&self, parameters: &'static [&'static str]) {
        self.parameters.get_or_init(|| parameters);
    }

    pub(super) fn parameters(&self) -> &'static [&'static str] {
        self.parameters.get().copied().unwrap_or_default()
    }

    /// Returns the owner of the journal and the stream. Computes the digest of the arguments on the first
    /// call.
    pub(crate) fn owner(&self) -> &RunOwner {
        self.owner
            .get_or_init(|| RunOwner { digest: self.envelope.digest(), is_fresh: !self.is_rerun })
    }

    /// Returns the number of steps and protected sections that run now.
    pub(crate) fn critical_sections(&self) -> usize {
        let sections = self.sections.borrow();
        sections.protected + sections.steps
    }

    /// Returns whether the calling code is polled by a step of its run. Tasks that a step spawns are not.
    pub(crate) fn is_inside_step() -> bool {
        STEP.try_with(|_| ()).is_ok()
    }

    /// Returns whether the run has stored data that must be removed once its task has ended.
    pub(crate) fn has_stored_data(&self) -> bool {
        self.has_stored.load(Ordering::Relaxed)
    }

    /// Returns whether the run failed only because this worker is too old to read an entry.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    /// Completes when no step and no protected section runs.
    pub(crate) async fn idle(&self) {
        let is_idle = |sections: &CriticalSections| sections.protected == 0 && sections.steps == 0;
        let _ = self.sections.subscribe().wait_for(is_idle).await;
    }

    /// Completes when the run waits for a decision or a sleep and may be suspended. Cancel safe.
    pub(crate) async fn wants_to_suspend(&self) {
        loop {
            self.pending.wait_started().await;
            self.idle().await;
            if self.pending.is_waiting() {
                return;
            }
        }
    }

    /// Completes when the run may be dropped: no protected section runs, and no step, or one that has not
    /// ended within `grace`.
    ///
    /// From now on the run begins no step, except in a protected section.
    pub(crate) async fn can_be_dropped(&self, grace: Duration) {
        self.sections.send_modify(|sections| sections.stage = sections.stage.max(Stage::Ending));
        let mut sections = self.sections.subscribe();
        let _ = timeout(grace, sections.wait_for(|sections| sections.steps == 0)).await;
        let _ = sections.wait_for(|sections| sections.protected == 0).await;
    }

    /// Marks the handler as ended or dropped. Sections of tasks that it has spawned are no longer waited
    /// for.
    pub(crate) fn set_over(&self) {
        self.sections.send_modify(|sections| {
            let left = sections.protected + sections.steps;
            if sections.stage != Stage::Over {
                self.services.critical_sections.fetch_sub(left, Ordering::Relaxed);
            }
            sections.stage = Stage::Over;
        });
    }

    /// Enters a protected section that ends by `limit` at the latest. Counts as busy until the guard is
    /// dropped.
    pub(super) fn enter_protected(&self, limit: Duration) -> SectionGuard<'_> {
        let end = Instant::now().checked_add(limit);
        let mut until =
            self.services.protected_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(end);
        drop(until);
        self.enter(Section::Protected)
    }

    /// Counts as busy until the guard is dropped.
    fn enter(&self, section: Section) -> SectionGuard<'_> {
        self.sections.send_modify(|sections| {
            *sections.count(section) += 1;
            if sections.stage != Stage::Over {
                self.services.critical_sections.fetch_add(1, Ordering::Relaxed);
            }
        });
        SectionGuard { run: self, section }
    }

    /// Enters a step. Never returns if the run is about to be dropped.
    ///
    /// # Errors
    /// The run is over: the caller is a task that its handler has spawned.
    pub(super) async fn enter_step(&self) -> TaskResult<SectionGuard<'_>> {
        let (stage, protected) = {
            let sections = self.sections.borrow();
            (sections.stage, sections.protected)
        };
        match stage {
            Stage::Ending if protected == 0 => std::future::pending().await,
            Stage::Running | Stage::Ending => Ok(self.enter(Section::Step)),
            Stage::Over => Err(TaskError::fatal(
                "a step was started after its run had ended, by a task that the handler spawned",
            )),
        }
    }

    /// Polls `work` as the inside of a step.
    pub(super) async fn in_step<F: Future>(step: Arc<EntrySequence>, work: F) -> F::Output {
        STEP.scope(step, work).await
    }

    /// Returns the sequence that numbers stream entries here: that of the running step, or of the
    /// handler's body.
    pub(super) fn entry_sequence(&self) -> Arc<EntrySequence> {
        STEP.try_with(Arc::clone).unwrap_or_else(|_| Arc::clone(&self.body_entries))
    }

    /// Appends an entry to the stream, with the next number of its sequence.
    pub(super) async fn append(
        &self,
        sequence: &EntrySequence,
        kind: EntryKind,
        json: Bytes,
    ) -> Result<(), Error> {
        let mut last = sequence.last.lock().await;
        *last += 1;
        self.has_stored.store(true, Ordering::Relaxed);
        self.append_numbered(sequence, *last, kind, json).await
    }

    /// Appends an entry that announces to readers that the step of this sequence runs again.
    pub(super) async fn append_restart(&self, sequence: &EntrySequence) -> Result<(), Error> {
        let json = Bytes::from_static(b"null");
        self.append_numbered(sequence, 0, EntryKind::Restarted, json).await
    }

    async fn append_numbered(
        &self,
        sequence: &EntrySequence,
        number: u64,
        kind: EntryKind,
        json: Bytes,
    ) -> Result<(), Error> {
        let entry = StreamAppend { scope: sequence.scope.clone(), number, kind, json };
        self.services.store.append_entry(self.id(), self.owner(), entry).await
    }

    /// Returns the journal. The first call reads it from the store if earlier runs may have written one,
    /// and waits while the store is unreachable.
    ///
    /// # Errors
    /// The stored data is no journal, or the store was closed.
    pub(super) async fn journal(&self) -> Result<MutexGuard<'_, Journal>, Error> {
        let journal = &self.stored().await?.journal;
        Ok(journal.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether an earlier run of this step has written stream entries.
    pub(super) async fn has_streamed(&self, step: &str) -> Result<bool, Error> {
        Ok(self.stored().await?.streamed.contains(step))
    }

    async fn stored(&self) -> Result<&StoredData, Error> {
        self.stored
            .get_or_try_init(|| async {
                if !self.is_rerun {
                    return Ok(StoredData::default());
                }
                let digest = &self.owner().digest;
                let history = self.services.store.task_history(self.id(), Some(digest)).await?;
                let TaskHistory { steps, streamed } = history;
                self.has_stored.fetch_or(!steps.is_empty(), Ordering::Relaxed);
                Ok(StoredData { journal: Journal::new(steps).into(), streamed })
            })
            .await
    }
}

impl CriticalSections {
    fn count(&mut self, section: Section) -> &mut usize {
        match section {
            Section::Protected => &mut self.protected,
            Section::Step => &mut self.steps,
        }
    }
}

/// Leaves the section on drop.
#[derive(Debug)]
pub(super) struct SectionGuard<'r> {
    run: &'r Run,
    section: Section,
}

impl Drop for SectionGuard<'_> {
    fn drop(&mut self) {
        self.run.sections.send_modify(|sections| {
            *sections.count(self.section) -= 1;
            if sections.stage != Stage::Over {
                self.run.services.critical_sections.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
}
