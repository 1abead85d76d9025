//! One task, its workers and its approvers: the messages, the runs, and the comparison with the model.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use countersign::TaskId;
use countersign::approval::{
    Action, ApprovalId, ApprovalOutcome, ApprovalRequest, ApprovalStatus, AuditKind, DecideResult,
    Decision, DecisionKind,
};
use countersign::backend::{self, ApprovalRecord, AuditAction, Store, SuspendRequest};
use countersign::protocol::{Arguments, Envelope, SuspendHeader, SuspendKind, TaskDigest};
use serde_json::json;

use crate::draw::Draw;
use crate::model::{
    ClaimOutcome, Kind, LEASE, MINUTE, Model, OPEN, Reply, Request, SERVICE, State, SuspendOutcome,
    Terms,
};
use crate::stores::{Clock, Fixture};

const DRIFT: i64 = 300_000; // The allowed difference of the clocks of model and store, in milliseconds.

/// A decision that was sent, and the request that the approver read.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) slot: usize,
    pub(crate) decision: Decision,
    version: usize,
    made: Option<u32>,
}

/// A run of the task on a worker.
pub(crate) struct Run {
    pub(crate) holder: String,
    number: u64,
    /// Whether it holds the claim, so that it may end the task.
    pub(crate) is_claimed: bool,
    starts_anew: bool,
    outcomes: Vec<ApprovalOutcome>,
    /// The task's first request when the run received its outcomes.
    request: Option<u32>,
    version: usize,
    waits: &'static [usize],
    /// The request whose approval let the action run.
    acted: Option<u32>,
}

pub(crate) struct World<'p> {
    pub(crate) store: Arc<dyn Store>,
    clock: &'p mut Clock,
    pub(crate) draw: Draw,
    pub(crate) model: Model,
    pub(crate) task: TaskId,
    ids: [ApprovalId; 3],
    terms: Terms,
    /// All messages. None is lost, and each may be delivered at any time and any number of times.
    pub(crate) messages: Vec<(Kind, u64)>,
    /// Messages that led to a claim. Unless its run completes, such a message is delivered again.
    claimed: HashSet<(Kind, u64)>,
    pub(crate) runs: Vec<Run>,
    pub(crate) sent: Vec<Sent>,
    /// The nonce of each request that was made.
    nonces: HashMap<u32, String>,
    /// The decision that approved each request.
    granted: HashMap<u32, String>,
    /// Requests whose approval was used by a run that ended the task.
    spent: HashSet<u32>,
    /// The number of refused attempts to decide or extend.
    refused: usize,
    count: u32,
    pub(crate) acted: u32,
    pub(crate) trace: Vec<String>,
}

impl<'p> World<'p> {
    pub(crate) fn new(fixture: &'p mut Fixture, seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let named = ["ana", "bob", "policy:a"].map(str::to_owned).into();
        let terms = Terms {
            quorum: 1 + usize::from(draw.one_in(3)),
            approvers: if draw.one_in(4) { named } else { Vec::new() },
            editable: !draw.one_in(3),
            self_approval: draw.one_in(4),
        };
        let task = TaskId::random();
        let ids = [0, 1].map(|n| ApprovalId::of(&task, ["pay", "later"][n], 0));
        Self {
            store: fixture.store.clone(),
            clock: &mut fixture.clock,
            draw,
            model: Model::default(),
            ids: [ids[0].clone(), ids[1].clone(), ApprovalId::random()],
            task,
            terms,
            messages: vec![(Kind::Original, 0)],
            claimed: HashSet::new(),
            runs: Vec::new(),
            sent: Vec::new(),
            nonces: HashMap::new(),
            granted: HashMap::new(),
            spent: HashSet::new(),
            refused: 0,
            count: 0,
            acted: 0,
            trace: Vec::new(),
        }
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.count += 1;
        self.count
    }

