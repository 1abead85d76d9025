//! One task that makes two requests under one `join!`, and everything that acts on it.

pub(super) use super::mutant::Mutant;
pub(super) use super::observed_outcome::ObservedOutcome;
pub(super) use super::outbox_entry::Entry;
use super::store::{NO_HOLDER, REQUESTS, Store};
use crate::protocol::{SuspendHeader, SuspendKind};

/// The whole state: the servers' data, the step of every process, and the history.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModelState {
    pub(super) mutant: Mutant,
    /// The messages that are in the broker and unconsumed. The broker delivers them in any order.
    pub(super) messages: Vec<Message>,
    /// One for each worker.
    pub(super) runs: [Option<Run>; 2],
    /// Two deciders, and a sweeper.
    pub(super) deciders: [DeciderState; 3],
    pub(super) store: Store,
    /// The number of faults that happened.
    pub(super) faults: Faults,
    pub(super) observed: Observed,
}

/// A message of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Message {
    pub(super) header: SuspendHeader,
    /// The task: 0 for the first one, 1 for the second one with the same id.
    pub(super) generation: u8,
    /// The number of ticks it is delayed in the broker.
    pub(super) delay: i8,
    /// It waits in a queue of wake messages, and may be late.
    pub(super) is_backstop: bool,
    /// Only for an original message: for the others the store is always read.
    pub(super) redelivered: bool,
    /// The decision that it was sent for; see [`Mutant::ClaimPerApproval`].
    pub(super) about: usize,
}

/// A delivery that a worker processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Run {
    pub(super) message: Message,
    pub(super) step: Step,
    /// As `Claim::number` and `Claim::first` of `worker/claim.rs`.
    pub(super) number: u64,
    pub(super) first: u64,
    /// Holds a claim, and renews it.
    pub(super) is_leased: bool,
    /// Does not renew its claim any more.
    pub(super) is_stalled: bool,
    /// Was acked already; see [`Mutant::AckBeforePark`].
    pub(super) is_acked: bool,
    /// The requests whose decisions the handler knows, as a set.
    pub(super) known: u8,
}

/// The worker's next step with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Step {
    /// Reads the result.
    Read,
    /// Runs the handler until it makes a request or finishes.
    Run,
    /// Claims the task for its first suspension.
    Begin,
    /// Stores the suspension; the wake message is confirmed, and arrives after this many ticks.
    Suspend(i8),
    /// Sends a wake message that arrives sooner.
    Wake(i8),
    /// Waits for a decision while keeping the permit, then acks.
    Hold,
    /// Stores the result.
    Finish,
    /// Stores that the suspension state is lost.
    Lose,
    /// Stores that the task has ended.
    End,
    /// Sends the same message again.
    PutOff(i8),
    /// Stores that the next attempt, which was sent, will follow.
    PassOn,
    Ack,
}

/// The next step of a decider or a sweeper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum DeciderState {
    #[default]
    None,
    /// Writes a decision on this request; see [`Mutant::GetThenSet`].
    Write(usize),
    Send(Entry),
    Clear(Entry),
}

/// How often each fault happened, or may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    /// A process dies.
    pub(super) crashes: u8,
    /// The store loses all data.
    pub(super) wipes: u8,
    /// A worker returns its running task.
    pub(super) drains: u8,
    /// A worker continues to run without renewing its lease.
    pub(super) stalls: u8,
    /// The handler fails, and is retried.
    pub(super) retries: u8,
    /// A sweeper sends a message that its live decider is about to send.
    pub(super) slow: u8,
    /// A task ends, its result is deleted, and another task is sent with its id.
    pub(super) generations: u8,
}

/// The observed history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Observed {
    /// How many decisions on each request were reported as applied.
    pub(super) applied: [u8; REQUESTS],
    /// The outcome of each request that a handler got.
    pub(super) outcomes: [Option<ObservedOutcome>; REQUESTS],
    /// Another run got a different outcome.
    pub(super) contradicted: bool,
    /// How often a handler finished, with both outcomes.
    pub(super) effects: u8,
    /// How many runs died between that and storing the result.
    pub(super) died: u8,
    /// How often each suspension was resumed, by its number.
    pub(super) resumed: [u8; 6],
    /// A message ran under the claim of another task, with its own arguments.
    pub(super) mixed: bool,
    /// A message was dead-lettered: the first task is still suspended, because its worker died before it
    /// stored the end.
    pub(super) dead_lettered: bool,
    /// The task was reported as lost.
    pub(super) lost: bool,
    pub(super) ended: bool,
}

