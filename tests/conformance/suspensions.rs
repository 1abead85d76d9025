//! Suspended tasks: who may run them, by the rules of `lifecycle/suspension.rs`.

use std::time::Duration;

use countersign::TaskId;
use countersign::approval::{
    ApprovalId, ApprovalRequest, ApprovalStatus, DecideResult, Decision, DecisionKind,
};
use countersign::backend::{AuditAction, Capability, ClaimResult, SuspendRequest, SuspendResult};
use countersign::lifecycle::suspension::RECHECK;
use countersign::protocol::{Message, SuspendHeader, SuspendKind, TaskDigest};

use crate::approvals::{new_request, read};
use crate::case::{Case, case};
use crate::decisions::approve;
use crate::fixture::{Fixture, HOUR, eventually, message, race};
use crate::rules;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_request_of_the_previous_version_keeps_its_votes),
        case(rules::the_store_behaves_as_the_pure_functions),
        case(a_task_that_was_never_suspended_runs_without_a_lease),
        case(the_first_run_holds_the_lease),
        case(a_suspended_task_waits_for_its_decision),
        case(a_decided_task_is_resumed_as_it_was_suspended),
        case(a_run_that_finds_its_decision_continues),
        case(one_of_many_claims_a_task),
        case(a_renewed_lease_holds),
        case(a_lease_that_is_not_renewed_expires),
        case(a_released_lease_is_free),
        case(one_decision_of_several_requests_resumes_a_task),
        case(a_newer_suspension_ignores_older_messages),
        case(a_forged_number_is_ignored),
        case(an_abandoned_request_is_withdrawn),
        case(an_ended_task_has_no_open_request),
        case(a_reopened_task_has_no_suspension),
        case(a_reopened_task_makes_a_new_request_with_a_full_deadline),
        case(messages_of_another_task_change_nothing),
        case(a_new_task_replaces_a_record_that_has_ended),
        case(a_reopened_id_keeps_a_suspended_task),
        case(another_process_resumes_a_suspended_task).needs(Capability::SeveralProcesses),
    ]
}

fn header(kind: SuspendKind, number: u64) -> SuspendHeader {
    SuspendHeader { kind, number }
}

const ORIGINAL: SuspendKind = SuspendKind::Original;
pub(crate) const RESUME: SuspendKind = SuspendKind::Resume;
pub(crate) const WAKE: SuspendKind = SuspendKind::Wake;

/// A task that requests approvals, with its requests.
pub(crate) struct TestTask {
    pub(crate) message: Message,
}

impl TestTask {
    pub(crate) fn new() -> Self {
        Self { message: message(vec![0, 159, 146, 150]) }
    }

    pub(crate) fn id(&self) -> &TaskId {
        &self.message.id
    }

    pub(crate) fn digest(&self) -> TaskDigest {
        TaskDigest::from("one".to_owned())
    }

    pub(crate) fn request(&self, name: &str) -> ApprovalRequest {
        let (id, task) = (ApprovalId::of(self.id(), name, 0), Some(self.id().clone()));
        ApprovalRequest { id, task, name: name.into(), ..new_request(name) }
    }

    /// Returns a suspension with this number that waits for these requests.
    pub(crate) fn suspend_request(&self, number: u64, names: &[&str]) -> SuspendRequest {
        SuspendRequest {
            id: self.id().clone(),
            number,
            digest: self.digest(),
            holder: "a".into(),
            lease: HOUR,
            message: self.message.clone(),
            queue: "q".into(),
            requests: names.iter().map(|name| self.request(name)).collect(),
            alarm: None,
            abandoned: Vec::new(),
        }
    }

    pub(crate) async fn suspend(
        &self,
        fixture: &Fixture,
        number: u64,
        names: &[&str],
    ) -> SuspendResult {
        fixture.store.suspend(self.suspend_request(number, names)).await.unwrap()
    }

    pub(crate) async fn claim(
        &self,
        fixture: &Fixture,
        kind: SuspendKind,
        number: u64,
        holder: &str,
    ) -> ClaimResult {
        let header = header(kind, number);
        fixture.store.claim_suspended(self.id(), header, None, holder, HOUR).await.unwrap()
    }
}

/// Suspends a task once, waiting for `pay`.
pub(crate) async fn suspended_task(fixture: &Fixture) -> TestTask {
    let test_task = TestTask::new();
    let result = test_task.suspend(fixture, 1, &["pay"]).await;
    assert!(matches!(result, SuspendResult::Waiting(..)), "{result:?}");
    test_task
}

