//! Redis in the model: each method is one script, and calls the function that the script is compared with.
//! Times are ticks relative to now, which keeps the number of states finite.

use std::sync::LazyLock;

use super::mutant::Mutant;
use super::observed_outcome::ObservedOutcome;
use super::outbox_entry::Entry;
use crate::approval::{ApprovalId, ApprovalStatus, DecideResult, DecisionKind, Digest};
use crate::lifecycle::decision_rules::{
    self, DecisionRecord, RecordedDecision, RequestTerms, Vote,
};
use crate::lifecycle::suspension::{self, Claim, ClaimOutcome, Due, SuspendOutcome, Suspension};
use crate::protocol::{SuspendHeader, SuspendKind, TaskDigest};

pub(super) const REQUESTS: usize = 2;
/// The time until each request's deadline.
pub(super) const DEADLINES: [i8; REQUESTS] = [0, 1];
pub(super) const LEASE: i8 = 1;
/// The holder of a claim whose worker is gone.
pub(super) const NO_HOLDER: usize = 2;
const HOLDERS: [&str; 3] = ["first worker", "second worker", "none"];
/// The first decider approves, the second one rejects.
const DECIDERS: [(&str, DecisionKind); 2] =
    [("ana", DecisionKind::Approve), ("bob", DecisionKind::Reject)];

static IDS: LazyLock<[ApprovalId; REQUESTS]> =
    LazyLock::new(|| [ApprovalId::random(), ApprovalId::random()]);
static DIGEST: LazyLock<Digest> = LazyLock::new(|| Digest::from("digest".to_owned()));

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Store {
    pub(super) record: Option<Record>,
    pub(super) requests: [Option<Request>; REQUESTS],
    /// The requests in the index of open requests, as a set.
    pub(super) indexed: u8,
    /// The decider of each request.
    pub(super) decisions: [Option<usize>; REQUESTS],
    /// The entries to send, each with the ticks until it is overdue.
    pub(super) outbox: Vec<(Entry, i8)>,
    pub(super) has_result: bool,
}

/// A compact [`Suspension`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) number: u64,
    /// The task that it belongs to; see `Message::generation`.
    pub(super) generation: u8,
    /// A set of requests.
    pub(super) waits: u8,
    /// The holder of the claim, and the ticks until it expires.
    pub(super) claim: Option<(usize, i8)>,
    /// The decision whose message made the claim; see [`Mutant::ClaimPerApproval`].
    pub(super) about: usize,
    pub(super) ended: bool,
    /// The record contains the task's message.
    pub(super) has_message: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request {
    pub(super) left: i8,
    pub(super) withdrawn: bool,
}

impl Store {
    /// Calls a function of `lifecycle/suspension.rs` with the record in its own type.
    fn with_suspension<T>(&mut self, function: impl FnOnce(&mut Option<Suspension>) -> T) -> T {
        let before = self.record;
        let mut stored = before.map(|record| Suspension {
            number: record.number,
            digest: Some(task_digest(record.generation)),
            waits: requests_in(record.waits).map(|n| IDS[n].clone()).collect(),
            claim: record.claim.map(|(holder, until)| Claim {
                holder: HOLDERS[holder].to_owned(),
                until: i64::from(until),
            }),
            ended: record.ended,
        });
        let outcomes = function(&mut stored);
        self.record = stored.map(|stored| Record {
            number: stored.number,
            generation: u8::from(stored.digest == Some(task_digest(1))),
            waits: (0..REQUESTS).filter(|n| stored.waits.contains(&IDS[*n])).fold(0, with),
            claim: stored.claim.map(|claim| {
                let holder = HOLDERS.iter().position(|name| *name == claim.holder);
                (holder.unwrap_or(NO_HOLDER), ticks(claim.until))
            }),
            about: before.map_or(0, |record| record.about),
            ended: stored.ended,
            has_message: before.is_some_and(|record| record.has_message && !record.ended),
        });
        outcomes
    }

    /// `claim_task.lua`.
    pub(super) fn claim_record(
        &mut self,
        header: SuspendHeader,
        generation: Option<u8>,
        holder: usize,
    ) -> ClaimOutcome {
        let due = self.due(self.record.map_or(0, |record| record.waits));
        let (digest, holder) = (generation.map(task_digest), HOLDERS[holder]);
        let outcome = self.with_suspension(|stored| {
            suspension::claim(stored, header, digest.as_ref(), due, holder, 0, LEASE.into())
        });
        if matches!(outcome, ClaimOutcome::Claimed(_)) {
            let closed = self.outcomes(0b11).map(|(n, _)| n).fold(0, with);
            self.indexed &= !closed;
        }
        outcome
    }