impl ModelState {
    pub(super) fn new(mutant: Mutant) -> Self {
        Self {
            mutant,
            messages: vec![Message::new(SuspendKind::Original, 0, 0)],
            runs: [None; 2],
            deciders: [DeciderState::None; 3],
            store: Store::default(),
            faults: Faults::default(),
            observed: Observed::default(),
        }
    }

    /// The task has ended, and only late messages of it are left: its id may be used again.
    pub(super) fn may_be_reused(&self) -> bool {
        let is_first =
            |message: &Message| message.header == Message::new(SuspendKind::Original, 0, 0).header;
        let has_decider = self.deciders.iter().any(|decider| *decider != DeciderState::None);
        self.observed.ended
            && !has_decider
            && self.runs == [None; 2]
            && !self.messages.iter().any(is_first)
    }

    /// Deletes the result, and sends another task with the same id. That task makes other requests.
    pub(super) fn reuse(&mut self) {
        self.store.has_result = false;
        (self.store.requests, self.store.decisions) = ([None; REQUESTS], [None; REQUESTS]);
        self.observed = Observed::default();
        self.faults.generations += 1;
        let generation = self.faults.generations;
        self.messages.push(Message { generation, ..Message::new(SuspendKind::Original, 0, 0) });
    }

    /// Notes that the store allowed a handler to continue under this number.
    pub(super) fn count_resume(&mut self, number: u64) {
        if self.faults == Faults::default()
            && let Some(times) =
                usize::try_from(number).ok().and_then(|n| self.observed.resumed.get_mut(n))
        {
            *times += 1;
        }
    }

    pub(super) fn observe_outcome(&mut self, n: usize, outcome: ObservedOutcome) {
        let known = self.observed.outcomes[n].get_or_insert(outcome);
        self.observed.contradicted |= *known != outcome;
    }

    /// Marks the claim of a worker that has left its delivery as having no live holder.
    pub(super) fn orphan(&mut self, slot: usize) {
        if let Some((holder, _)) = self.claim().filter(|(holder, _)| *holder == slot) {
            *holder = NO_HOLDER;
        }
    }

    fn claim(&mut self) -> Option<&mut (usize, i8)> {
        self.store.record.as_mut().and_then(|record| record.claim.as_mut())
    }

    /// Returns one representative of all equivalent states: the two workers are interchangeable, the broker
    /// has no order, and some data has no further effect.
    pub(super) fn normalized(mut self, limits: &Faults) -> Self {
        if self.faults.crashes == limits.crashes {
            // The state between sending a message again and acking it cannot be observed.
            for slot in 0..NO_HOLDER {
                if let Some(Run { step: Step::PutOff(_) | Step::Ack, .. }) = self.runs[slot] {
                    self.advance(slot);
                }
                self.runs[slot] = self.runs[slot].filter(|run| run.step != Step::Ack);
            }
        }
        if self.faults.wipes == limits.wipes || self.observed.ended {
            // A second task with the id may still follow.
            let (store, generations) = (&self.store, self.faults.generations);
            let is_last = generations == limits.generations && self.mutant != Mutant::NoDigest;
            self.messages
                .retain(|message| !is_last || !store.is_past(message.header, message.generation));
        }
        self.store.drop_irrelevant_state();
        self.messages.sort_unstable();
        if self.runs[0] > self.runs[1] {
            self.runs.swap(0, 1);
            if let Some((holder, _)) = self.claim().filter(|(holder, _)| *holder != NO_HOLDER) {
                *holder = 1 - *holder;
            }
        }
        self
    }
}

impl Message {
    pub(super) fn new(kind: SuspendKind, number: u64, delay: i8) -> Self {
        Self {
            header: SuspendHeader { kind, number },
            generation: 0,
            delay,
            is_backstop: kind == SuspendKind::Wake && delay > 0,
            redelivered: false,
            about: 0,
        }
    }

    /// Creates a message of the task that `run` runs.
    pub(super) fn of(run: &Run, kind: SuspendKind, number: u64, delay: i8) -> Self {
        Self { generation: run.message.generation, ..Self::new(kind, number, delay) }
    }

    /// Returns the message as redelivered by the broker.
    pub(super) fn returned(self) -> Self {
        Self { redelivered: self.header.number == 0, delay: 0, is_backstop: false, ..self }
    }
}