    fn approval_request(&self, slot: usize, version: usize) -> ApprovalRequest {
        let name = ["pay", "later", "service"][slot];
        ApprovalRequest {
            id: self.ids[slot].clone(),
            task: (slot != SERVICE).then(|| self.task.clone()),
            action: Action {
                name: name.into(),
                version: u32::try_from(version).unwrap(),
                args: json!({"to": name}),
            },
            editable: self.terms.editable,
            requester: Some("rita".into()),
            self_approval: self.terms.self_approval,
            approvers: self.terms.approvers.clone(),
            quorum: u32::try_from(self.terms.quorum).unwrap(),
            expires_in: Duration::from_millis(OPEN.unsigned_abs()),
            ..ApprovalRequest::new(name)
        }
    }

    fn digest() -> TaskDigest {
        TaskDigest::from("one".to_owned())
    }

    pub(crate) async fn pass(&mut self, time: i64) {
        self.clock.pass(time).await;
        self.model.pass(time);
    }

    /// Delivers a message to a worker. The message may be an old one.
    pub(crate) async fn deliver(&mut self, (kind, number): (Kind, u64)) {
        let holder = format!("run-{}", self.next());
        let expected = self.model.claim(kind, number, &holder);
        let suspend_kind = match kind {
            Kind::Original => SuspendKind::Original,
            Kind::Resume => SuspendKind::Resume,
            Kind::Wake => SuspendKind::Wake,
        };
        let (header, digest) = (SuspendHeader { kind: suspend_kind, number }, Self::digest());
        let digest = Some(&digest).filter(|_| kind != Kind::Resume);
        let lease = Duration::from_millis(LEASE.unsigned_abs());
        let found = self.store.claim_suspended(&self.task, header, digest, &holder, lease).await;
        // A message of a task that has ended may be a late copy or a new message.
        let starts_anew =
            found.as_ref().is_ok_and(|it| matches!(it, backend::ClaimResult::Ended(_)));
        if let Some(outcomes) = self.compare(&expected, found.unwrap()) {
            self.claimed.insert((kind, number));
            self.start(holder, number, true, false, outcomes);
        } else if expected == ClaimOutcome::Unclaimed || (starts_anew && self.draw.one_in(2)) {
            let starts_anew = starts_anew || self.draw.one_in(2);
            self.start(holder, 0, false, starts_anew, Vec::new());
        }
    }

    fn start(
        &mut self,
        holder: String,
        number: u64,
        is_claimed: bool,
        starts_anew: bool,
        outcomes: Vec<ApprovalOutcome>,
    ) {
        let version = usize::from(self.draw.one_in(12));
        let waits = self.draw.of(&[&[0][..], &[0], &[0, 1]]);
        self.runs.push(Run {
            holder,
            number,
            is_claimed,
            starts_anew,
            outcomes,
            request: self.request(),
            version,
            waits,
            acted: None,
        });
    }

    /// Returns the number of the task's first request.
    fn request(&self) -> Option<u32> {
        self.model.requests[0].as_ref().map(|request| request.made)
    }

    /// Compares the result of a claim with the model's, and returns the outcomes if it was claimed.
    fn compare(
        &mut self,
        expected: &ClaimOutcome,
        found: backend::ClaimResult,
    ) -> Option<Vec<ApprovalOutcome>> {
        match (expected, found) {
            (ClaimOutcome::Unclaimed, backend::ClaimResult::Unclaimed)
            | (ClaimOutcome::Over, backend::ClaimResult::Over(_))
            | (ClaimOutcome::Postpone, backend::ClaimResult::Postpone(_))
            | (ClaimOutcome::Lost, backend::ClaimResult::StateLost)
            | (ClaimOutcome::Ended, backend::ClaimResult::Ended(_)) => None,
            (
                ClaimOutcome::Claimed(number, over),
                backend::ClaimResult::Claimed { number: it, outcomes, .. },
            ) if *number == it => {
                self.compare_outcomes(over, &outcomes);
                Some(outcomes)
            }
            (expected, found) => panic!("expected {expected:?}, found {found:?}"),
        }
    }

