//! A second, simple implementation of the approval rules: one task, its two requests, and one request of a
//! service. It follows the documentation, and does not use the code of `src/lifecycle`.

use countersign::approval::{Decision, DecisionKind};

pub(crate) const MINUTE: i64 = 60_000;
pub(crate) const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// The time to decide a request, unless it is extended.
pub(crate) const OPEN: i64 = 6 * HOUR;
/// The lease of a claim.
pub(crate) const LEASE: i64 = HOUR;
/// The retention of votes, decision and extension after the deadline of the request.
const DECISION_KEPT: i64 = 30 * DAY;
/// The retention of a request after the end of its task. For a service's request, after its own end.
const REQUEST_KEPT: i64 = 7 * DAY;
/// The retention of the record that a task has ended.
const END_KEPT: i64 = 8 * DAY;
/// The slot of the service's request. The task's requests come before it.
pub(crate) const SERVICE: usize = 2;

/// The status of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    Expired,
    Decided(DecisionKind),
}

/// The rules of a request: who may decide, and how many approvals it needs.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) quorum: usize,
    pub(crate) approvers: Vec<String>,
    pub(crate) editable: bool,
    pub(crate) self_approval: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) terms: Terms,
    /// The number of this request among all that were made.
    pub(crate) made: u32,
    /// The version of its arguments.
    pub(crate) version: usize,
    deadline: i64,
    /// Whether its task ended while it was open.
    is_abandoned: bool,
    /// The approvers who voted for it, and the ids of their decisions.
    pub(crate) votes: Vec<(String, String)>,
    pub(crate) decided: Option<Decision>,
    decided_at: i64,
    extended: Option<i64>,
    /// The time until which votes, decision and extension are kept.
    decision_until: i64,
    gone: Option<i64>,
}

/// The result of a decision or an extension.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Unknown,
    Replayed,
    Withdrawn,
    Decided(String, DecisionKind),
    Expired,
    Mismatch,
    Forbidden,
    Earlier,
    Counted(usize),
    Applied,
}

/// The record of the suspended task.
#[derive(Clone, Debug)]
pub(crate) struct Suspension {
    pub(crate) number: u64,
    pub(crate) waits: Vec<usize>,
    requested: Vec<usize>,
    claim: Option<(String, i64)>,
    pub(crate) ended: bool,
    gone: Option<i64>,
}

/// The result of a worker's claim for a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClaimOutcome {
    Unclaimed,
    Claimed(u64, Vec<usize>),
    Over,
    Postpone,
    Lost,
    Ended,
}

/// The result of a suspension.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SuspendOutcome {
    Waiting,
    Ready(Vec<usize>),
    Behind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Original,
    Resume,
    Wake,
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) now: i64,
    pub(crate) requests: [Option<Request>; 3],
    pub(crate) suspension: Option<Suspension>,
    /// The number of requests that were made.
    made: u32,
}

impl Request {
    pub(crate) fn deadline(&self) -> i64 {
        self.extended.unwrap_or(self.deadline)
    }

    pub(crate) fn state(&self, now: i64) -> State {
        match &self.decided {
            Some(decision) => State::Decided(decision.choice),
            None if self.is_abandoned => State::Decided(DecisionKind::Withdraw),
            None if now > self.deadline() => State::Expired,
            None => State::Open,
        }
    }

    fn may(&self, decision: &Decision) -> bool {
        let by = &decision.by;
        let is_named = self.terms.approvers.is_empty() || self.terms.approvers.contains(by);
        let may_edit = decision.edited.is_none() || (self.terms.editable && self.terms.quorum == 1);
        let is_requester = by == "rita";
        let counts = !by.starts_with("policy:") || self.terms.quorum == 1 || decision.in_quorum;
        match decision.choice {
            DecisionKind::Withdraw if is_requester => true,
            DecisionKind::Approve => {
                let is_own = is_requester && !self.terms.self_approval;
                is_named && !is_own && counts && may_edit
            }
            _ => is_named && may_edit,
        }
    }

    /// Returns the reply to a late decision or extension; `None` while the request is open.
    fn over(&self, now: i64) -> Option<Reply> {
        match (self.state(now), &self.decided) {
            (State::Open, _) => None,
            (State::Expired, _) => Some(Reply::Expired),
            (State::Decided(DecisionKind::Withdraw), _) | (State::Decided(_), None) => {
                Some(Reply::Withdrawn)
            }
            (State::Decided(choice), Some(decision)) => {
                Some(Reply::Decided(decision.by.clone(), choice))
            }
        }
    }
}

