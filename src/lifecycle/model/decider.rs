//! The steps of deciders and of the sweeper, in the order of `client/approvals.rs` and of `sweep` in
//! `worker/outbox.rs`.

use super::state::{DeciderState, Entry, Message, ModelState, Mutant};
use super::store::requests_in;
use crate::protocol::SuspendKind;

/// The sweeper sends the messages that the deciders have not sent.
pub(super) const SWEEPER: usize = 2;

impl ModelState {
    /// Makes a decision on a request. False: the decision does not count, and nothing has changed.
    pub(super) fn decide(&mut self, who: usize, n: usize) -> bool {
        if self.mutant == Mutant::GetThenSet {
            self.deciders[who] = DeciderState::Write(n);
            return self.store.is_open(n);
        }
        let applied = self.store.decide(n, who, self.mutant);
        if let Some(entry) = applied {
            self.observed.applied[n] += 1;
            self.deciders[who] = entry.map_or(DeciderState::None, DeciderState::Send);
        }
        applied.is_some()
    }

    /// Runs the next step of a decider or of the sweeper.
    pub(super) fn run_decider(&mut self, who: usize) {
        self.deciders[who] = match self.deciders[who] {
            DeciderState::None => DeciderState::None,
            DeciderState::Write(n) => {
                self.observed.applied[n] += 1;
                self.store.write(n, who, self.mutant).map_or(DeciderState::None, DeciderState::Send)
            }
            DeciderState::Send(entry) => {
                if self.mutant == Mutant::ClearBeforeSend {
                    self.store.clear(entry);
                } else {
                    self.send(entry.number, entry.about);
                }
                DeciderState::Clear(entry)
            }
            DeciderState::Clear(entry) => {
                if self.mutant == Mutant::ClearBeforeSend {
                    self.send(entry.number, entry.about);
                } else {
                    self.store.clear(entry);
                }
                DeciderState::None
            }
        };
    }

    fn send(&mut self, number: u64, about: usize) {
        self.messages.push(Message { about, ..Message::new(SuspendKind::Resume, number, 0) });
    }

    /// Returns the overdue outbox entries, each with whether a live decider is about to send it, too.
    pub(super) fn overdue(&self) -> impl Iterator<Item = (Entry, bool)> {
        let overdue = self.store.outbox.iter().filter(|(_, left)| *left == 0);
        overdue.map(|(entry, _)| {
            let has = |decider: &DeciderState| {
                [DeciderState::Send(*entry), DeciderState::Clear(*entry)].contains(decider)
            };
            (*entry, self.deciders.iter().any(has))
        })
    }

    pub(super) fn sweep(&mut self, entry: Entry, is_beside_another: bool) {
        self.faults.slow += u8::from(is_beside_another);
        self.deciders[SWEEPER] = DeciderState::Send(entry);
    }

    /// Returns the indexed requests whose deadline has passed.
    pub(super) fn expired(&self) -> impl Iterator<Item = usize> {
        let is_swept = self.mutant != Mutant::NeitherWakeNorSweep;
        requests_in(self.store.indexed).filter(move |n| is_swept && self.store.is_expired(*n))
    }

    /// The sweeper removes an expired request from the index, and sends the resume message of its task.
    pub(super) fn expire(&mut self, n: usize) {
        if let Some(entry) = self.store.expire(n, self.mutant) {
            self.deciders[SWEEPER] = DeciderState::Send(entry);
        }
    }

    /// A decider or the sweeper dies.
    pub(super) fn quit(&mut self, who: usize) {
        self.deciders[who] = DeciderState::None;
        self.faults.crashes += 1;
    }
}
