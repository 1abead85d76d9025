//! In any order of calls, the store returns the same as the pure functions do.

use std::array::from_fn;

use serde_json::json;
use tokio::time::advance;

use super::draw::Draw;
use super::outcome_summary::{OutcomeSummary, summarize};
use super::*;
use crate::approval::{ApprovalStatus, DecideResult, Decision, DecisionKind};
use crate::backend::{ClaimResult, Forget, SuspendResult};
use crate::lifecycle::decision_rules::{self, DecisionRecord, Extension, RequestTerms, Vote};
use crate::lifecycle::suspension::{self, ClaimOutcome, Due, Suspension};
use crate::lifecycle::warning;
use crate::protocol::{SuspendHeader, SuspendKind, TaskDigest};

const KINDS: [SuspendKind; 3] = [SuspendKind::Original, SuspendKind::Resume, SuspendKind::Wake];
/// Approvals come most often.
const CHOICES: [DecisionKind; 4] =
    [DecisionKind::Approve, DecisionKind::Approve, DecisionKind::Reject, DecisionKind::Withdraw];
const ROUNDS: usize = 200;
const STEPS: usize = 60;
const LEASE: i64 = 3_600_000;
const DAY: i64 = 24 * 3_600_000;
const HOLDERS: [&str; 2] = ["a", "b"];
const TASKS: [&str; 2] = ["one", "two"]; // with the same id
/// Steps by which the time advances. The last one is longer than any record is kept.
const JUMPS: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_secs(15 * 60),
    Duration::from_secs(20 * 60),
    Duration::from_secs(30 * 60 * 60),
    Duration::from_secs(40 * 24 * 60 * 60),
];
const PEOPLE: [&str; 5] = ["ana", "bob", "rita", "policy:a", "policy:b"];

/// One request and its votes.
#[derive(Clone, Default)]
struct Known {
    terms: Option<RequestTerms>,
    record: DecisionRecord,
    warned: Option<u8>,
    /// When the votes expire.
    retained_until: i64,
    listed: Option<i64>,
    /// When the request expires; its votes do not.
    expires: Option<i64>,
}

impl Known {
    fn status(&self, now: i64) -> Option<ApprovalStatus> {
        self.terms.as_ref().map(|terms| decision_rules::status(terms, &self.record, now))
    }

    fn is_open(&self, now: i64) -> bool {
        matches!(self.status(now), Some(ApprovalStatus::Open(_)))
    }

    /// Extends the expiry of the votes: for as long as the request can be decided, and a month more.
    fn keep(&mut self, now: i64) {
        let deadline =
            self.terms.as_ref().map(|terms| decision_rules::deadline(terms, &self.record));
        self.retained_until = deadline.unwrap_or(now).max(now) + 30 * DAY;
    }

    fn since(&self, now: i64) -> i64 {
        self.terms
            .as_ref()
            .map_or(0, |terms| decision_rules::status_since(terms, &self.record, now))
    }
}

/// One task and its two requests.
#[derive(Default)]
struct Model {
    suspension: Option<Suspension>,
    alarm: Option<i64>,
    has_message: bool,
    requested: Vec<usize>,
    known: [Known; 2],
    /// The number of requests that were made. Each has its own nonce.
    requests: u32,
    /// When the record of the task's end expires.
    expires: Option<i64>,
}

impl Model {
    fn due(&self, waits: &[usize], now: i64) -> Due {
        Due::of(waits.iter().map(|n| self.known[*n].status(now)), self.alarm, now)
    }

    fn add_request(&mut self, n: usize, approval: &ApprovalRequest, now: i64) {
        let awaits = self.requested.contains(&n);
        if !awaits {
            self.requested.push(n);
        }
        let known = &mut self.known[n];
        let (digest, record) = (approval.digest(), &known.record);
        let is_unchanged =
            |terms| decision_rules::is_unchanged(terms, record, &digest, awaits, now);
        if known.terms.as_ref().is_some_and(is_unchanged) {
            return;
        }
        let deadline = now + 3_600_000;
        self.requests += 1;
        known.terms = Some(RequestTerms {
            digest,
            nonce: Some(self.requests.to_string()),
            requested_at: now,
            deadline,
            quorum: approval.quorum,
            requester: approval.requester.clone(),
            self_approval: false,
            approvers: approval.approvers.clone(),
            editable: true,
            withdrawn: false,
        });
        (known.listed, known.expires) = (Some(deadline), None);
    }