/// A task that the previous version has suspended is suspended again by this version.
async fn a_request_of_the_previous_version_keeps_its_votes(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = TestTask::new();
    let of_version = |v| {
        let mut suspension = test_task.suspend_request(1, &["pay"]);
        for request in &mut suspension.requests {
            (request.v, request.quorum) = (v, 2);
        }
        suspension
    };
    let old = of_version(1);
    assert!(matches!(store.suspend(old.clone()).await.unwrap(), SuspendResult::Waiting(..)));
    let by = |person| crate::decisions::approve(&old.requests[0], person);
    let (counted, _) = store.decide(&by("ana")).await.unwrap();
    assert_eq!(counted, DecideResult::Counted { votes: 1, quorum: 2 });
    let again = store.suspend(of_version(ApprovalRequest::VERSION)).await.unwrap();
    assert!(matches!(again, SuspendResult::Waiting(..)), "{again:?}");
    assert_eq!(store.decide(&by("bob")).await.unwrap().0, DecideResult::Applied);
    let SuspendResult::Ready(outcomes) =
        store.suspend(of_version(ApprovalRequest::VERSION)).await.unwrap()
    else {
        panic!("the request is decided")
    };
    assert_eq!(outcomes[0].digest, old.requests[0].digest());
}

pub(crate) fn is_claimed(taken: &ClaimResult, wanted: u64) -> bool {
    matches!(taken, ClaimResult::Claimed { number, .. } if *number == wanted)
}

async fn a_task_that_was_never_suspended_runs_without_a_lease(fixture: Fixture) {
    let test_task = TestTask::new();
    for _ in 0..2 {
        let taken = test_task.claim(&fixture, ORIGINAL, 0, "a").await;
        assert!(matches!(taken, ClaimResult::Unclaimed));
        assert!(matches!(test_task.claim(&fixture, RESUME, 1, "a").await, ClaimResult::Over(_)));
        assert!(matches!(test_task.claim(&fixture, WAKE, 1, "a").await, ClaimResult::StateLost));
    }
    // A retry whose suspension the store has lost.
    let taken = test_task.claim(&fixture, ORIGINAL, 3, "a").await;
    assert!(matches!(taken, ClaimResult::Claimed { number: 3, message: None, .. }), "{taken:?}");
    assert_eq!(fixture.store.end_suspended(TestTask::new().id(), None).await.unwrap(), []);
}

/// The wake message may arrive before the suspension is stored.
async fn the_first_run_holds_the_lease(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = TestTask::new();
    for _ in 0..2 {
        let begun =
            store.claim_first(test_task.id(), &test_task.digest(), false, "a", HOUR).await.unwrap();
        assert!(is_claimed(&begun, 0));
    }
    assert!(matches!(test_task.claim(&fixture, WAKE, 1, "b").await, ClaimResult::Postpone(_)));
    let another =
        store.claim_first(test_task.id(), &test_task.digest(), false, "b", HOUR).await.unwrap();
    assert!(matches!(another, ClaimResult::Postpone(_)), "{another:?}");
    assert!(matches!(test_task.suspend(&fixture, 1, &["pay"]).await, SuspendResult::Waiting(..)));
    let late =
        store.claim_first(test_task.id(), &test_task.digest(), false, "a", HOUR).await.unwrap();
    assert!(matches!(late, ClaimResult::Over(_)), "{late:?}");
}

async fn a_suspended_task_waits_for_its_decision(fixture: Fixture) {
    let test_task = TestTask::new();
    let result = test_task.suspend(&fixture, 1, &["pay"]).await;
    let SuspendResult::Waiting(_, due) = result else { panic!("{result:?}") };
    assert!(due > HOUR / 2 && due <= HOUR + Duration::from_secs(1), "{due:?}");
    let record = read(&fixture.store, &test_task.request("pay")).await;
    assert!(
        matches!(record.status, ApprovalStatus::Open(_))
            && record.request == test_task.request("pay")
    );
    assert_eq!(fixture.store.pending_approvals(0, 10).await.unwrap().len(), 1);
    assert!(matches!(test_task.claim(&fixture, ORIGINAL, 0, "a").await, ClaimResult::Over(_)));
    assert!(matches!(test_task.claim(&fixture, RESUME, 1, "a").await, ClaimResult::Over(_)));
    let taken = test_task.claim(&fixture, WAKE, 1, "a").await;
    let ClaimResult::Postpone(time) = taken else { panic!("{taken:?}") };
    let longest = Duration::from_millis(RECHECK.unsigned_abs());
    assert!(!time.is_zero() && time <= longest, "{time:?}");
}

