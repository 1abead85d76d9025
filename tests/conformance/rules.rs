//! The rules of suspensions and votes as pure functions, compared with a store step by step.

use std::sync::Arc;

use countersign::TaskId;
use countersign::approval::{
    ApprovalRequest, ApprovalStatus, DecideResult, Decision, DecisionKind,
};
use countersign::backend::{ClaimResult, Forget, Store, SuspendResult};
use countersign::lifecycle::decision_rules::{self, DecisionRecord, RequestTerms, Vote};
use countersign::lifecycle::suspension::{self, ClaimOutcome, Due, Suspension};
use countersign::protocol::{SuspendHeader, SuspendKind, TaskDigest};
use serde_json::json;

use crate::decisions::decision;
use crate::fixture::{Fixture, HOUR, race};
use crate::suspensions::TestTask;

const TASKS: usize = 100;
const STEPS: usize = 25;
const LEASE: i64 = 3_600_000;
const HOLDERS: [&str; 2] = ["a", "b"];
/// Tasks that have the same id.
const NAMES: [&str; 2] = ["one", "two"];
const PEOPLE: [&str; 5] = ["ana", "bob", "rita", "policy:a", "policy:b"];

/// Pseudorandom numbers, the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// The state of one task and its two requests in the pure functions. Its clock stands still.
struct Model {
    record: Option<Suspension>,
    requested: Vec<usize>,
    terms: [Option<RequestTerms>; 2],
    ballots: [DecisionRecord; 2],
    /// The number of requests that were made. Each has its own nonce.
    requests: u32,
}

impl Model {
    fn due(&self, waits: &[usize]) -> Due {
        let is_open = |n: &usize| {
            let terms = self.terms[*n].as_ref();
            terms.is_some_and(|it| {
                matches!(decision_rules::status(it, &self.ballots[*n], 0), ApprovalStatus::Open(_))
            })
        };
        if waits.iter().all(is_open) && !waits.is_empty() { Due::In(1) } else { Due::Now }
    }

    fn request(&mut self, n: usize, request: &ApprovalRequest) {
        let (awaits, ballot, digest) =
            (self.requested.contains(&n), &self.ballots[n], request.digest());
        let stays = |terms| decision_rules::is_unchanged(terms, ballot, &digest, awaits, 0);
        if !self.terms[n].as_ref().is_some_and(stays) {
            self.requests += 1;
            self.terms[n] = Some(RequestTerms {
                digest,
                nonce: Some(self.requests.to_string()),
                requested_at: 0,
                deadline: LEASE,
                quorum: request.quorum,
                requester: request.requester.clone(),
                self_approval: false,
                approvers: Vec::new(),
                editable: true,
                withdrawn: false,
            });
        }
        if !self.requested.contains(&n) {
            self.requested.push(n);
        }
    }

    fn end(&mut self, digest: Option<&TaskDigest>) {
        if !suspension::end(&mut self.record, digest) {
            return;
        }
        for n in std::mem::take(&mut self.requested) {
            let is_open = self.due(&[n]) != Due::Now;
            if let Some(terms) = self.terms[n].as_mut().filter(|_| is_open) {
                terms.withdrawn = true;
            }
        }
    }
}

/// One task in the model and in the store.
struct Pair {
    store: Arc<dyn Store>,
    task: TestTask,
    requests: [ApprovalRequest; 2],
    model: Model,
}

impl Pair {
    fn new(store: Arc<dyn Store>, quorum: u32) -> Self {
        let test_task = TestTask::new();
        let new_request = |name, quorum| ApprovalRequest {
            editable: true,
            requester: Some("rita".into()),
            quorum,
            ..test_task.request(name)
        };
        let requests = [new_request("first", quorum), new_request("second", 1)];
        let ballots = [DecisionRecord::default(), DecisionRecord::default()];
        let (record, requested, terms) = (None, Vec::new(), [None, None]);
        let model = Model { record, requested, terms, ballots, requests: 0 };
        Self { store, task: test_task, requests, model }
    }