    fn withdraw(&mut self, n: usize, now: i64) -> bool {
        let is_open = self.known[n].is_open(now);
        if is_open {
            self.known[n].terms.as_mut().unwrap().withdrawn = true;
            self.known[n].listed = None;
        }
        is_open
    }

    fn end(&mut self, digest: Option<&TaskDigest>, now: i64) -> Vec<usize> {
        if !suspension::end(&mut self.suspension, digest) {
            return Vec::new();
        }
        let requested = std::mem::take(&mut self.requested);
        let withdrawn = requested.iter().copied().filter(|n| self.withdraw(*n, now)).collect();
        for n in requested {
            (self.known[n].listed, self.known[n].expires) = (None, Some(now + 7 * DAY));
        }
        (self.has_message, self.expires) = (false, Some(now + suspension::ENDED_RETENTION));
        withdrawn
    }

    fn forget(&mut self, now: i64) {
        if self.expires.is_some_and(|expires| expires <= now) {
            (self.suspension, self.alarm, self.expires) = (None, None, None);
        }
        for known in &mut self.known {
            if known.retained_until <= now {
                (known.record, known.warned) = (DecisionRecord::default(), None);
            }
            known.terms.take_if(|_| known.expires.is_some_and(|expires| expires <= now));
        }
    }
}

/// One task in the store and in the model, step by step.
struct Pair {
    store: EmbeddedStore,
    id: TaskId,
    /// Each in two versions.
    requests: [[ApprovalRequest; 2]; 2],
    model: Model,
}

impl Pair {
    fn new(round: usize, draw: &mut Draw) -> Self {
        let id = TaskId::from(format!("task-{round}"));
        let quorum = 1 + u32::try_from(draw.below(2)).unwrap();
        let approvers = if draw.below(3) == 0 { vec!["ana".into(), "bob".into()] } else { vec![] };
        let requests = from_fn(|n| {
            from_fn(|version| {
                let version = u32::try_from(version).unwrap();
                let quorum = if n == 0 { quorum } else { 1 };
                let name = ["first", "second"][n];
                let approvers = approvers.clone();
                ApprovalRequest { approvers, ..request_of(&id, name, version, quorum) }
            })
        });
        Self { store: in_memory(), id, requests, model: Model::default() }
    }

    fn now(&self) -> i64 {
        self.store.db.shared().clock.now()
    }

    fn ids(&self) -> [ApprovalId; 2] {
        from_fn(|n| self.requests[n][0].id.clone())
    }

    fn outcomes(&self, ids: &[usize], now: i64) -> Vec<OutcomeSummary> {
        let outcome = |n: &usize| {
            let known = &self.model.known[*n];
            let status = known.status(now).filter(|_| !known.is_open(now))?;
            let decided = decision_rules::decided(known.terms.as_ref()?, &known.record);
            let decision = decided.map(|it| it.decision.clone());
            Some((self.ids()[*n].clone(), status, known.since(now), decision))
        };
        ids.iter().filter_map(outcome).collect()
    }