async fn a_decided_task_is_resumed_as_it_was_suspended(fixture: Fixture) {
    let test_task = suspended_task(&fixture).await;
    let decision =
        Decision { reason: Some("grüße".into()), ..approve(&test_task.request("pay"), "ana") };
    let (_, resume) = fixture.store.decide(&decision).await.unwrap();
    let resume = resume.expect("a task waits for it");
    assert_eq!((&resume.task, resume.number, &*resume.queue), (test_task.id(), 1, "q"));
    for kind in [RESUME, WAKE] {
        let taken = test_task.claim(&fixture, kind, 1, "b").await;
        let ClaimResult::Claimed { number, message, result, outcomes } = taken else {
            panic!("{taken:?}")
        };
        assert_eq!((number, message.as_deref()), (1, Some(&test_task.message)));
        assert_eq!(result, None);
        let [outcome] = &outcomes[..] else { panic!("{outcomes:?}") };
        assert_eq!(outcome.approval, decision.approval);
        assert_eq!(outcome.digest, decision.digest);
        assert_eq!(outcome.status, ApprovalStatus::Decided(DecisionKind::Approve));
        assert_eq!(outcome.decision.as_ref(), Some(&decision));
    }
    assert_eq!(
        fixture.store.pending_approvals(0, 10).await.unwrap(),
        [],
        "the request is no longer listed"
    );
}

async fn a_run_that_finds_its_decision_continues(fixture: Fixture) {
    let test_task = suspended_task(&fixture).await;
    fixture.store.decide(&approve(&test_task.request("pay"), "ana")).await.unwrap();
    assert!(is_claimed(&test_task.claim(&fixture, RESUME, 1, "a").await, 1));
    let result = test_task.suspend(&fixture, 2, &["pay"]).await;
    let SuspendResult::Ready(outcomes) = result else { panic!("{result:?}") };
    assert_eq!(outcomes.len(), 1);
    // The run holds the claim of the new number.
    assert!(matches!(test_task.claim(&fixture, WAKE, 2, "b").await, ClaimResult::Postpone(_)));
    assert!(fixture.store.renew_claim(test_task.id(), "a", HOUR).await.unwrap());
}

async fn one_of_many_claims_a_task(fixture: Fixture) {
    let test_task = suspended_task(&fixture).await;
    fixture.store.decide(&approve(&test_task.request("pay"), "ana")).await.unwrap();
    let taken = race(50, |n| {
        let (store, id) = (fixture.store.clone(), test_task.id().clone());
        let header = header([RESUME, WAKE][n % 2], 1);
        async move { store.claim_suspended(&id, header, None, &n.to_string(), HOUR).await.unwrap() }
    });
    let (claimed, others): (Vec<_>, Vec<_>) =
        taken.await.into_iter().partition(|taken| is_claimed(taken, 1));
    assert_eq!(claimed.len(), 1);
    assert!(others.iter().all(|taken| matches!(taken, ClaimResult::Postpone(_))), "{others:?}");
}

async fn a_renewed_lease_holds(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = suspended_task(&fixture).await;
    store.decide(&approve(&test_task.request("pay"), "ana")).await.unwrap();
    let short = Duration::from_millis(300);
    let taken =
        store.claim_suspended(test_task.id(), header(RESUME, 1), None, "a", short).await.unwrap();
    assert!(is_claimed(&taken, 1));
    assert!(store.renew_claim(test_task.id(), "a", HOUR).await.unwrap());
    assert!(!store.renew_claim(test_task.id(), "b", HOUR).await.unwrap());
    assert!(!store.renew_claim(TestTask::new().id(), "a", HOUR).await.unwrap());
    let taken = test_task.claim(&fixture, WAKE, 1, "b").await;
    let ClaimResult::Postpone(time) = taken else { panic!("{taken:?}") };
    assert!(time > short, "{time:?}");
    // The holder may claim it again, as after a lost response.
    assert!(is_claimed(&test_task.claim(&fixture, RESUME, 1, "a").await, 1));
}

