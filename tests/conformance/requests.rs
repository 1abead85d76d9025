//! Which request a decision counts for, and until when.

use std::time::Duration;

use std::sync::Mutex;

use countersign::approval::{
    ApprovalOutcome, ApprovalRequest, ApprovalStatus, DecideResult, DecisionKind,
};
use countersign::backend::{ClaimResult, SuspendRequest, SuspendResult};

use crate::approvals::{new_request, read, submit};
use crate::case::{Case, case};
use crate::decisions::approve;
use crate::fixture::{Fixture, HOUR, eventually, race};
use crate::suspensions::{RESUME, TestTask, is_claimed, reopen, suspended_task};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_decision_counts_for_one_run_of_a_task_to_its_end),
        case(a_vote_on_an_earlier_request_counts_for_no_later_one),
        case(a_task_whose_request_is_overdue_is_resumed_by_one_sweep),
        case(a_withdrawn_request_resumes_its_task),
        case(a_services_request_leaves_the_index_when_it_has_expired),
    ]
}

/// The same message is sent again: after the end of the first run, and after the note of that end is gone.
async fn a_decision_counts_for_one_run_of_a_task_to_its_end(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = TestTask::new();
    let request = test_task.request("pay");
    let begun =
        store.claim_first(test_task.id(), &test_task.digest(), true, "a", HOUR).await.unwrap();
    assert!(is_claimed(&begun, 0), "{begun:?}");
    assert!(matches!(test_task.suspend(&fixture, 1, &["pay"]).await, SuspendResult::Waiting(..)));
    let mut number = 1;
    for is_noted in [true, false, true] {
        let seen = read(store, &request).await;
        let decision = seen.approve("ana");
        assert_eq!(store.decide(&decision).await.unwrap().0, DecideResult::Applied);
        assert!(is_claimed(&test_task.claim(&fixture, RESUME, number, "a").await, number));
        // A rerun receives the same decision.
        let result = test_task.suspend(&fixture, number + 1, &["pay"]).await;
        assert!(
            matches!(&result, SuspendResult::Ready(outcomes) if outcomes.len() == 1),
            "{result:?}"
        );
        if is_noted {
            store.end_suspended(test_task.id(), Some(&test_task.digest())).await.unwrap();
        } else {
            reopen(&fixture, &test_task).await;
        }
        let begun =
            store.claim_first(test_task.id(), &test_task.digest(), true, "a", HOUR).await.unwrap();
        let ClaimResult::Claimed { number: last, outcomes, .. } = begun else {
            panic!("{begun:?}")
        };
        assert_eq!(outcomes, [], "nothing is decided for the new run");
        number = last + 1;
        let result = test_task.suspend(&fixture, number, &["pay"]).await;
        assert!(matches!(result, SuspendResult::Waiting(..)), "{result:?}");
        let record = read(store, &request).await;
        assert!(matches!(record.status, ApprovalStatus::Open(_)), "{:?}", record.status);
        assert_eq!((record.decision, record.votes), (None, 0));
        assert_ne!(record.nonce, seen.nonce, "it is another request");
        // The old decision, sent again, names the earlier request.
        let (decided, resume) = store.decide(&decision).await.unwrap();
        assert_eq!((decided, resume), (DecideResult::DigestMismatch, None));
    }
}

/// A task fails after one of two votes, and is sent again.
async fn a_vote_on_an_earlier_request_counts_for_no_later_one(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = TestTask::new();
    let request = ApprovalRequest { quorum: 2, ..test_task.request("pay") };
    let suspend = async || {
        let requests = vec![request.clone()];
        let result = store
            .suspend(SuspendRequest { requests, ..test_task.suspend_request(1, &[]) })
            .await
            .unwrap();
        assert!(matches!(result, SuspendResult::Waiting(..)), "{result:?}");
    };
    suspend().await;
    let vote = read(store, &request).await.approve("ana");
    let counted = DecideResult::Counted { votes: 1, quorum: 2 };
    assert_eq!(store.decide(&vote).await.unwrap().0, counted);
    reopen(&fixture, &test_task).await;
    suspend().await;
    assert_eq!(read(store, &request).await.votes, 0);
    assert_eq!(
        store.decide(&vote).await.unwrap().0,
        DecideResult::DigestMismatch,
        "it is for the earlier request"
    );
    assert_eq!(store.decide(&approve(&request, "bob")).await.unwrap().0, counted);
    assert_eq!(store.decide(&approve(&request, "ana")).await.unwrap().0, DecideResult::Applied);
}