    /// `claim_task.lua`, for a run that is about to be suspended for the first time.
    pub(super) fn begin(
        &mut self,
        generation: u8,
        starts_anew: bool,
        holder: usize,
    ) -> ClaimOutcome {
        let holder = HOLDERS[holder];
        if !starts_anew {
            let first = SuspendHeader { kind: SuspendKind::Original, number: 0 };
            if self.record.is_some() {
                return self.claim_record(first, None, NO_HOLDER);
            }
        }
        let digest = task_digest(generation);
        self.with_suspension(|stored| {
            suspension::begin(stored, &digest, starts_anew, holder, 0, LEASE.into())
        })
    }

    /// `suspend.lua`.
    pub(super) fn suspend(
        &mut self,
        (generation, number): (u8, u64),
        waits: u8,
        holder: usize,
        mutant: Mutant,
    ) -> SuspendOutcome {
        let before = (self.requests, self.indexed);
        for n in requests_in(waits) {
            let is_over = self.requests[n].is_some_and(|request| request.withdrawn)
                && self.decisions[n].is_none();
            if self.requests[n].is_none() || is_over {
                self.requests[n] = Some(Request { left: DEADLINES[n], withdrawn: false });
                self.indexed = with(self.indexed, n);
            }
        }
        let due = self.due(waits);
        let ids = requests_in(waits).map(|n| IDS[n].clone()).collect();
        let next = Suspension::waiting(number, task_digest(generation), ids);
        let outcome = self.with_suspension(|stored| {
            suspension::suspend(stored, next, due, HOLDERS[holder], 0, LEASE.into())
        });
        match &mut self.record {
            Some(record) if outcome != SuspendOutcome::Behind => record.has_message = true,
            _ => (self.requests, self.indexed) = before,
        }
        if outcome == SuspendOutcome::Ready && mutant != Mutant::ReadyWithoutOutbox {
            self.write_outbox(Entry { number, about: 0 }, LEASE);
        }
        outcome
    }

    /// `lease.lua`.
    pub(super) fn renew(&mut self, holder: usize) -> bool {
        self.with_suspension(|stored| suspension::renew(stored, HOLDERS[holder], 0, LEASE.into()))
    }

    /// `lease.lua`, with no lease.
    pub(super) fn release(&mut self, holder: usize) {
        self.with_suspension(|stored| suspension::release(stored, HOLDERS[holder]));
    }

    /// `end.lua`.
    pub(super) fn end(&mut self, generation: u8) {
        for n in
            requests_in(self.record.filter(|it| it.generation == generation).map_or(0, |_| 0b11))
        {
            let is_open = self.is_open(n);
            if let Some(request) = self.requests[n].as_mut().filter(|_| is_open) {
                request.withdrawn = true;
            }
            self.indexed &= !with(0, n);
        }
        self.with_suspension(|stored| suspension::end(stored, Some(&task_digest(generation))));
    }

    /// `decide.lua`; returns the entry to send, if the decision is applied.
    pub(super) fn decide(&mut self, n: usize, who: usize, mutant: Mutant) -> Option<Option<Entry>> {
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
        let mut decision_record = self.decision_record(n);
        let answer = decision_rules::decide(self.terms(n).as_ref(), &mut decision_record, &vote, 0);
        (answer == DecideResult::Applied).then(|| self.write(n, who, mutant))
    }

    /// Writes a decision that was found to count.
    pub(super) fn write(&mut self, n: usize, who: usize, mutant: Mutant) -> Option<Entry> {
        self.decisions[n] = Some(who);
        let waiting = self.record.filter(|record| !record.ended && record.waits & (1 << n) != 0)?;
        let about = if mutant == Mutant::ClaimPerApproval { n } else { 0 };
        let entry = Entry { number: waiting.number, about };
        if mutant != Mutant::NoOutbox {
            self.write_outbox(entry, 0);
        }
        Some(entry)
    }

    /// Adds an entry to the outbox, which is overdue after this many ticks.
    fn write_outbox(&mut self, entry: Entry, ticks: i8) {
        self.clear(entry);
        self.outbox.push((entry, ticks));
        self.outbox.sort_unstable();
    }

    /// Removes an entry that was sent.
    pub(super) fn clear(&mut self, entry: Entry) {
        self.outbox.retain(|(other, _)| *other != entry);
    }

    /// `tidy.lua`, for a request whose deadline has passed: removes it from the index. Returns the entry of
    /// the task that waits for it.
    pub(super) fn expire(&mut self, n: usize, mutant: Mutant) -> Option<Entry> {
        self.indexed &= !with(0, n);
        let waiting =
            self.record.filter(|record| !record.ended && record.waits & with(0, n) != 0)?;
        let entry = Entry { number: waiting.number, about: 0 };
        if mutant == Mutant::ExpireWithoutOutbox {
            return None;
        }
        self.write_outbox(entry, 0);
        Some(entry)
    }

    /// Returns whether the deadline of this request has passed without a decision.
    pub(super) fn is_expired(&self, n: usize) -> bool {
        matches!(self.status(n), Some(ApprovalStatus::Expired(_)))
    }