    /// Claims the task for a holder of this message; without one, for a run that is about to suspend,
    /// which may start anew.
    async fn claim(
        &mut self,
        header: Result<SuspendHeader, bool>,
        digest: Option<&TaskDigest>,
        holder: &str,
    ) {
        let (now, ids) = (self.now(), self.ids());
        let before = self.model.suspension.clone();
        let waits = before.as_ref().map_or_else(Vec::new, |suspension| {
            (0..2).filter(|n| suspension.waits.contains(&ids[*n])).collect()
        });
        let due = self.model.due(&waits, now);
        let record = &mut self.model.suspension;
        let expected = match header {
            Ok(header) => suspension::claim(record, header, digest, due, holder, now, LEASE),
            Err(starts_anew) => {
                suspension::begin(record, digest.unwrap(), starts_anew, holder, now, LEASE)
            }
        };
        let number =
            |suspension: Option<&Suspension>| suspension.map(|suspension| suspension.number);
        if number(before.as_ref()) != number(self.model.suspension.as_ref()) {
            self.model.alarm = None;
        }
        let is_ended =
            |suspension: Option<&Suspension>| suspension.is_some_and(|suspension| suspension.ended);
        if is_ended(before.as_ref()) && !is_ended(self.model.suspension.as_ref()) {
            (self.model.alarm, self.model.expires) = (None, None);
        }
        let found = match header {
            Ok(header) => self.store.claim_suspended(&self.id, header, digest, holder, HOUR),
            Err(starts_anew) => {
                self.store.claim_first(&self.id, digest.unwrap(), starts_anew, holder, HOUR)
            }
        };
        let found = found.await.unwrap();
        let agree = match (&expected, &found) {
            (ClaimOutcome::Unclaimed, ClaimResult::Unclaimed)
            | (ClaimOutcome::Ack, ClaimResult::Over(_))
            | (ClaimOutcome::StateLost, ClaimResult::StateLost)
            | (ClaimOutcome::Ended, ClaimResult::Ended(_)) => true,
            (ClaimOutcome::Occupied, ClaimResult::Occupied(message)) => {
                message.is_some() == self.model.has_message
            }
            (ClaimOutcome::Postpone(wanted), ClaimResult::Postpone(delay)) => {
                delay.as_millis() == u128::from(wanted.unsigned_abs())
            }
            (ClaimOutcome::Claimed(to), ClaimResult::Claimed { number, message, outcomes, .. }) => {
                let requested = self.model.requested.clone();
                assert_eq!(summarize(outcomes), self.outcomes(&requested, now));
                assert_eq!(message.is_some(), self.model.has_message);
                for n in requested {
                    let known = &mut self.model.known[n];
                    if known.terms.is_some() && !known.is_open(now) {
                        known.listed = None;
                    }
                }
                to == number
            }
            _ => false,
        };
        assert!(agree, "{header:?} by {holder}: {expected:?}, but {found:?}");
    }

    async fn suspend(&mut self, request: SuspendRequest, waits: &[(usize, usize)]) {
        let now = self.now();
        let (known, requested) = (self.model.known.clone(), self.model.requested.clone());
        let alarm = self.model.alarm;
        for (n, version) in waits {
            let approval = self.requests[*n][*version].clone();
            self.model.add_request(*n, &approval, now);
        }
        let ids = self.ids();
        for n in (0..2).filter(|n| request.abandoned.contains(&ids[*n])) {
            self.model.withdraw(n, now);
        }
        self.model.alarm =
            request.alarm.map(|sleep| now + i64::try_from(sleep.as_millis()).unwrap());
        let waits: Vec<_> = waits.iter().map(|(n, _)| *n).collect();
        let due = self.model.due(&waits, now);
        let awaited = waits.iter().map(|n| ids[*n].clone()).collect();
        let (number, holder) = (request.number, request.holder.clone());
        let next = Suspension::waiting(number, request.digest.clone(), awaited);
        let expected =
            suspension::suspend(&mut self.model.suspension, next, due, &holder, now, LEASE);
        if expected == suspension::SuspendOutcome::Behind {
            (self.model.known, self.model.requested, self.model.alarm) = (known, requested, alarm);
        } else {
            self.model.has_message = true;
        }
        let found = self.store.suspend(request).await.unwrap();
        let agree = match (expected, &found) {
            (suspension::SuspendOutcome::Waiting, SuspendResult::Waiting(_, left)) => {
                let wanted = if let Due::In(left) = due { left.unsigned_abs() } else { 0 };
                left.as_millis() == u128::from(wanted)
            }
            (suspension::SuspendOutcome::Ready, SuspendResult::Ready(outcomes)) => {
                summarize(outcomes) == self.outcomes(&waits, now)
            }
            (suspension::SuspendOutcome::Behind, SuspendResult::Behind(_)) => true,
            _ => false,
        };
        assert!(
            agree,
            "suspension {number} for {waits:?} by {holder}: {expected:?}, but {found:?}"
        );
    }