async fn a_lease_that_is_not_renewed_expires(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = suspended_task(&fixture).await;
    store.decide(&approve(&test_task.request("pay"), "ana")).await.unwrap();
    let short = Duration::from_millis(200);
    let taken =
        store.claim_suspended(test_task.id(), header(RESUME, 1), None, "a", short).await.unwrap();
    assert!(is_claimed(&taken, 1));
    let is_claimed_by_b = async || is_claimed(&test_task.claim(&fixture, WAKE, 1, "b").await, 1);
    eventually("another holder claims the task", is_claimed_by_b).await;
    assert!(!store.renew_claim(test_task.id(), "a", HOUR).await.unwrap());
    assert!(matches!(test_task.suspend(&fixture, 2, &["more"]).await, SuspendResult::Behind(_)));
}

async fn a_released_lease_is_free(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = suspended_task(&fixture).await;
    store.decide(&approve(&test_task.request("pay"), "ana")).await.unwrap();
    assert!(is_claimed(&test_task.claim(&fixture, RESUME, 1, "a").await, 1));
    store.release_claim(test_task.id(), "b").await.unwrap();
    assert!(matches!(test_task.claim(&fixture, RESUME, 1, "b").await, ClaimResult::Postpone(_)));
    store.release_claim(test_task.id(), "a").await.unwrap();
    assert!(!store.renew_claim(test_task.id(), "a", HOUR).await.unwrap());
    assert!(is_claimed(&test_task.claim(&fixture, RESUME, 1, "b").await, 1));
}

async fn one_decision_of_several_requests_resumes_a_task(fixture: Fixture) {
    let test_task = TestTask::new();
    assert!(matches!(
        test_task.suspend(&fixture, 1, &["a", "b"]).await,
        SuspendResult::Waiting(..)
    ));
    let (_, resume) = fixture.store.decide(&approve(&test_task.request("b"), "ana")).await.unwrap();
    assert!(resume.is_some());
    let taken = test_task.claim(&fixture, RESUME, 1, "c").await;
    let ClaimResult::Claimed { outcomes, .. } = taken else { panic!("{taken:?}") };
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].approval, test_task.request("b").id);
    fixture.store.release_claim(test_task.id(), "c").await.unwrap();
    // It continues to wait for the other request; it receives the known outcome again.
    assert!(matches!(test_task.suspend(&fixture, 2, &["a"]).await, SuspendResult::Waiting(..)));
    fixture.store.decide(&approve(&test_task.request("a"), "ana")).await.unwrap();
    let taken = test_task.claim(&fixture, RESUME, 2, "c").await;
    let ClaimResult::Claimed { outcomes, .. } = taken else { panic!("{taken:?}") };
    assert_eq!(outcomes.len(), 2);
}

async fn a_newer_suspension_ignores_older_messages(fixture: Fixture) {
    let test_task = suspended_task(&fixture).await;
    // A retry: it waits for no request, and its message is in transit.
    assert!(matches!(test_task.suspend(&fixture, 5, &[]).await, SuspendResult::Waiting(..)));
    for (kind, number) in [(ORIGINAL, 0), (WAKE, 1), (RESUME, 1), (WAKE, 4)] {
        assert!(matches!(test_task.claim(&fixture, kind, number, "b").await, ClaimResult::Over(_)));
    }
    assert!(matches!(test_task.suspend(&fixture, 4, &["pay"]).await, SuspendResult::Behind(_)));
    assert!(is_claimed(&test_task.claim(&fixture, ORIGINAL, 5, "b").await, 5));
    // A message that arrives before its own record is stored.
    fixture.store.release_claim(test_task.id(), "b").await.unwrap();
    assert!(is_claimed(&test_task.claim(&fixture, WAKE, 6, "b").await, 6));
}

async fn a_forged_number_is_ignored(fixture: Fixture) {
    let test_task = suspended_task(&fixture).await;
    for (kind, number) in [(RESUME, 2), (ORIGINAL, 1 << 40), (WAKE, 1 << 40)] {
        assert!(matches!(test_task.claim(&fixture, kind, number, "b").await, ClaimResult::Over(_)));
    }
    assert!(matches!(test_task.claim(&fixture, WAKE, 1, "b").await, ClaimResult::Postpone(_)));
}