    /// Returns the outcomes of those of these requests that are not open.
    pub(super) fn outcomes(&self, among: u8) -> impl Iterator<Item = (usize, ObservedOutcome)> {
        let outcome = |n: usize| match self.status(n)? {
            ApprovalStatus::Open(_) => None,
            ApprovalStatus::Expired(_) => Some((n, ObservedOutcome::Expired)),
            ApprovalStatus::Decided(_) => {
                Some((n, self.decisions[n].map_or(ObservedOutcome::Withdrawn, ObservedOutcome::By)))
            }
        };
        requests_in(among).filter_map(outcome)
    }

    pub(super) fn is_open(&self, n: usize) -> bool {
        matches!(self.status(n), Some(ApprovalStatus::Open(_)))
    }

    /// Returns when the first of these is due, in ticks; 0 if one is due now.
    pub(super) fn due_in(&self, waits: u8) -> i8 {
        match self.due(waits) {
            Due::Now => 0,
            Due::In(left) => ticks(left),
        }
    }

    /// Advances the time by one tick.
    pub(super) fn tick(&mut self, mutant: Mutant) {
        let is_due = self.record.is_some_and(|record| {
            record.claim.is_none()
                && requests_in(record.waits)
                    .any(|n| self.requests[n].is_some_and(|request| request.left == 0))
        });
        if mutant == Mutant::TtlOnPending && is_due {
            self.record = None;
        }
        if let Some((_, until)) = self.record.as_mut().and_then(|record| record.claim.as_mut()) {
            *until = (*until - i8::from(mutant != Mutant::ClaimNeverExpires)).max(0);
        }
        for request in self.requests.iter_mut().flatten() {
            request.left = (request.left - 1).max(-1);
        }
        for (_, left) in &mut self.outbox {
            *left = (*left - 1).max(0);
        }
    }

    /// Returns whether a message with this suspend header would be acked at any time.
    pub(super) fn is_past(&self, header: SuspendHeader, generation: u8) -> bool {
        let behind = self.record.is_some_and(|record| {
            record.ended || record.generation != generation || header.number < record.number
        });
        let generation = (header.kind != SuspendKind::Resume).then_some(generation);
        behind && self.clone().claim_record(header, generation, NO_HOLDER) == ClaimOutcome::Ack
    }

    pub(super) fn drop_irrelevant_state(&mut self) {
        for n in 0..REQUESTS {
            if self.record.is_some_and(|record| record.ended) {
                (self.requests[n], self.decisions[n]) = (None, None);
            }
            if self.requests[n].is_none() || self.decisions[n].is_some() {
                self.indexed &= !with(0, n);
            }
            if let Some(request) = self.requests[n].as_mut().filter(|_| self.decisions[n].is_some())
            {
                request.left = 0;
            }
        }
        if let Some(record) = &mut self.record {
            record.claim = record.claim.filter(|(holder, left)| *holder != NO_HOLDER || *left > 0);
        }
    }

    fn due(&self, waits: u8) -> Due {
        let mut nearest = None;
        for n in requests_in(waits) {
            match self.status(n) {
                Some(ApprovalStatus::Open(deadline)) => {
                    let deadline = deadline.as_millisecond();
                    nearest = Some(nearest.unwrap_or(deadline).min(deadline));
                }
                _ => return Due::Now,
            }
        }
        nearest.map_or(Due::Now, |deadline| Due::In(deadline + 1))
    }

    fn status(&self, n: usize) -> Option<ApprovalStatus> {
        self.terms(n).map(|terms| decision_rules::status(&terms, &self.decision_record(n), 0))
    }

    fn terms(&self, n: usize) -> Option<RequestTerms> {
        self.requests[n].map(|request| RequestTerms {
            digest: DIGEST.clone(),
            nonce: None,
            requested_at: 0,
            deadline: request.left.into(),
            quorum: 1,
            requester: None,
            self_approval: false,
            approvers: Vec::new(),
            editable: false,
            withdrawn: request.withdrawn,
        })
    }

    fn decision_record(&self, n: usize) -> DecisionRecord {
        let Some(who) = self.decisions[n] else { return DecisionRecord::default() };
        let ((by, choice), decision) = (DECIDERS[who], format!("{} on {n}", DECIDERS[who].0));
        let decided = RecordedDecision { decision, choice, by: by.to_owned(), at: 0 };
        DecisionRecord {
            digest: Some(DIGEST.clone()),
            nonce: None,
            votes: Vec::new(),
            decided: Some(decided),
            extended: None,
        }
    }
}

/// Returns the digest of the first task, or of the second one with the same id.
fn task_digest(generation: u8) -> TaskDigest {
    TaskDigest::from(generation.to_string())
}

/// Iterates over the requests in a set.
pub(super) fn requests_in(set: u8) -> impl Iterator<Item = usize> {
    (0..REQUESTS).filter(move |n| set & (1 << n) != 0)
}

/// Adds this request to the set.
pub(super) fn with(set: u8, n: usize) -> u8 {
    set | (1 << n)
}

fn ticks(time: i64) -> i8 {
    i8::try_from(time).unwrap_or(i8::MAX)
}
