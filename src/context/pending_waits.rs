//! The decisions and sleeps that a handler waits for, shared with the worker, which suspends the run.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::approval::{ApprovalId, ApprovalOutcome, ApprovalRequest};
use crate::error::TaskError;

/// The approval requests and sleeps that one run waits for.
#[derive(Debug, Default)]
pub(crate) struct PendingWaits {
    state: Mutex<WaitState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct WaitState {
    /// The outcomes that are known.
    outcomes: HashMap<ApprovalId, ApprovalOutcome>,
    /// In the order of the requests.
    waiting: Vec<Waiting>,
    /// Long sleeps of the handler, by number.
    sleeps: HashMap<u64, (Instant, Waker)>,
    sleeps_begun: u64,
    /// Requested in this run, and dropped undecided.
    abandoned: Vec<ApprovalId>,
    occurrences: HashMap<String, u32>,
    /// Set when no more requests are possible: the reason.
    closed: Option<&'static str>,
}

#[derive(Debug)]
struct Waiting {
    request: ApprovalRequest,
    waker: Waker,
}

impl PendingWaits {
    fn state(&self) -> MutexGuard<'_, WaitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the occurrence of an approval that begins now among those of its name, from 0.
    pub(super) fn occurrence(&self, name: &str) -> u32 {
        let mut state = self.state();
        let next = state.occurrences.entry(name.to_owned()).or_default();
        let this = *next;
        *next += 1;
        this
    }

    /// Returns the outcome of `request`, or registers `waker` until it is known.
    pub(super) fn poll(
        &self,
        request: &ApprovalRequest,
        waker: &Waker,
    ) -> Poll<Result<ApprovalOutcome, TaskError>> {
        let mut state = self.state();
        if let Some(reason) = state.closed {
            return Poll::Ready(Err(TaskError::fatal(format!("{}: {reason}", request.name))));
        }
        let outcome = state.outcomes.get(&request.id).cloned();
        if let Some(outcome) = outcome.filter(|outcome| request.has_digest(&outcome.digest)) {
            state.waiting.retain(|waiting| waiting.request.id != request.id);
            return Poll::Ready(Ok(outcome));
        }
        match state.waiting.iter_mut().find(|waiting| waiting.request.id == request.id) {
            Some(waiting) => waiting.waker.clone_from(waker),
            None => {
                state.abandoned.retain(|id| *id != request.id);
                let waiting = Waiting { request: request.clone(), waker: waker.clone() };
                state.waiting.push(waiting);
                self.changed.notify_one();
            }
        }
        Poll::Pending
    }

    /// Removes a request that the handler has dropped. A suspension drops handlers too, but withdraws no
    /// request.
    pub(super) fn abandon(&self, id: &ApprovalId) {
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|waiting| waiting.request.id != *id);
        if state.closed.is_none() && state.waiting.len() < before {
            tracing::info!(approval = %id, "approval request was dropped undecided: withdrawing it");
            state.abandoned.push(id.clone());
        }
    }

    /// Begins a sleep until `until`, or continues the one with this number.
    pub(super) fn sleep(
        &self,
        number: Option<u64>,
        until: Instant,
        waker: &Waker,
    ) -> Result<u64, TaskError> {
        let mut state = self.state();
        if let Some(reason) = state.closed {
            return Err(TaskError::fatal(reason));
        }
        let number = number.unwrap_or_else(|| {
            self.changed.notify_one();
            state.sleeps_begun += 1;
            state.sleeps_begun
        });
        state.sleeps.insert(number, (until, waker.clone()));
        Ok(number)
    }

    pub(super) fn end_sleep(&self, number: u64) {
        self.state().sleeps.remove(&number);
    }

    /// Returns the time until the first sleep ends, or `None` when there is none.
    pub(crate) fn first_wakeup(&self) -> Option<Duration> {
        let first = self.state().sleeps.values().map(|(until, _)| *until).min();
        first.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Returns whether the run waits for a decision or a sleep, and may therefore be suspended.
    pub(crate) fn is_waiting(&self) -> bool {
        let state = self.state();
        !state.waiting.is_empty() || !state.sleeps.is_empty()
    }

    /// Completes when the run waits for a decision or a sleep. Cancel safe.
    pub(crate) async fn wait_started(&self) {
        while !self.is_waiting() {
            self.changed.notified().await;
        }
    }

    /// Returns the requests that the run waits for.
    pub(crate) fn requests(&self) -> Vec<ApprovalRequest> {
        self.state().waiting.iter().map(|waiting| waiting.request.clone()).collect()
    }

    /// Returns the requests that were dropped undecided.
    pub(crate) fn abandoned(&self) -> Vec<ApprovalId> {
        self.state().abandoned.clone()
    }

    /// Stores outcomes, and wakes the futures that wait for them.
    pub(crate) fn resolve(&self, outcomes: Vec<ApprovalOutcome>) {
        let mut state = self.state();
        for outcome in outcomes {
            let decided = |waiting: &mut Waiting| waiting.request.id == outcome.approval;
            let woken: Vec<_> = state.waiting.extract_if(.., decided).collect();
            state.outcomes.insert(outcome.approval.clone(), outcome);
            woken.into_iter().for_each(|waiting| waiting.waker.wake());
        }
    }

    /// Ends every approval from now on with an error that gives the reason, also in spawned tasks.
    pub(crate) fn close(&self, reason: &'static str) {
        let mut state = self.state();
        state.closed = Some(reason);
        state.waiting.drain(..).for_each(|waiting| waiting.waker.wake());
        state.sleeps.drain().for_each(|(_, (_, waker))| waker.wake());
    }
}