    fn compare_outcomes(&self, expected: &[usize], found: &[ApprovalOutcome]) {
        let ids: Vec<_> = expected.iter().map(|slot| &self.ids[*slot]).collect();
        assert_eq!(found.iter().map(|outcome| &outcome.approval).collect::<Vec<_>>(), ids);
        for (slot, outcome) in expected.iter().zip(found) {
            let request = self.model.requests[*slot].as_ref().unwrap();
            assert_eq!(state_of(outcome.status), request.state(self.model.now));
            assert_eq!(outcome.decision, request.decided);
            assert_eq!(outcome.digest, self.approval_request(*slot, request.version).digest());
        }
    }

    /// Continues a run: it runs the action, requests approvals, or ends the task.
    pub(crate) async fn go_on(&mut self, n: usize) {
        let mut run = self.runs.swap_remove(n);
        let digest = self.approval_request(0, run.version).digest();
        let outcome =
            run.outcomes.iter().find(|it| it.approval == self.ids[0] && it.digest == digest);
        let Some(outcome) = outcome.cloned() else {
            if let Some(run) = self.suspend(run).await {
                self.runs.push(run);
            }
            return;
        };
        if run.acted.is_none() && outcome.status == ApprovalStatus::Decided(DecisionKind::Approve) {
            run.acted = Some(self.act(run.request, &outcome));
            self.runs.push(run);
            return;
        }
        let found = self.store.renew_claim(&self.task, &run.holder, self.lease()).await.unwrap();
        assert_eq!(found, self.model.renew(&run.holder), "the claim of {}", run.holder);
        if !found {
            // Another run holds the claim.
            return;
        }
        if let Some(made) = run.acted {
            assert!(self.spent.insert(made), "request {made} has let a second run end");
        }
        self.model.end();
        self.store.end_suspended(&self.task, Some(&Self::digest())).await.unwrap();
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(LEASE.unsigned_abs())
    }

    /// Runs the action, and returns the request whose approval allowed it.
    fn act(&mut self, request: Option<u32>, outcome: &ApprovalOutcome) -> u32 {
        let request = request.expect("an outcome belongs to a request");
        let decision = outcome.decision.as_ref().expect("an approval has a decision");
        let granted = self.granted.get(&request).expect("this request was approved");
        assert_eq!(granted, &decision.id, "the approval of request {request}");
        self.acted += 1;
        request
    }

    async fn suspend(&mut self, mut run: Run) -> Option<Run> {
        let (holder, digest) = (run.holder.clone(), Self::digest());
        if !run.is_claimed {
            let expected = self.model.begin(run.starts_anew, &holder);
            let begun =
                self.store.claim_first(&self.task, &digest, run.starts_anew, &holder, self.lease());
            let begun = begun.await.unwrap();
            let ClaimOutcome::Claimed(number, _) = expected else {
                self.compare(&expected, begun);
                return None;
            };
            self.compare(&expected, begun)?;
            (run.number, run.is_claimed) = (number, true);
        }
        run.number += 1;
        self.messages.push((Kind::Wake, run.number));
        if self.draw.one_in(10) {
            // The worker crashes after it has sent the wake message.
            return None;
        }
        let terms = self.terms.clone();
        let expected = self.model.suspend(run.number, run.waits, run.version, &terms, &holder);
        let requests =
            run.waits.iter().map(|slot| self.approval_request(*slot, run.version)).collect();
        let suspended = self.store.suspend(SuspendRequest {
            id: self.task.clone(),
            number: run.number,
            digest,
            holder,
            lease: self.lease(),
            message: Envelope::new("pay", Arguments::default()).encode(),
            queue: "q".into(),
            requests,
            alarm: None,
            abandoned: Vec::new(),
        });
        match (expected, suspended.await.unwrap()) {
            (SuspendOutcome::Waiting, backend::SuspendResult::Waiting(..))
            | (SuspendOutcome::Behind, backend::SuspendResult::Behind(_)) => None,
            (SuspendOutcome::Ready(over), backend::SuspendResult::Ready(outcomes)) => {
                self.compare_outcomes(&over, &outcomes);
                // If all requests are over, one of them may be missing.
                (!outcomes.is_empty()).then(|| Run { outcomes, request: self.request(), ..run })
            }
            (expected, found) => panic!("expected {expected:?}, found {found:?}"),
        }
    }