    async fn decide(&mut self, n: usize, decision: &Decision) {
        let now = self.now();
        let vote = Vote {
            decision: &decision.id,
            choice: decision.choice,
            by: &decision.by,
            digest: &decision.digest,
            nonce: None,
            in_quorum: decision.in_quorum,
            edited: decision.edited.is_some(),
        };
        let known = &mut self.model.known[n];
        let about = (known.record.digest.clone(), known.record.nonce.clone());
        let expected = decision_rules::decide(known.terms.as_ref(), &mut known.record, &vote, now);
        if (&known.record.digest, &known.record.nonce) != (&about.0, &about.1) {
            known.warned = None;
        }
        if matches!(expected, DecideResult::Applied | DecideResult::Counted { .. }) {
            known.keep(now);
        }
        let (found, resume) = self.store.decide(decision).await.unwrap();
        assert_eq!(expected, found, "{decision:?}");
        let id = &decision.approval;
        let waits = |suspension: &&Suspension| suspension.waits.contains(id);
        let suspension =
            self.model.suspension.as_ref().filter(waits).filter(|_| found == DecideResult::Applied);
        let resume = resume.map(|resume| (resume.task, resume.number, resume.queue));
        assert_eq!(
            resume,
            suspension.map(|suspension| (self.id.clone(), suspension.number, "q".to_owned()))
        );
    }

    async fn extend(&mut self, n: usize, (by, is_operator): (&str, bool), time: Duration) {
        let now = self.now();
        let until = now + i64::try_from(time.as_millis()).unwrap();
        let known = &mut self.model.known[n];
        let mut record = known.record.clone();
        let extension = Extension { by, is_operator, until };
        let expected = decision_rules::extend(known.terms.as_ref(), &mut record, extension, now);
        if expected == DecideResult::Applied {
            (known.record, known.warned) = (record, None);
            known.keep(now);
        }
        let found =
            self.store.extend_approval(&self.ids()[n], by, is_operator, time).await.unwrap();
        assert_eq!(found, expected, "{by}");
    }

    async fn warn(&mut self, n: usize, percent: u8) {
        let now = self.now();
        let known = &mut self.model.known[n];
        let mut expected = false;
        if let (Some(ApprovalStatus::Open(deadline)), Some(terms)) =
            (known.status(now), &known.terms)
        {
            let warned = known.warned.filter(|_| known.record.of(terms).is_some());
            expected = warning::is_new(
                terms.requested_at,
                deadline.as_millisecond(),
                warned,
                percent,
                now,
            );
            if expected && known.record.of(terms).is_none() {
                known.record = DecisionRecord::empty(terms);
            }
        }
        if expected {
            known.warned = Some(percent);
            known.keep(now);
        }
        assert_eq!(self.store.record_warning(&self.ids()[n], percent).await.unwrap(), expected);
    }

    /// Compares the state that is visible to all callers.
    async fn compare(&self) {
        let (now, ids) = (self.now(), self.ids());
        let requested = read(&self.store, &ids).await;
        for (requested, known) in requested.iter().zip(&self.model.known) {
            let fields = |requested: &ApprovalRecord| {
                let digest = requested.request.digest();
                let times = [requested.requested_at, requested.at, requested.read_at];
                let times = times.map(|time| time.as_millisecond());
                (digest, requested.status, times, requested.votes, requested.warned)
            };
            let expected = known.terms.as_ref().map(|terms| {
                let record = known.record.of(terms);
                let votes = record.map_or(0, |record| u32::try_from(record.votes.len()).unwrap());
                let status = decision_rules::status(terms, &known.record, now);
                let times = [terms.requested_at, known.since(now), now];
                let warned = known.warned.filter(|_| record.is_some());
                (terms.digest.clone(), status, times, votes, warned)
            });
            assert_eq!(requested.as_ref().map(fields), expected);
            let decided =
                known.terms.as_ref().and_then(|it| decision_rules::decided(it, &known.record));
            let decision = requested.as_ref().and_then(|requested| requested.decision.as_ref());
            assert_eq!(decision.map(|it| &it.id), decided.map(|it| &it.decision));
        }
        let listed = self.model.known.iter().zip(ids);
        let mut listed: Vec<_> = listed.filter_map(|(it, id)| Some((it.listed?, id))).collect();
        listed.sort();
        let listed: Vec<_> = listed.into_iter().map(|(at, id)| (id, at)).collect();
        assert_eq!(self.store.pending_approvals(0, 10).await.unwrap(), listed);
    }