/// The wake message may be lost. An overdue request is returned to only one of the concurrent sweeps.
async fn a_task_whose_request_is_overdue_is_resumed_by_one_sweep(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = TestTask::new();
    let mut suspension = test_task.suspend_request(1, &["pay", "later"]);
    suspension.requests[0].expires_in = Duration::from_millis(200);
    assert!(matches!(store.suspend(suspension).await.unwrap(), SuspendResult::Waiting(..)));
    let swept = Mutex::new(Vec::new());
    let is_swept = async || {
        let sweeps = race(10, |_| {
            let store = store.clone();
            async move { store.overdue_resumes().await.unwrap() }
        });
        let found: Vec<_> = sweeps.await.into_iter().flatten().collect();
        swept.lock().unwrap().extend(found);
        !swept.lock().unwrap().is_empty()
    };
    eventually("the request is overdue", is_swept).await;
    let swept = swept.into_inner().unwrap();
    let [resume] = &swept[..] else { panic!("{swept:?}") };
    assert_eq!((&resume.task, resume.number, &*resume.queue), (test_task.id(), 1, "q"));
    let open: Vec<_> =
        store.pending_approvals(0, 10).await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(open, [test_task.request("later").id]);
    let taken = test_task.claim(&fixture, RESUME, 1, "b").await;
    let ClaimResult::Claimed { outcomes, .. } = taken else { panic!("{taken:?}") };
    assert!(
        matches!(outcomes[..], [ApprovalOutcome { status: ApprovalStatus::Expired(_), .. }]),
        "{outcomes:?}"
    );
    // The resume message is not known to be sent: a later sweep returns it again.
    let again = async || store.overdue_resumes().await.unwrap() == [resume.clone()];
    eventually("the resume message is swept again", again).await;
    store.resume_sent(resume).await.unwrap();
}

async fn a_withdrawn_request_resumes_its_task(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = suspended_task(&fixture).await;
    let withdrawal = read(store, &test_task.request("pay")).await.withdraw("ana");
    let (decided, resume) = store.decide(&withdrawal).await.unwrap();
    assert_eq!(decided, DecideResult::Applied);
    let resume = resume.expect("the task resumes");
    assert_eq!((&resume.task, resume.number), (test_task.id(), 1));
    let taken = test_task.claim(&fixture, RESUME, 1, "b").await;
    let ClaimResult::Claimed { outcomes, .. } = taken else { panic!("{taken:?}") };
    assert_eq!(outcomes[0].status, ApprovalStatus::Decided(DecisionKind::Withdraw));
}

/// It leaves the index with and without later requests. It can be read for a while.
async fn a_services_request_leaves_the_index_when_it_has_expired(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let short =
        |title| ApprovalRequest { expires_in: Duration::from_millis(50), ..new_request(title) };
    let expired = submit(store, short("E?")).await;
    let open = submit(store, new_request("O?")).await;
    let listed = async || {
        let listed = store.pending_approvals(0, 10).await.unwrap().into_iter().map(|(id, _)| id);
        listed.collect::<Vec<_>>()
    };
    let is_swept = async || {
        assert_eq!(store.overdue_resumes().await.unwrap(), [], "no task waits for it");
        listed().await == [open.id.clone()]
    };
    eventually("a sweep removes it from the list", is_swept).await;
    assert!(matches!(read(store, &expired).await.status, ApprovalStatus::Expired(_)));
    submit(store, short("E?")).await;
    let is_tidied = async || {
        submit(store, new_request("Another?")).await;
        let titles = async |id| {
            let record =
                store.approvals(&[id]).await.unwrap().remove(0).readable().unwrap().unwrap();
            record.request.title
        };
        let mut left = Vec::new();
        for id in listed().await {
            left.push(titles(id).await);
        }
        !left.contains(&"E?".to_owned())
    };
    eventually("the next request removes it from the list", is_tidied).await;
}
