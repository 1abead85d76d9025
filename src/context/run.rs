//! One run of a task, as its handler and its worker share it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use super::stream::Numbers;
use crate::backend::{Kept, RunOwner, Scope, Store};
use crate::error::{Error, TaskError, TaskResult};
use crate::journal::{Journal, Limits};
use crate::protocol::Envelope;
use crate::task::TaskId;
use crate::trace::TraceParent;

tokio::task_local! {
    /// The step whose future is being polled. Set around each poll, so exact even under `join!`.
    static STEP: Arc<Numbers>;
}

/// What all runs of a worker have in common.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) limits: Limits,
    /// How many protected sections and steps they are in.
    pub(crate) sections: AtomicUsize,
    /// When the last protected section that was entered has ended by its own limit.
    pub(crate) protected_until: Mutex<Option<Instant>>,
}

/// One run: what it is a run of, what it remembers, and what of it must not be cut.
#[derive(Debug)]
pub(crate) struct Run {
    pub(super) envelope: Arc<Envelope>,
    pub(super) trace: TraceParent,
    pub(super) cancelled: CancellationToken,
    pub(super) around: Arc<Surroundings>,
    /// Earlier runs may have left something.
    is_rerun: bool,
    /// The names of the handler's parameters, in their order.
    parameters: OnceLock<&'static [&'static str]>,
    owner: OnceLock<RunOwner>,
    memory: OnceCell<Memory>,
    /// Numbers what the handler's body streams.
    body: Arc<Numbers>,
    /// It has left something in the store.
    pub(super) leaves: AtomicBool,
    /// It met something that only a newer worker can read.
    pub(super) outdated: AtomicBool,
    uncut: watch::Sender<Uncut>,
    /// What it asks.
    pub(crate) desk: Desk,
}

/// What earlier runs have left, as far as this one has asked for it.
#[derive(Debug, Default)]
struct Memory {
    journal: Mutex<Journal>,
    streamed: std::collections::HashSet<String>,
}

/// How many of each a run is in, and how near its end it is.
#[derive(Debug, Default)]
struct Uncut {
    sections: usize,
    steps: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Running,
    /// It is dropped as soon as nothing hinders that.
    Ending,
    Over,
}