    /// Makes the service's request: a new one if the model has none, else the same again.
    pub(crate) async fn request_outside(&mut self) {
        if self.model.requests[SERVICE].is_none() {
            self.ids[SERVICE] = ApprovalId::random();
            self.model.make(SERVICE, 0, self.terms.clone());
        }
        self.store.request_approval(self.approval_request(SERVICE, 0)).await.unwrap();
    }

    pub(crate) fn new_decision(&mut self, slot: usize, by: &str, choice: DecisionKind) -> Sent {
        let version = usize::from(self.draw.one_in(12));
        let known = self.model.requests[slot].as_ref();
        let version = known.filter(|_| version == 0).map_or(version, |known| known.version);
        let made = known.map(|known| known.made).filter(|_| !self.draw.one_in(3));
        let decision = Decision {
            id: format!("decision-{}", self.next()),
            approval: self.ids[slot].clone(),
            digest: self.approval_request(slot, version).digest(),
            nonce: made.map(|made| self.nonces[&made].clone()),
            by: by.into(),
            choice,
            reason: None,
            in_quorum: self.draw.one_in(2),
            edited: self.draw.one_in(5).then(|| json!({"to": "another"})),
            edited_digest: None,
        };
        Sent { slot, decision, version, made }
    }

    pub(crate) async fn decide(&mut self, sent: Sent) {
        let Sent { slot, decision, version, made } = &sent;
        // An old decision for the service may be about an earlier request with another id.
        let is_ours = decision.approval == self.ids[*slot];
        if !is_ours || (*slot == SERVICE && self.model.requests[SERVICE].is_none()) {
            return;
        }
        let expected = self.model.decide(*slot, decision, *version, *made);
        let (found, resume) = self.store.decide(decision).await.unwrap();
        self.assert_reply(&expected, &found);
        let request = self.model.requests[*slot].as_ref();
        if expected == Reply::Applied && decision.choice == DecisionKind::Approve {
            let made = request.map_or(0, |request| request.made);
            self.granted.insert(made, decision.id.clone());
        }
        let suspension = self.model.suspension.as_ref().filter(|_| expected == Reply::Applied);
        let waiting = suspension
            .filter(|suspension| suspension.waits.contains(slot))
            .map(|suspension| suspension.number);
        assert_eq!(resume.as_ref().map(|resume| resume.number), waiting);
        if let Some(resume) = resume.filter(|_| !self.draw.one_in(4)) {
            self.messages.push((Kind::Resume, resume.number));
            self.store.resume_sent(&resume).await.unwrap();
        }
        self.assert_audited(&expected).await;
        self.sent.push(sent);
    }

    pub(crate) async fn extend(&mut self, slot: usize, by: &str, operator: bool, time: i64) {
        if slot == SERVICE && self.model.requests[SERVICE].is_none() {
            return;
        }
        let expected = self.model.extend(slot, by, operator, time);
        let time = Duration::from_millis(time.unsigned_abs());
        let found = self.store.extend_approval(&self.ids[slot], by, operator, time).await.unwrap();
        self.assert_reply(&expected, &found);
        self.assert_audited(&expected).await;
    }

    fn assert_reply(&self, expected: &Reply, found: &DecideResult) {
        let found = match found {
            DecideResult::Unknown => Reply::Unknown,
            DecideResult::Replayed => Reply::Replayed,
            DecideResult::Withdrawn => Reply::Withdrawn,
            DecideResult::AlreadyDecided { by, choice, .. } => Reply::Decided(by.clone(), *choice),
            DecideResult::Expired { .. } => Reply::Expired,
            DecideResult::DigestMismatch => Reply::Mismatch,
            DecideResult::NotAllowed => Reply::Forbidden,
            DecideResult::Earlier { .. } => Reply::Earlier,
            DecideResult::Counted { votes, .. } => Reply::Counted(usize::try_from(*votes).unwrap()),
            DecideResult::Applied => Reply::Applied,
            other => panic!("the model has no {other:?}"),
        };
        assert_eq!(&found, expected);
    }

