//! Records sent and accepted tasks, the results of the waiters, and the repeated runs that faults excuse.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use countersign::{ApprovalId, Error, Handle, TaskId};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

/// Violations that are printed in full.
const SHOWN: usize = 40;

/// The result that a task must have.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// The result of `demo.mark`: the length of the list after one of the task's own entries.
    Mark,
    /// This value.
    Value(Value),
    /// A failure: the message cannot be run by any worker.
    Failure,
}

/// The result that a waiter received, or that is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Success(Value),
    Failure(String),
    /// A revocation, or an error of the client.
    Other(String),
}

impl Outcome {
    pub(crate) fn of(result: Result<Value, Error>) -> Self {
        match result {
            Ok(value) => Self::Success(value),
            Err(error) if error.failure().is_some() => Self::Failure(error.to_string()),
            Err(error) => Self::Other(error.to_string()),
        }
    }

    fn fits(&self, expected: &Expected) -> bool {
        match (expected, self) {
            (Expected::Mark, Self::Success(value)) => value.is_u64(),
            (Expected::Value(wanted), Self::Success(value)) => wanted == value,
            (Expected::Failure, Self::Failure(_)) => true,
            _ => false,
        }
    }
}

/// A task that the broker has accepted.
#[derive(Clone, Debug)]
pub(crate) struct Accepted {
    pub(crate) expected: Expected,
    /// The outcome that its waiter received.
    pub(crate) outcome: Option<Outcome>,
}

/// The record that the producers, the faults and the checks share.
pub(crate) struct Ledger {
    state: Mutex<State>,
    /// The number of waiters that have not received a result yet.
    waiting: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    /// Every id that a producer has tried to publish, accepted or not.
    sent: HashSet<TaskId>,
    /// The ids in `sent` of messages that no worker can run.
    hostile: HashSet<TaskId>,
    accepted: HashMap<TaskId, Accepted>,
    not_accepted: usize,
    applied_decisions: HashMap<ApprovalId, usize>,
    faults: BTreeMap<&'static str, usize>,
    excused: BTreeMap<&'static str, usize>,
    notes: BTreeMap<&'static str, usize>,
    violations: Vec<String>,
    slowest_wait: Duration,
}

impl Ledger {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), waiting: watch::Sender::new(0) })
    }

    /// Records that a producer is about to publish this task.
    pub(crate) fn sent(&self, id: TaskId) {
        self.state().sent.insert(id);
    }

    /// Records that a message that no worker can run is about to be published.
    pub(crate) fn sent_hostile(&self, id: TaskId) {
        self.state().hostile.insert(id.clone());
        self.sent(id);
    }

    /// Records that the broker has accepted a task, and starts a waiter for its result.
    pub(crate) fn accept(self: &Arc<Self>, handle: Handle<Value>, expected: Expected) {
        let id = handle.id().clone();
        self.state().accepted.insert(id.clone(), Accepted { expected, outcome: None });
        self.waiting.send_modify(|waiting| *waiting += 1);
        let (ledger, begun) = (Arc::clone(self), Instant::now());
        tokio::spawn(async move {
            let outcome = Outcome::of(handle.result().await);
            ledger.resolve(&id, outcome, begun.elapsed());
        });
    }

    fn resolve(&self, id: &TaskId, outcome: Outcome, waited: Duration) {
        let mut state = self.state();
        let State { accepted, violations, slowest_wait, .. } = &mut *state;
        *slowest_wait = waited.max(*slowest_wait);
        if let Some(task) = accepted.get_mut(id) {
            if !outcome.fits(&task.expected) {
                let expected = &task.expected;
                violations.push(format!("{id}: expected {expected:?}, waiter got {outcome:?}"));
            }
            task.outcome = Some(outcome);
        }
        drop(state);
        self.waiting.send_modify(|waiting| *waiting -= 1);
    }

    /// Records a publish that was refused, or whose outcome is unknown. An error that no fault explains is a
    /// violation.
    pub(crate) fn not_accepted(&self, id: &TaskId, error: &Error) {
        self.state().not_accepted += 1;
        if !(error.is_timeout() || error.is_connection() || error.is_backpressure()) {
            self.violation(format!("{id}: an enqueue failed, and no fault explains it: {error}"));
        }
    }

    /// Records that a decision was applied.
    pub(crate) fn applied(&self, approval: ApprovalId) {
        *self.state().applied_decisions.entry(approval).or_default() += 1;
    }

    pub(crate) fn fault(&self, name: &'static str) {
        *self.state().faults.entry(name).or_default() += 1;
    }

    /// Records that a fault may have caused this number of repeated runs.
    pub(crate) fn excuse(&self, fault: &'static str, runs: usize) {
        *self.state().excused.entry(fault).or_default() += runs;
    }

    /// Returns the number of repeated runs that the faults excuse.
    pub(crate) fn excused(&self) -> usize {
        self.state().excused.values().sum()
    }

    /// Counts an event that is allowed, for the report.
    pub(crate) fn note(&self, what: &'static str) {
        *self.state().notes.entry(what).or_default() += 1;
    }

    pub(crate) fn violation(&self, text: String) {
        eprintln!("VIOLATION: {text}");
        self.state().violations.push(text);
    }

    /// Waits until every waiter has its result. Returns false if that takes longer than `within`.
    pub(crate) async fn all_resolved(&self, within: Duration) -> bool {
        let mut waiting = self.waiting.subscribe();
        timeout(within, waiting.wait_for(|waiting| *waiting == 0)).await.is_ok()
    }

    pub(crate) fn accepted(&self) -> HashMap<TaskId, Accepted> {
        self.state().accepted.clone()
    }

    pub(crate) fn is_sent(&self, id: &TaskId) -> bool {
        self.state().sent.contains(id)
    }

    pub(crate) fn hostile(&self) -> HashSet<TaskId> {
        self.state().hostile.clone()
    }

    /// Returns the approvals for which more than one decision was applied.
    pub(crate) fn decided_twice(&self) -> Vec<ApprovalId> {
        let state = self.state();
        let twice = state.applied_decisions.iter().filter(|(_, times)| **times > 1);
        twice.map(|(approval, _)| approval.clone()).collect()
    }

    /// Prints a summary, and fails the test if there was a violation.
    pub(crate) fn report(&self, name: &str, variables: &str, repeated: usize) {
        let state = self.state();
        let excused: usize = state.excused.values().sum();
        let faults: usize = state.faults.values().sum();
        let line = |what: &str, of: &dyn Debug| eprintln!("  {what}: {of:?}");
        eprintln!("{name}: {variables}");
        line("tasks accepted", &state.accepted.len());
        line("refused or with an unknown outcome", &state.not_accepted);
        line("hostile messages", &state.hostile.len());
        line("approvals decided", &state.applied_decisions.len());
        line(&format!("{faults} faults"), &state.faults);
        eprintln!("  runs repeated: {repeated}, at most {excused} are excused");
        line("excused by", &state.excused);
        line("noted", &state.notes);
        line("slowest waiter", &state.slowest_wait);
        line("violations", &state.violations.len());
        for violation in state.violations.iter().take(SHOWN) {
            eprintln!("    {violation}");
        }
        assert!(state.violations.is_empty(), "{} violations", state.violations.len());
        assert!(!state.accepted.is_empty(), "nothing was accepted: nothing was tested");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}