    async fn step(&mut self, draw: &mut Draw) {
        let (holder, n) = (draw.of(&HOLDERS), draw.below(2));
        // Mostly the same task.
        let task = TaskDigest::from(TASKS[draw.below(5) / 4].to_owned());
        match draw.below(18) {
            0..=3 => {
                let kind = draw.of(&KINDS);
                let number = draw.of(&[0, 1, 2, 3, 4, 1 << 40]);
                let known =
                    Some(&task).filter(|_| kind != SuspendKind::Resume && draw.below(4) > 0);
                self.claim(Ok(SuspendHeader { kind, number }), known, holder).await;
            }
            4..=6 => {
                let version = draw.below(5) / 4;
                let waits = draw.of(&[[0].as_slice(), &[1], &[0, 1], &[]]);
                let waits: Vec<_> = waits.iter().map(|n| (*n, version)).collect();
                let requests = waits.iter().map(|(n, version)| self.requests[*n][*version].clone());
                let request = SuspendRequest {
                    digest: task,
                    holder: holder.into(),
                    lease: HOUR,
                    alarm: (draw.below(3) == 0).then_some(HOUR / 2),
                    abandoned: (0..draw.below(2)).map(|_| self.ids()[n].clone()).collect(),
                    ..suspend_request(&self.id, 1 + draw.below(4) as u64, requests.collect())
                };
                self.suspend(request, &waits).await;
            }
            7 => {
                suspension::release(&mut self.model.suspension, holder);
                self.store.release_claim(&self.id, holder).await.unwrap();
            }
            8 => {
                let now = self.now();
                let expected = suspension::renew(&mut self.model.suspension, holder, now, LEASE);
                let found = self.store.renew_claim(&self.id, holder, HOUR).await.unwrap();
                assert_eq!(found, expected);
            }
            9 if draw.below(4) == 0 => {
                let (now, ids) = (self.now(), self.ids());
                let known = Some(&task).filter(|_| draw.below(4) > 0);
                let expected = self.model.end(known, now).into_iter().map(|n| ids[n].clone());
                let found = self.store.end_suspended(&self.id, known).await.unwrap();
                assert_eq!(found, expected.collect::<Vec<_>>());
            }
            9 | 10 => advance(draw.of(&JUMPS)).await,
            11 => {
                let by = (draw.of(&PEOPLE), draw.below(4) == 0);
                self.extend(n, by, draw.of(&[HOUR / 60, HOUR * 3])).await;
            }
            12 | 17 => self.claim(Err(draw.below(2) == 0), Some(&task), holder).await,
            14 if draw.below(4) == 0 => {
                let is_ended = suspension::forget(&mut self.model.suspension);
                let found = self.store.forget(&self.id).await.unwrap();
                assert_eq!(found == Forget::Forgotten, is_ended);
            }
            13 => self.warn(n, draw.of(&[0, 10, 50])).await,
            _ => {
                let choice = draw.of(&CHOICES);
                let approval = &self.requests[n][draw.below(5) / 4];
                let mut decision = Decision::on(approval, draw.of(&PEOPLE), choice);
                decision.id = format!("decision-{}", draw.below(4));
                decision.in_quorum = draw.below(2) == 0;
                decision.edited = (draw.below(4) == 0).then(|| json!({"to": "x"}));
                self.decide(n, &decision).await;
            }
        }
        self.model.forget(self.now());
        self.compare().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_agrees_with_the_pure_functions() {
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    for round in 0..ROUNDS {
        let mut pair = Pair::new(round, &mut draw);
        for _ in 0..STEPS {
            pair.step(&mut draw).await;
        }
    }
}