/// What is not cut: a protected section, which ends by its own limit, or a step.
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
        around: Arc<Surroundings>,
    ) -> Self {
        let trace =
            TraceParent::read(&envelope.headers).map_or_else(TraceParent::root, TraceParent::child);
        Self {
            envelope,
            trace,
            cancelled,
            around,
            is_rerun,
            parameters: OnceLock::new(),
            owner: OnceLock::new(),
            memory: OnceCell::new(),
            body: Arc::new(Numbers::new(Scope::Body)),
            leaves: AtomicBool::new(false),
            outdated: AtomicBool::new(false),
            uncut: watch::Sender::default(),
            desk: Desk::default(),
        }
    }

    pub(crate) fn id(&self) -> &TaskId {
        &self.envelope.id
    }

    /// Notes which parameters the handler has. The first call counts.
    pub(crate) fn takes(&self, parameters: &'static [&'static str]) {
        self.parameters.get_or_init(|| parameters);
    }

    pub(super) fn parameters(&self) -> &'static [&'static str] {
        self.parameters.get().copied().unwrap_or_default()
    }

    /// Whose journal and stream it reads and writes. Digests the arguments when it is called first.
    pub(crate) fn owner(&self) -> &RunOwner {
        self.owner
            .get_or_init(|| RunOwner { digest: self.envelope.digest(), is_fresh: !self.is_rerun })
    }

    /// How many steps and protected sections it is in.
    pub(crate) fn busy(&self) -> usize {
        let uncut = self.uncut.borrow();
        uncut.sections + uncut.steps
    }

    /// Whether the code that asks is polled by a step of its run. What a step spawns is not.
    pub(crate) fn is_inside_step() -> bool {
        STEP.try_with(|_| ()).is_ok()
    }

    /// Whether it left something that is to go once its task has ended.
    pub(crate) fn leaves_something(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
    }

    /// Whether it failed only because this worker is too old for what it found.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    /// Completes when it is in no step and in no protected section.
    pub(crate) async fn idle(&self) {
        let is_idle = |uncut: &Uncut| uncut.sections == 0 && uncut.steps == 0;
        let _ = self.uncut.subscribe().wait_for(is_idle).await;
    }

    /// Completes when it waits for a decision or sleeps, and may be dropped for it. Cancel safe.
    pub(crate) async fn wants_to_park(&self) {
        loop {
            self.desk.asked().await;
            self.idle().await;
            if self.desk.waits() {
                return;
            }
        }
    }

    /// Completes when it may be dropped: no protected section runs, and no step, or one that has
    /// not ended in this long.
    ///
    /// From now on it begins no step, except in a protected section.
    pub(crate) async fn cuttable(&self, grace: Duration) {
        self.uncut.send_modify(|uncut| uncut.stage = uncut.stage.max(Stage::Ending));
        let mut uncut = self.uncut.subscribe();
        let _ = timeout(grace, uncut.wait_for(|uncut| uncut.steps == 0)).await;
        let _ = uncut.wait_for(|uncut| uncut.sections == 0).await;
    }

    /// Says that its handler has ended or was dropped. What that has spawned is waited for no more.
    pub(crate) fn over(&self) {
        self.uncut.send_modify(|uncut| {
            let left = uncut.sections + uncut.steps;
            if uncut.stage != Stage::Over {
                self.around.sections.fetch_sub(left, Ordering::Relaxed);
            }
            uncut.stage = Stage::Over;
        });
    }

    /// Enters a protected section that ends by `limit` at the latest. Counts as busy until the guard is
    /// dropped.
    pub(super) fn enter_protected(&self, limit: Duration) -> Inside<'_> {
        let end = Instant::now().checked_add(limit);
        let mut until = self.around.protected_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(end);
        drop(until);
        self.enter(Section::Protected)
    }

    /// Counts as busy until the guard is dropped.
    fn enter(&self, section: Section) -> Inside<'_> {
        self.uncut.send_modify(|uncut| {
            *uncut.count(section) += 1;
            if uncut.stage != Stage::Over {
                self.around.sections.fetch_add(1, Ordering::Relaxed);
            }
        });
        Inside { run: self, section }
    }

    /// The same, for a step. Of a run that is about to be dropped it never returns.
    ///
    /// # Errors
    /// The run is over: something that it has spawned asks.
    pub(super) async fn enter_step(&self) -> TaskResult<Inside<'_>> {
        let (stage, sections) = {
            let uncut = self.uncut.borrow();
            (uncut.stage, uncut.sections)
        };
        match stage {
            Stage::Ending if sections == 0 => std::future::pending().await,
            Stage::Running | Stage::Ending => Ok(self.enter(Section::Step)),
            Stage::Over => Err(TaskError::fatal("a step was begun by what outlived its run")),
        }
    }

    /// Polls `work` as the inside of a step.
    pub(super) async fn inside<F: Future>(step: Arc<Numbers>, work: F) -> F::Output {
        STEP.scope(step, work).await
    }

    /// Who numbers what is streamed here: the step that runs, or the handler's body.
    pub(super) fn numbers(&self) -> Arc<Numbers> {
        STEP.try_with(Arc::clone).unwrap_or_else(|_| Arc::clone(&self.body))
    }

    /// The journal. The first to ask has it read, if there can be one; waits for that while the
    /// store is away.
    ///
    /// # Errors
    /// What is stored in its place is no journal, or the store was closed.
    pub(super) async fn journal(&self) -> Result<MutexGuard<'_, Journal>, Error> {
        let journal = &self.memory().await?.journal;
        Ok(journal.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether an earlier run of this step has streamed something.
    pub(super) async fn has_streamed(&self, step: &str) -> Result<bool, Error> {
        Ok(self.memory().await?.streamed.contains(step))
    }

    async fn memory(&self) -> Result<&Memory, Error> {
        self.memory
            .get_or_try_init(|| async {
                if !self.is_rerun {
                    return Ok(Memory::default());
                }
                let digest = &self.owner().digest;
                let kept = self.around.store.kept(self.id(), Some(digest)).await?;
                let Kept { steps, streamed } = kept;
                self.leaves.fetch_or(!steps.is_empty(), Ordering::Relaxed);
                Ok(Memory { journal: Journal::new(steps).into(), streamed })
            })
            .await
    }
}

impl Uncut {
    fn count(&mut self, section: Section) -> &mut usize {
        match section {
            Section::Protected => &mut self.sections,
            Section::Step => &mut self.steps,
        }
    }
}

/// Leaves the section however it ends.
#[derive(Debug)]
pub(super) struct Inside<'r> {
    run: &'r Run,
    section: Section,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.run.uncut.send_modify(|uncut| {
            *uncut.count(self.section) -= 1;
            if uncut.stage != Stage::Over {
                self.run.around.sections.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
}