async fn an_abandoned_request_is_withdrawn(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = TestTask::new();
    test_task.suspend(&fixture, 1, &["a", "b"]).await;
    let abandoned = vec![test_task.request("a").id];
    store
        .suspend(SuspendRequest { abandoned, ..test_task.suspend_request(2, &["b"]) })
        .await
        .unwrap();
    let status = async |name| read(store, &test_task.request(name)).await.status;
    assert_eq!(status("a").await, ApprovalStatus::Decided(DecisionKind::Withdraw));
    assert!(matches!(status("b").await, ApprovalStatus::Open(_)));
    let (decided, resume) = store.decide(&approve(&test_task.request("a"), "ana")).await.unwrap();
    assert_eq!((decided, resume), (DecideResult::Withdrawn, None));
    // A later run requests it again.
    test_task.suspend(&fixture, 3, &["a", "b"]).await;
    assert!(matches!(status("a").await, ApprovalStatus::Open(_)));
}

async fn an_ended_task_has_no_open_request(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = TestTask::new();
    test_task.suspend(&fixture, 1, &["a", "b", "c"]).await;
    store.decide(&approve(&test_task.request("b"), "ana")).await.unwrap();
    let mut withdrawn = store.end_suspended(test_task.id(), None).await.unwrap();
    withdrawn.sort();
    let mut wanted = ["a", "c"].map(|name| test_task.request(name).id);
    wanted.sort();
    assert_eq!(withdrawn, wanted);
    assert_eq!(store.end_suspended(test_task.id(), None).await.unwrap(), []);
    assert_eq!(store.pending_approvals(0, 10).await.unwrap(), []);
    let status = async |name| read(store, &test_task.request(name)).await.status;
    assert_eq!(status("a").await, ApprovalStatus::Decided(DecisionKind::Withdraw));
    assert_eq!(status("b").await, ApprovalStatus::Decided(DecisionKind::Approve));
    for (kind, number) in [(ORIGINAL, 0), (RESUME, 1), (WAKE, 1), (WAKE, 2)] {
        assert!(matches!(test_task.claim(&fixture, kind, number, "b").await, ClaimResult::Over(_)));
    }
    assert!(matches!(test_task.suspend(&fixture, 2, &["d"]).await, SuspendResult::Behind(_)));
    assert!(!store.renew_claim(test_task.id(), "a", HOUR).await.unwrap());
}

/// A user replays its dead letter.
async fn a_reopened_task_has_no_suspension(fixture: Fixture) {
    let test_task = suspended_task(&fixture).await;
    reopen(&fixture, &test_task).await;
    assert!(matches!(test_task.claim(&fixture, ORIGINAL, 0, "b").await, ClaimResult::Unclaimed));
}

/// Fails the task and replays it.
pub(crate) async fn reopen(fixture: &Fixture, test_task: &TestTask) {
    fixture.finish(test_task.id(), "FAILURE", "").await;
    fixture.store.end_suspended(test_task.id(), None).await.unwrap();
    let (id, queue, by) = (test_task.id().clone(), "q.dead".into(), "ana".into());
    fixture.store.reopen(AuditAction { what: "replay", id, queue, by }, 1).await.unwrap();
}

/// The extension of the earlier request does not apply to the new one.
async fn a_reopened_task_makes_a_new_request_with_a_full_deadline(fixture: Fixture) {
    let test_task = suspended_task(&fixture).await;
    let request = test_task.request("pay");
    let status = async || read(&fixture.store, &request).await.status;
    let extended =
        fixture.store.extend_approval(&request.id, "ana", false, 3 * HOUR).await.unwrap();
    assert_eq!(extended, DecideResult::Applied);
    let ApprovalStatus::Open(before) = status().await else { panic!("{:?}", status().await) };
    reopen(&fixture, &test_task).await;
    let result = test_task.suspend(&fixture, 1, &["pay"]).await;
    assert!(matches!(result, SuspendResult::Waiting(..)), "{result:?}");
    let ApprovalStatus::Open(deadline) = status().await else { panic!("{:?}", status().await) };
    assert!(deadline < before - HOUR, "{before} {deadline}");
}

fn other() -> TaskDigest {
    TaskDigest::from("two".to_owned())
}

