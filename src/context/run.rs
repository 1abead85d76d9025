//! One run of a task, as its handler and its worker share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::protocol::Envelope;
use crate::trace::TraceParent;

tokio::task_local! {
    /// Set around each poll of a step's future, so exact even under `join!`.
    static INSIDE_STEP: ();
}

/// One run: what it is a run of, and what of it must not be cut.
#[derive(Debug)]
pub(crate) struct Run {
    pub(super) envelope: Arc<Envelope>,
    pub(super) trace: TraceParent,
    pub(super) cancelled: CancellationToken,
    uncut: watch::Sender<Uncut>,
    /// How many sections and steps all runs of the worker are in.
    sections: Arc<AtomicUsize>,
}

/// How many of each a run is in.
#[derive(Debug, Default)]
struct Uncut {
    sections: usize,
    steps: usize,
}

/// What is not cut: a protected section, which ends by its own limit, or a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Section {
    Protected,
    Step,
}

impl Run {
    pub(super) fn new(
        envelope: Arc<Envelope>,
        cancelled: CancellationToken,
        sections: Arc<AtomicUsize>,
    ) -> Self {
        let trace =
            TraceParent::read(&envelope.headers).map_or_else(TraceParent::root, TraceParent::child);
        Self { envelope, trace, cancelled, uncut: watch::Sender::default(), sections }
    }

    /// How many steps and protected sections it is in.
    pub(crate) fn busy(&self) -> usize {
        let uncut = self.uncut.borrow();
        uncut.sections + uncut.steps
    }

    /// Whether the code that asks is polled by a step of its run. What a step spawns is not.
    pub(crate) fn is_inside_step() -> bool {
        INSIDE_STEP.try_with(|()| ()).is_ok()
    }

    /// Completes when it may be dropped: no protected section runs, and no step, or one that has
    /// not ended in this long.
    pub(crate) async fn cuttable(&self, grace: Duration) {
        let mut uncut = self.uncut.subscribe();
        let _ = timeout(grace, uncut.wait_for(|uncut| uncut.steps == 0)).await;
        let _ = uncut.wait_for(|uncut| uncut.sections == 0).await;
    }

    /// Counts as busy until the guard is dropped.
    pub(super) fn enter(&self, section: Section) -> Inside<'_> {
        self.sections.fetch_add(1, Ordering::Relaxed);
        self.uncut.send_modify(|uncut| *uncut.count(section) += 1);
        Inside { run: self, section }
    }

    /// Polls `work` as the inside of a step.
    pub(super) async fn inside_step<F: Future>(work: F) -> F::Output {
        INSIDE_STEP.scope((), work).await
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
        self.run.uncut.send_modify(|uncut| *uncut.count(self.section) -= 1);
        self.run.sections.fetch_sub(1, Ordering::Relaxed);
    }
}
