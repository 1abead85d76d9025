//! What deciders and the sweeper do, in the order of `client/approvals.rs` and of `sweep` in
//! `worker/resume.rs`.

use super::world::{Entry, Errand, Letter, Variant, World};
use crate::protocol::TicketKind;

/// Who sends what the deciders have not sent.
pub(super) const SWEEPER: usize = 2;

impl World {
    /// A decision on a question. False: it does not count, and nothing has changed.
    pub(super) fn decide(&mut self, who: usize, n: usize) -> bool {
        if self.variant == Variant::GetThenSet {
            self.errands[who] = Errand::Write(n);
            return self.store.is_open(n);
        }
        let applied = self.store.decide(n, who, self.variant);
        if let Some(entry) = applied {
            self.seen.applied[n] += 1;
            self.errands[who] = entry.map_or(Errand::None, Errand::Send);
        }
        applied.is_some()
    }

    /// The next step of whoever has something to send.
    pub(super) fn run_errand(&mut self, who: usize) {
        self.errands[who] = match self.errands[who] {
            Errand::None => Errand::None,
            Errand::Write(n) => {
                self.seen.applied[n] += 1;
                self.store.write(n, who, self.variant).map_or(Errand::None, Errand::Send)
            }
            Errand::Send(entry) => {
                if self.variant == Variant::ClearBeforeSend {
                    self.store.clear(entry);
                } else {
                    self.send(entry.number, entry.about);
                }
                Errand::Clear(entry)
            }
            Errand::Clear(entry) => {
                if self.variant == Variant::ClearBeforeSend {
                    self.send(entry.number, entry.about);
                } else {
                    self.store.clear(entry);
                }
                Errand::None
            }
        };
    }

    fn send(&mut self, number: u64, about: usize) {
        self.letters.push(Letter { about, ..Letter::new(TicketKind::Resume, number, 0) });
    }

    /// What is overdue; and whether whoever decided is about to send it, too.
    pub(super) fn overdue(&self) -> impl Iterator<Item = (Entry, bool)> {
        let overdue = self.store.outbox.iter().filter(|(_, left)| *left == 0);
        overdue.map(|(entry, _)| {
            let has =
                |errand: &Errand| [Errand::Send(*entry), Errand::Clear(*entry)].contains(errand);
            (*entry, self.errands.iter().any(has))
        })
    }

    pub(super) fn sweep(&mut self, entry: Entry, is_beside_another: bool) {
        self.faults.slow += u8::from(is_beside_another);
        self.errands[SWEEPER] = Errand::Send(entry);
    }

    /// Whoever has something to send dies.
    pub(super) fn quit(&mut self, who: usize) {
        self.errands[who] = Errand::None;
        self.faults.crashes += 1;
    }
}
