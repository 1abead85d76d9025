//! Redis in the model: each method is one script, and decides by the function that the script is
//! compared with. Times are ticks from now, so that the states are finitely many.

use std::sync::LazyLock;

use super::world::{Entry, Said, Variant};
use crate::approval::{Answer, ApprovalId, Choice, Digest, Standing};
use crate::lifecycle::park::{self, Claim, Due, Park, Parked, Take};
use crate::lifecycle::vote::{self, Ballot, Decided, Terms, Vote};
use crate::protocol::{TaskDigest, Ticket, TicketKind};

pub(super) const QUESTIONS: usize = 2;
/// How long each question can be decided.
pub(super) const PATIENCE: [i8; QUESTIONS] = [0, 1];
pub(super) const LEASE: i8 = 1;
/// The holder that a claim has when its worker is gone.
pub(super) const NOBODY: usize = 2;
const HOLDERS: [&str; 3] = ["first worker", "second worker", "nobody"];
/// The first decider approves, the second one rejects.
const DECIDERS: [(&str, Choice); 2] = [("ana", Choice::Approve), ("bob", Choice::Reject)];

static IDS: LazyLock<[ApprovalId; QUESTIONS]> =
    LazyLock::new(|| [ApprovalId::random(), ApprovalId::random()]);
static DIGEST: LazyLock<Digest> = LazyLock::new(|| Digest::from("digest".to_owned()));

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Store {
    pub(super) record: Option<Record>,
    pub(super) asks: [Option<Ask>; QUESTIONS],
    /// Who has decided each question.
    pub(super) ballots: [Option<usize>; QUESTIONS],
    /// What is to be sent, and in how many ticks it is overdue.
    pub(super) outbox: Vec<(Entry, i8)>,
    pub(super) has_result: bool,
}

/// A [`Park`], small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) number: u64,
    /// Whose it is; see [`Letter::life`](super::world::Letter::life).
    pub(super) life: u8,
    /// A set of questions.
    pub(super) waits: u8,
    /// Who, and until when.
    pub(super) claim: Option<(usize, i8)>,
    /// By which decision's message; see [`Variant::ClaimPerApproval`].
    pub(super) about: usize,
    pub(super) ended: bool,
    /// The task's message is in it.
    pub(super) has_message: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    pub(super) left: i8,
    pub(super) withdrawn: bool,
}

impl Store {
    /// Calls one of the functions of `lifecycle/park.rs` with the record as they know it.
    fn on_park<T>(&mut self, function: impl FnOnce(&mut Option<Park>) -> T) -> T {
        let before = self.record;
        let mut park = before.map(|record| Park {
            number: record.number,
            digest: Some(task_digest(record.life)),
            waits: questions(record.waits).map(|n| IDS[n].clone()).collect(),
            claim: record.claim.map(|(holder, until)| Claim {
                holder: HOLDERS[holder].to_owned(),
                until: i64::from(until),
            }),
            ended: record.ended,
        });
        let told = function(&mut park);
        self.record = park.map(|park| Record {
            number: park.number,
            life: u8::from(park.digest == Some(task_digest(1))),
            waits: (0..QUESTIONS).filter(|n| park.waits.contains(&IDS[*n])).fold(0, with),
            claim: park.claim.map(|claim| {
                let holder = HOLDERS.iter().position(|name| *name == claim.holder);
                (holder.unwrap_or(NOBODY), ticks(claim.until))
            }),
            about: before.map_or(0, |record| record.about),
            ended: park.ended,
            has_message: before.is_some_and(|record| record.has_message && !record.ended),
        });
        told
    }

    /// `take.lua`.
    pub(super) fn take(&mut self, ticket: Ticket, life: Option<u8>, holder: usize) -> Take {
        let due = self.due(self.record.map_or(0, |record| record.waits));
        let (digest, holder) = (life.map(task_digest), HOLDERS[holder]);
        self.on_park(|park| park::take(park, ticket, digest.as_ref(), due, holder, 0, LEASE.into()))
    }