    fn id(&self) -> &TaskId {
        self.task.id()
    }

    async fn claim(&mut self, header: SuspendHeader, digest: Option<&TaskDigest>, holder: &str) {
        let waits = self.model.record.as_ref().map_or_else(Vec::new, |record| {
            (0..2).filter(|n| record.waits.contains(&self.requests[*n].id)).collect()
        });
        let due = self.model.due(&waits);
        let expected =
            suspension::claim(&mut self.model.record, header, digest, due, holder, 0, LEASE);
        let found =
            self.store.claim_suspended(self.id(), header, digest, holder, HOUR).await.unwrap();
        agree(&format!("{header:?} of {digest:?} by {holder}"), expected, &found);
    }

    async fn begin(&mut self, digest: &TaskDigest, is_fresh: bool, holder: &str) {
        let expected =
            suspension::begin(&mut self.model.record, digest, is_fresh, holder, 0, LEASE);
        let found =
            self.store.claim_first(self.id(), digest, is_fresh, holder, HOUR).await.unwrap();
        agree(&format!("a suspension of {digest} begun by {holder}"), expected, &found);
    }

    async fn forget(&mut self) {
        let is_ended = suspension::forget(&mut self.model.record);
        let found = self.store.forget(self.id()).await.unwrap();
        assert_eq!(found == Forget::Forgotten, is_ended);
    }

    async fn suspend(&mut self, number: u64, digest: TaskDigest, waits: &[usize], holder: &str) {
        let before = (self.model.terms.clone(), self.model.requested.clone());
        for n in waits {
            let request = self.requests[*n].clone();
            self.model.request(*n, &request);
        }
        let due = self.model.due(waits);
        let ids = waits.iter().map(|n| self.requests[*n].id.clone()).collect();
        let next = Suspension::waiting(number, digest.clone(), ids);
        let expected = suspension::suspend(&mut self.model.record, next, due, holder, 0, LEASE);
        if expected == suspension::SuspendOutcome::Behind {
            (self.model.terms, self.model.requested) = before;
        }
        let mut request = self.task.suspend_request(number, &[]);
        request.holder = holder.into();
        request.digest = digest;
        request.requests = waits.iter().map(|n| self.requests[*n].clone()).collect();
        let found = self.store.suspend(request).await.unwrap();
        let agree = matches!(
            (expected, &found),
            (suspension::SuspendOutcome::Waiting, SuspendResult::Waiting(..))
                | (suspension::SuspendOutcome::Ready, SuspendResult::Ready(_))
                | (suspension::SuspendOutcome::Behind, SuspendResult::Behind(_))
        );
        assert!(
            agree,
            "suspension {number} for {waits:?} by {holder}: {expected:?}, but {found:?}"
        );
    }

    async fn decide(&mut self, n: usize, decision: &Decision) {
        let vote = Vote {
            decision: &decision.id,
            choice: decision.choice,
            by: &decision.by,
            digest: &decision.digest,
            nonce: None,
            in_quorum: decision.in_quorum,
            edited: decision.edited.is_some(),
        };
        let expected = decision_rules::decide(
            self.model.terms[n].as_ref(),
            &mut self.model.ballots[n],
            &vote,
            0,
        );
        let (found, resume) = self.store.decide(decision).await.unwrap();
        let agree = match (&expected, &found) {
            (
                DecideResult::AlreadyDecided { by, choice, .. },
                DecideResult::AlreadyDecided { by: found_by, choice: found_choice, .. },
            ) => by == found_by && choice == found_choice,
            (expected, found) => expected == found,
        };
        assert!(agree, "{decision:?}: {expected:?}, but {found:?}");
        let waits = |record: &&Suspension| record.waits.contains(&self.requests[n].id);
        let is_waited =
            found == DecideResult::Applied && self.model.record.as_ref().filter(waits).is_some();
        assert_eq!(resume.is_some(), is_waited);
    }