    /// Checks that the audit contains every refused attempt, and no other entry of this kind.
    async fn assert_audited(&mut self, reply: &Reply) {
        self.refused += match reply {
            Reply::Unknown | Reply::Replayed | Reply::Applied | Reply::Counted(_) => 0,
            _ => 1,
        };
        let entries = self.store.audit_entries(1000).await.unwrap();
        let refused = entries.iter().filter(|entry| entry.kind == AuditKind::Refused);
        assert_eq!(refused.count(), self.refused, "refused attempts");
    }

    /// Sends the overdue resume messages, as workers do.
    pub(crate) async fn sweep(&mut self) {
        for resume in self.store.overdue_resumes().await.unwrap() {
            assert_eq!(resume.task, self.task);
            self.messages.push((Kind::Resume, resume.number));
            self.store.resume_sent(&resume).await.unwrap();
        }
    }

    pub(crate) async fn release(&mut self, n: usize) {
        let run = self.runs.swap_remove(n);
        self.model.release(&run.holder);
        self.store.release_claim(&self.task, &run.holder).await.unwrap();
    }

    pub(crate) async fn reopen(&mut self) {
        let (id, queue) = (self.task.clone(), "q".to_owned());
        self.store
            .reopen(AuditAction { what: "replay", id, queue, by: "ana".into() }, 1)
            .await
            .unwrap();
        self.model.reopen();
    }

    /// Checks that every request equals the model's.
    pub(crate) async fn check(&mut self) {
        let found = self.store.approvals(&self.ids).await.unwrap();
        for (slot, found) in found.into_iter().enumerate() {
            let found = found.readable().unwrap();
            match (&self.model.requests[slot], found) {
                (Some(request), Some(found)) => {
                    compare_request(request, &found, self.model.now);
                    assert_eq!(found.request, self.approval_request(slot, request.version));
                    let nonce = found.nonce.expect("a request has a nonce");
                    let known = self.nonces.entry(request.made).or_insert_with(|| nonce.clone());
                    assert!(*known == nonce, "request {} was made anew", request.made);
                    let same = self.nonces.values().filter(|known| **known == nonce).count();
                    assert_eq!(same, 1, "two requests have one nonce");
                }
                (None, None) => {}
                (None, Some(_)) if slot == SERVICE => {}
                (expected, found) => panic!("request {slot}: {expected:?}, found {found:?}"),
            }
        }
    }

    /// Checks that a task with a decided or expired request is resumed in the end, even if wake messages and
    /// the resume messages of deciders were lost.
    pub(crate) async fn assert_resumed(&mut self) {
        self.pass(7 * 20 * MINUTE + 20_000).await;
        self.sweep().await;
        let Some(suspension) =
            self.model.suspension.as_ref().filter(|suspension| !suspension.ended)
        else {
            return;
        };
        let is_sent = self.messages.contains(&(Kind::Resume, suspension.number))
            || self.claimed.contains(&(Kind::Wake, suspension.number));
        let waits = !suspension.waits.is_empty();
        assert!(!waits || !self.model.is_due() || is_sent, "no message resumes {suspension:?}");
    }
}

fn state_of(status: ApprovalStatus) -> State {
    match status {
        ApprovalStatus::Open(_) => State::Open,
        ApprovalStatus::Expired(_) => State::Expired,
        ApprovalStatus::Decided(choice) => State::Decided(choice),
        other => panic!("the model has no {other:?}"),
    }
}

fn compare_request(request: &Request, found: &ApprovalRecord, now: i64) {
    assert_eq!(state_of(found.status), request.state(now), "{found:?}");
    assert_eq!(found.decision, request.decided);
    assert_eq!(usize::try_from(found.votes).unwrap(), request.votes.len());
    if let ApprovalStatus::Open(deadline) | ApprovalStatus::Expired(deadline) = found.status {
        let left = deadline.as_millisecond() - found.read_at.as_millisecond();
        assert!((left - (request.deadline() - now)).abs() < DRIFT, "{left} ms are left");
    }
}