    /// `take.lua`, of a run that is about to park for the first time.
    pub(super) fn begin(&mut self, life: u8, starts_anew: bool, holder: usize) -> Take {
        let holder = HOLDERS[holder];
        if !starts_anew {
            let first = Ticket { kind: TicketKind::Original, number: 0 };
            if self.record.is_some() {
                return self.take(first, None, NOBODY);
            }
        }
        let digest = task_digest(life);
        self.on_park(|park| park::begin(park, &digest, starts_anew, holder, 0, LEASE.into()))
    }

    /// `park.lua`.
    pub(super) fn park(
        &mut self,
        (life, number): (u8, u64),
        waits: u8,
        holder: usize,
        variant: Variant,
    ) -> Parked {
        let before = self.asks;
        for n in questions(waits) {
            let is_over =
                self.asks[n].is_some_and(|ask| ask.withdrawn) && self.ballots[n].is_none();
            if self.asks[n].is_none() || is_over {
                self.asks[n] = Some(Ask { left: PATIENCE[n], withdrawn: false });
            }
        }
        let due = self.due(waits);
        let ids = questions(waits).map(|n| IDS[n].clone()).collect();
        let next = Park::waiting(number, task_digest(life), ids);
        let parked =
            self.on_park(|park| park::park(park, next, due, HOLDERS[holder], 0, LEASE.into()));
        match &mut self.record {
            Some(record) if parked != Parked::Behind => record.has_message = true,
            _ => self.asks = before,
        }
        if parked == Parked::Ready && variant != Variant::ReadyUnnoted {
            self.note(Entry { number, about: 0 }, LEASE);
        }
        parked
    }

    /// `lease.lua`.
    pub(super) fn renew(&mut self, holder: usize) -> bool {
        self.on_park(|park| park::renew(park, HOLDERS[holder], 0, LEASE.into()))
    }

    /// `lease.lua`, with no lease.
    pub(super) fn release(&mut self, holder: usize) {
        self.on_park(|park| park::release(park, HOLDERS[holder]));
    }

    /// `end.lua`.
    pub(super) fn end(&mut self, life: u8) {
        for n in questions(self.record.filter(|it| it.life == life).map_or(0, |_| 0b11)) {
            let is_open = self.is_open(n);
            if let Some(ask) = self.asks[n].as_mut().filter(|_| is_open) {
                ask.withdrawn = true;
            }
        }
        self.on_park(|park| park::end(park, Some(&task_digest(life))));
    }

    /// `decide.lua`; what is to be sent, if it is applied.
    pub(super) fn decide(
        &mut self,
        n: usize,
        who: usize,
        variant: Variant,
    ) -> Option<Option<Entry>> {
        let (by, choice) = DECIDERS[who];
        let decision = format!("{by} on {n}");
        let digest = &*DIGEST;
        let vote = Vote {
            decision: &decision,
            choice,
            by,
            digest,
            nonce: None,
            in_quorum: false,
            edited: false,
        };
        let mut ballot = self.ballot(n);
        let answer = vote::decide(self.terms(n).as_ref(), &mut ballot, &vote, 0);
        (answer == Answer::Applied).then(|| self.write(n, who, variant))
    }

    /// Writes a decision that is found to count.
    pub(super) fn write(&mut self, n: usize, who: usize, variant: Variant) -> Option<Entry> {
        self.ballots[n] = Some(who);
        let waiting = self.record.filter(|record| !record.ended && record.waits & (1 << n) != 0)?;
        let about = if variant == Variant::ClaimPerApproval { n } else { 0 };
        let entry = Entry { number: waiting.number, about };
        if variant != Variant::NoOutbox {
            self.note(entry, 0);
        }
        Some(entry)
    }

    /// An entry of the outbox, which is overdue after some ticks.
    fn note(&mut self, entry: Entry, ticks: i8) {
        self.clear(entry);
        self.outbox.push((entry, ticks));
        self.outbox.sort_unstable();
    }

    /// The entry was sent.
    pub(super) fn clear(&mut self, entry: Entry) {
        self.outbox.retain(|(other, _)| *other != entry);
    }

    /// What became of the questions among these that are not open.
    pub(super) fn rulings(&self, among: u8) -> impl Iterator<Item = (usize, Said)> {
        let said = |n: usize| match self.standing(n)? {
            Standing::Open(_) => None,
            Standing::Expired(_) => Some((n, Said::Expired)),
            Standing::Decided(_) => Some((n, self.ballots[n].map_or(Said::Withdrawn, Said::By))),
        };
        questions(among).filter_map(said)
    }