    async fn release(&mut self, holder: &str) {
        suspension::release(&mut self.model.record, holder);
        self.store.release_claim(self.id(), holder).await.unwrap();
    }

    async fn renew(&mut self, holder: &str) {
        let expected = suspension::renew(&mut self.model.record, holder, 0, LEASE);
        assert_eq!(self.store.renew_claim(self.id(), holder, HOUR).await.unwrap(), expected);
    }

    async fn end(&mut self, digest: Option<&TaskDigest>) {
        self.model.end(digest);
        self.store.end_suspended(self.id(), digest).await.unwrap();
    }

    async fn step(&mut self, draw: &mut Draw) {
        let (holder, which) = (draw.of(&HOLDERS), draw.below(2));
        // Mostly the same task.
        let task = TaskDigest::from(NAMES[draw.below(5) / 4].to_owned());
        match draw.below(16) {
            0..=3 => {
                let kinds = [SuspendKind::Original, SuspendKind::Resume, SuspendKind::Wake];
                let kind = draw.of(&kinds);
                let number = draw.of(&[0, 1, 2, 3, 4, 1 << 40]);
                let known =
                    Some(&task).filter(|_| kind != SuspendKind::Resume && draw.below(4) > 0);
                self.claim(SuspendHeader { kind, number }, known, holder).await;
            }
            4..=6 => {
                let waits = draw.of(&[[0].as_slice(), &[1], &[0, 1], &[]]);
                self.suspend(1 + draw.below(4) as u64, task, waits, holder).await;
            }
            7 => self.release(holder).await,
            8 => self.renew(holder).await,
            9 | 14 => self.begin(&task, draw.below(2) == 0, holder).await,
            10 if draw.below(3) == 0 => self.end(Some(&task).filter(|_| draw.below(4) > 0)).await,
            15 if draw.below(3) == 0 => self.forget().await,
            _ => {
                let choices = [
                    DecisionKind::Approve,
                    DecisionKind::Approve,
                    DecisionKind::Reject,
                    DecisionKind::Withdraw,
                ];
                let mut decision =
                    decision(&self.requests[which], draw.of(&PEOPLE), draw.of(&choices));
                decision.id = format!("decision-{}", draw.below(4));
                decision.in_quorum = draw.below(2) == 0;
                decision.edited = (draw.below(4) == 0).then(|| json!({"to": "x"}));
                if draw.below(6) == 0 {
                    decision.digest = "0".repeat(64).into();
                }
                self.decide(which, &decision).await;
            }
        }
    }
}

fn agree(what: &str, expected: ClaimOutcome, found: &ClaimResult) {
    let agree = match (&expected, found) {
        (ClaimOutcome::Unclaimed, ClaimResult::Unclaimed)
        | (ClaimOutcome::Ack, ClaimResult::Over(_))
        | (ClaimOutcome::Postpone(_), ClaimResult::Postpone(_))
        | (ClaimOutcome::StateLost, ClaimResult::StateLost)
        | (ClaimOutcome::Ended, ClaimResult::Ended(_))
        | (ClaimOutcome::Occupied, ClaimResult::Occupied(_)) => true,
        (ClaimOutcome::Claimed(wanted), ClaimResult::Claimed { number, .. }) => wanted == number,
        _ => false,
    };
    assert!(agree, "{what}: {expected:?}, but {found:?}");
}

pub(crate) async fn the_store_behaves_as_the_pure_functions(fixture: Fixture) {
    race(TASKS, |n| {
        let mut pair = Pair::new(fixture.store.clone(), 1 + u32::from(n % 2 == 1));
        async move {
            let mut draw = Draw(0x9e37_79b9_7f4a_7c15 ^ ((n as u64) << 17));
            for _ in 0..STEPS {
                pair.step(&mut draw).await;
            }
        }
    })
    .await;
}