impl Model {
    pub(crate) fn state(&self, slot: usize) -> Option<State> {
        self.requests[slot].as_ref().map(|request| request.state(self.now))
    }

    fn is_open(&self, slot: usize) -> bool {
        self.state(slot) == Some(State::Open)
    }

    pub(crate) fn is_due(&self) -> bool {
        let waits = self.suspension.as_ref().map_or(&[][..], |suspension| &suspension.waits);
        waits.is_empty() || waits.iter().any(|slot| !self.is_open(*slot))
    }

    /// Returns the slots whose requests are no longer open.
    fn over(&self, slots: &[usize]) -> Vec<usize> {
        let is_over = |slot: &usize| self.state(*slot).is_some_and(|it| it != State::Open);
        slots.iter().copied().filter(is_over).collect()
    }

    pub(crate) fn make(&mut self, slot: usize, version: usize, terms: Terms) {
        self.made += 1;
        self.requests[slot] = Some(Request {
            terms,
            made: self.made,
            version,
            deadline: self.now + OPEN,
            is_abandoned: false,
            votes: Vec::new(),
            decided: None,
            decided_at: 0,
            extended: None,
            decision_until: 0,
            gone: None,
        });
    }

    /// Applies a decision. `version` and `made` identify the request that the approver read. `made` is `None`
    /// if the decision has no nonce.
    pub(crate) fn decide(
        &mut self,
        slot: usize,
        decision: &Decision,
        version: usize,
        made: Option<u32>,
    ) -> Reply {
        let now = self.now;
        let Some(request) = &mut self.requests[slot] else { return Reply::Unknown };
        let (id, by) = (&decision.id, &decision.by);
        let voted = request.votes.iter().any(|vote| *vote == (by.clone(), id.clone()));
        if voted || request.decided.as_ref().is_some_and(|decided| decided.id == *id) {
            return Reply::Replayed;
        }
        if let Some(reply) = request.over(now) {
            return reply;
        }
        if version != request.version || made.is_some_and(|made| made != request.made) {
            return Reply::Mismatch;
        }
        if !request.may(decision) {
            return Reply::Forbidden;
        }
        request.decision_until = request.deadline().max(now) + DECISION_KEPT;
        if decision.choice == DecisionKind::Approve {
            let voter = |name: &str| name.split(':').next().map(str::to_owned);
            let is_policy = by.starts_with("policy:");
            let same = |(other, _): &(String, String)| {
                other == by || (is_policy && voter(other) == voter(by))
            };
            if !request.votes.iter().any(same) {
                request.votes.push((by.clone(), id.clone()));
            }
            if request.votes.len() < request.terms.quorum {
                return Reply::Counted(request.votes.len());
            }
        }
        request.decided = Some(decision.clone());
        request.decided_at = now;
        Reply::Applied
    }

    pub(crate) fn extend(&mut self, slot: usize, by: &str, operator: bool, time: i64) -> Reply {
        let now = self.now;
        let Some(request) = &mut self.requests[slot] else { return Reply::Unknown };
        if let Some(reply) = request.over(now) {
            return reply;
        }
        let terms = &request.terms;
        let is_named = terms.approvers.is_empty() || terms.approvers.iter().any(|it| it == by);
        let may = is_named && (by != "rita" || terms.self_approval);
        if !operator && !may {
            return Reply::Forbidden;
        }
        if now + time < request.deadline() {
            return Reply::Earlier;
        }
        request.extended = Some(now + time);
        request.decision_until = now + time + DECISION_KEPT;
        Reply::Applied
    }

    pub(crate) fn claim(&mut self, kind: Kind, number: u64, holder: &str) -> ClaimOutcome {
        let (is_due, until) = (self.is_due(), self.now + LEASE);
        let Some(suspension) = &mut self.suspension else {
            return match kind {
                Kind::Original => ClaimOutcome::Unclaimed,
                Kind::Resume => ClaimOutcome::Over,
                Kind::Wake => ClaimOutcome::Lost,
            };
        };
        if suspension.ended {
            return if kind == Kind::Original { ClaimOutcome::Ended } else { ClaimOutcome::Over };
        }
        let is_ahead = number > suspension.number;
        if number < suspension.number || (is_ahead && kind == Kind::Resume) {
            return ClaimOutcome::Over;
        }
        if suspension.claim.as_ref().is_some_and(|(by, until)| by != holder && *until > self.now) {
            return ClaimOutcome::Postpone;
        }
        match kind {
            Kind::Resume if !is_due => return ClaimOutcome::Over,
            Kind::Wake if !is_due && !is_ahead => return ClaimOutcome::Postpone,
            _ => {}
        }
        if is_ahead {
            suspension.waits.clear();
        }
        (suspension.number, suspension.claim) = (number, Some((holder.to_owned(), until)));
        let requested = suspension.requested.clone();
        ClaimOutcome::Claimed(number, self.over(&requested))
    }