    pub(super) fn is_open(&self, n: usize) -> bool {
        matches!(self.standing(n), Some(Standing::Open(_)))
    }

    /// When the first of these is due, in ticks; 0: one is.
    pub(super) fn due_in(&self, waits: u8) -> i8 {
        match self.due(waits) {
            Due::Now => 0,
            Due::In(left) => ticks(left),
        }
    }

    /// A tick passes.
    pub(super) fn tick(&mut self, variant: Variant) {
        let is_due = self.record.is_some_and(|record| {
            record.claim.is_none()
                && questions(record.waits).any(|n| self.asks[n].is_some_and(|ask| ask.left == 0))
        });
        if variant == Variant::TtlOnPending && is_due {
            self.record = None;
        }
        if let Some((_, until)) = self.record.as_mut().and_then(|record| record.claim.as_mut()) {
            *until = (*until - i8::from(variant != Variant::ClaimForEver)).max(0);
        }
        for ask in self.asks.iter_mut().flatten() {
            ask.left = (ask.left - 1).max(-1);
        }
        for (_, left) in &mut self.outbox {
            *left = (*left - 1).max(0);
        }
    }

    /// A message with this ticket is acked whenever it comes.
    pub(super) fn is_past(&self, ticket: Ticket, life: u8) -> bool {
        let behind = self.record.is_some_and(|record| {
            record.ended || record.life != life || ticket.number < record.number
        });
        let life = (ticket.kind != TicketKind::Resume).then_some(life);
        behind && self.clone().take(ticket, life, NOBODY) == Take::Ack
    }

    pub(super) fn forget_what_matters_no_more(&mut self) {
        for n in 0..QUESTIONS {
            if self.record.is_some_and(|record| record.ended) {
                (self.asks[n], self.ballots[n]) = (None, None);
            }
            if let Some(ask) = self.asks[n].as_mut().filter(|_| self.ballots[n].is_some()) {
                ask.left = 0;
            }
        }
        if let Some(record) = &mut self.record {
            record.claim = record.claim.filter(|(holder, left)| *holder != NOBODY || *left > 0);
        }
    }

    fn due(&self, waits: u8) -> Due {
        let mut nearest = None;
        for n in questions(waits) {
            match self.standing(n) {
                Some(Standing::Open(deadline)) => {
                    nearest = Some(nearest.unwrap_or(deadline).min(deadline));
                }
                _ => return Due::Now,
            }
        }
        nearest.map_or(Due::Now, |deadline| Due::In(deadline + 1))
    }

    fn standing(&self, n: usize) -> Option<Standing> {
        self.terms(n).map(|terms| vote::standing(&terms, &self.ballot(n), 0))
    }

    fn terms(&self, n: usize) -> Option<Terms> {
        self.asks[n].map(|ask| Terms {
            digest: DIGEST.clone(),
            nonce: None,
            asked_at: 0,
            deadline: ask.left.into(),
            quorum: 1,
            requester: None,
            self_approval: false,
            approvers: Vec::new(),
            editable: false,
            withdrawn: ask.withdrawn,
        })
    }

    fn ballot(&self, n: usize) -> Ballot {
        let Some(who) = self.ballots[n] else { return Ballot::default() };
        let ((by, choice), decision) = (DECIDERS[who], format!("{} on {n}", DECIDERS[who].0));
        let decided = Decided { decision, choice, by: by.to_owned(), at: 0 };
        Ballot {
            digest: Some(DIGEST.clone()),
            nonce: None,
            votes: Vec::new(),
            decided: Some(decided),
            extended: None,
        }
    }
}

/// The digest of the first task, or of the second one with the same id.
fn task_digest(life: u8) -> TaskDigest {
    TaskDigest::from(life.to_string())
}

/// The questions in a set.
pub(super) fn questions(set: u8) -> impl Iterator<Item = usize> {
    (0..QUESTIONS).filter(move |n| set & (1 << n) != 0)
}

/// The set with this question.
pub(super) fn with(set: u8, n: usize) -> u8 {
    set | (1 << n)
}

fn ticks(time: i64) -> i8 {
    i8::try_from(time).unwrap_or(i8::MAX)
}