async fn messages_of_another_task_change_nothing(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = suspended_task(&fixture).await;
    let claim = async |kind, number| {
        let header = header(kind, number);
        store.claim_suspended(test_task.id(), header, Some(&other()), "b", HOUR).await.unwrap()
    };
    for (kind, number) in [(WAKE, 1), (WAKE, 2), (ORIGINAL, 1), (ORIGINAL, 2)] {
        assert!(matches!(claim(kind, number).await, ClaimResult::Over(_)));
    }
    let taken = claim(ORIGINAL, 0).await;
    let ClaimResult::Occupied(Some(message)) = taken else { panic!("{taken:?}") };
    assert_eq!(*message, test_task.message);
    let begun = store.claim_first(test_task.id(), &other(), true, "b", HOUR).await.unwrap();
    assert!(matches!(begun, ClaimResult::Occupied(Some(_))), "{begun:?}");
    assert_eq!(store.end_suspended(test_task.id(), Some(&other())).await.unwrap(), []);
    let record = read(store, &test_task.request("pay")).await;
    assert!(matches!(record.status, ApprovalStatus::Open(_)));
    assert!(matches!(test_task.claim(&fixture, WAKE, 1, "a").await, ClaimResult::Postpone(_)));
}

async fn a_new_task_replaces_a_record_that_has_ended(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = suspended_task(&fixture).await;
    let own = test_task.digest();
    store.end_suspended(test_task.id(), Some(&own)).await.unwrap();
    let first = header(ORIGINAL, 0);
    let taken = store.claim_suspended(test_task.id(), first, Some(&own), "b", HOUR).await.unwrap();
    assert!(matches!(taken, ClaimResult::Ended(_)), "{taken:?}");
    let taken =
        store.claim_suspended(test_task.id(), first, Some(&other()), "b", HOUR).await.unwrap();
    assert!(matches!(taken, ClaimResult::Unclaimed), "{taken:?}");
    let copy = store.claim_first(test_task.id(), &own, false, "b", HOUR).await.unwrap();
    assert!(matches!(copy, ClaimResult::Over(_)), "{copy:?}");
    for (last, digest) in [(1, own), (3, other())] {
        let begun = store.claim_first(test_task.id(), &digest, true, "b", HOUR).await.unwrap();
        let ClaimResult::Claimed { number, message: None, outcomes, .. } = begun else {
            panic!("{begun:?}")
        };
        assert_eq!((number, outcomes.len()), (last + 1, 0));
        let taken =
            store.claim_suspended(test_task.id(), first, Some(&digest), "b", HOUR).await.unwrap();
        assert!(is_claimed(&taken, 0), "its message still finds the record");
        let suspension = SuspendRequest {
            digest: digest.clone(),
            ..test_task.suspend_request(last + 2, &["pay"])
        };
        let result =
            store.suspend(SuspendRequest { holder: "b".into(), ..suspension }).await.unwrap();
        assert!(matches!(result, SuspendResult::Waiting(..)), "{result:?}");
        let record = read(store, &test_task.request("pay")).await;
        assert!(matches!(record.status, ApprovalStatus::Open(_)), "a new request");
        assert_eq!(store.end_suspended(test_task.id(), Some(&digest)).await.unwrap().len(), 1);
    }
}

/// A user replays the dead letter of another task with the same id.
async fn a_reopened_id_keeps_a_suspended_task(fixture: Fixture) {
    let test_task = suspended_task(&fixture).await;
    let (id, queue, by) = (test_task.id().clone(), "q.dead".into(), "ana".into());
    fixture.store.reopen(AuditAction { what: "replay", id, queue, by }, 1).await.unwrap();
    assert!(matches!(test_task.claim(&fixture, WAKE, 1, "b").await, ClaimResult::Postpone(_)));
}

async fn another_process_resumes_a_suspended_task(fixture: Fixture) {
    let other = fixture.open().await.store;
    let test_task = suspended_task(&fixture).await;
    let decision = approve(&read(&other, &test_task.request("pay")).await.request, "ana");
    assert!(other.decide(&decision).await.unwrap().1.is_some());
    let taken =
        other.claim_suspended(test_task.id(), header(RESUME, 1), None, "b", HOUR).await.unwrap();
    let ClaimResult::Claimed { message, outcomes, .. } = taken else { panic!("{taken:?}") };
    assert_eq!((message.as_deref(), outcomes.len()), (Some(&test_task.message), 1));
    assert!(matches!(test_task.claim(&fixture, WAKE, 1, "a").await, ClaimResult::Postpone(_)));
    other.end_suspended(test_task.id(), None).await.unwrap();
    assert!(matches!(test_task.claim(&fixture, WAKE, 1, "a").await, ClaimResult::Over(_)));
}