    /// Claims the task for a run that is about to suspend for the first time.
    pub(crate) fn begin(&mut self, starts_anew: bool, holder: &str) -> ClaimOutcome {
        let past = match &self.suspension {
            None => 0,
            Some(suspension) if suspension.ended && starts_anew => suspension.number + 1,
            Some(suspension) if suspension.ended => return ClaimOutcome::Over,
            Some(_) => return self.claim(Kind::Original, 0, holder),
        };
        let claim = Some((holder.to_owned(), self.now + LEASE));
        let (waits, requested) = (Vec::new(), Vec::new());
        self.suspension =
            Some(Suspension { number: 0, waits, requested, claim, ended: false, gone: None });
        ClaimOutcome::Claimed(past, Vec::new())
    }

    pub(crate) fn suspend(
        &mut self,
        number: u64,
        waits: &[usize],
        version: usize,
        terms: &Terms,
        holder: &str,
    ) -> SuspendOutcome {
        let mut requested = Vec::new();
        if let Some(suspension) = &self.suspension {
            let claim = suspension.claim.as_ref();
            let is_held = claim.is_some_and(|(by, until)| by != holder && *until > self.now);
            if suspension.ended || suspension.number > number || is_held {
                return SuspendOutcome::Behind;
            }
            requested = suspension.requested.clone();
        }
        for slot in waits {
            let known = self.requests[*slot].as_ref().filter(|it| it.version == version);
            if !requested.contains(slot) || known.is_none() {
                self.make(*slot, version, terms.clone());
            }
            if !requested.contains(slot) {
                requested.push(*slot);
            }
        }
        let over = self.over(waits);
        let claim = (!over.is_empty()).then(|| (holder.to_owned(), self.now + LEASE));
        let waits = waits.to_vec();
        self.suspension =
            Some(Suspension { number, waits, requested, claim, ended: false, gone: None });
        if over.is_empty() { SuspendOutcome::Waiting } else { SuspendOutcome::Ready(over) }
    }

    pub(crate) fn renew(&mut self, holder: &str) -> bool {
        let until = self.now + LEASE;
        let claim = self.suspension.as_mut().and_then(|suspension| suspension.claim.as_mut());
        let own = claim.filter(|(by, _)| by == holder);
        own.map(|claim| claim.1 = until).is_some()
    }

    pub(crate) fn release(&mut self, holder: &str) {
        if let Some(suspension) = &mut self.suspension {
            suspension.claim.take_if(|(by, _)| by == holder);
        }
    }

    /// Ends the task, and withdraws its open requests.
    pub(crate) fn end(&mut self) {
        let Some(suspension) = &mut self.suspension else { return };
        (suspension.ended, suspension.claim, suspension.gone) =
            (true, None, Some(self.now + END_KEPT));
        suspension.waits.clear();
        for slot in std::mem::take(&mut suspension.requested) {
            if let Some(request) = &mut self.requests[slot] {
                request.is_abandoned |= request.state(self.now) == State::Open;
                request.gone = Some(self.now + REQUEST_KEPT);
            }
        }
    }

    /// An operator replays a dead letter: this removes the record of a task that has ended.
    pub(crate) fn reopen(&mut self) {
        self.suspension.take_if(|suspension| suspension.ended);
    }

    /// Moves the clock, and removes data whose retention has passed.
    pub(crate) fn pass(&mut self, time: i64) {
        self.now += time;
        let now = self.now;
        self.suspension.take_if(|suspension| suspension.gone.is_some_and(|gone| gone <= now));
        for (slot, entry) in self.requests.iter_mut().enumerate() {
            let Some(request) = entry else { continue };
            if request.decision_until <= now {
                (request.votes, request.decided, request.extended) = (Vec::new(), None, None);
            }
            let over = match request.state(now) {
                State::Open => None,
                State::Expired => Some(request.deadline()),
                State::Decided(_) => Some(request.decided_at),
            };
            // Sweeps delete a service's request at some time after this, so the model stops tracking it.
            let is_gone = request.gone.is_some_and(|gone| gone <= now)
                || (slot == SERVICE && over.is_some_and(|at| at + REQUEST_KEPT <= now));
            if is_gone {
                *entry = None;
            }
        }
    }
}
