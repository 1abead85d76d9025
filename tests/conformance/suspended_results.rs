//! The results of suspended tasks: read with a claim, and stored with the end.

use countersign::backend::{ClaimResult, StoreResult};
use countersign::protocol::{SUSPENDED, TaskDigest};

use crate::case::{Case, case};
use crate::decisions::approve;
use crate::fixture::{Fixture, HOUR, document};
use crate::suspensions::{RESUME, TestTask, WAKE, is_claimed, suspended_task};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_claim_reads_the_result_of_the_task),
        case(a_result_and_the_end_of_its_task_are_stored_together),
    ]
}

async fn a_claim_reads_the_result_of_the_task(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let result_of = |taken| match taken {
        ClaimResult::Claimed { result, .. } => result.map(|document| *document),
        other => panic!("{other:?}"),
    };
    let test_task = suspended_task(&fixture).await;
    store.decide(&approve(&test_task.request("pay"), "ana")).await.unwrap();
    for state in [SUSPENDED, "STARTED"] {
        fixture.finish(test_task.id(), state, "").await;
        assert_eq!(result_of(test_task.claim(&fixture, WAKE, 1, "a").await), None, "{state}");
    }
    let failed = fixture.finish(test_task.id(), "FAILURE", "no").await;
    assert_eq!(result_of(test_task.claim(&fixture, RESUME, 1, "a").await), Some(failed));
    // Before the first suspension, too.
    let new = TestTask::new();
    let done = fixture.finish(new.id(), "SUCCESS", "yes").await;
    let begun = store.claim_first(new.id(), &new.digest(), true, "a", HOUR).await.unwrap();
    assert_eq!(result_of(begun), Some(done));
}

async fn a_result_and_the_end_of_its_task_are_stored_together(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = suspended_task(&fixture).await;
    let result = |text| {
        let document = document(test_task.id(), "SUCCESS", text);
        StoreResult { document, reply_to: None, received: None }
    };
    let first = result("first");
    let (recorded, withdrawn) =
        store.finish_suspended(first.clone(), &test_task.digest()).await.unwrap();
    assert_eq!(withdrawn, [test_task.request("pay").id]);
    drop(recorded);
    assert_eq!(store.read_result(test_task.id()).await.unwrap(), Some(first.document.clone()));
    assert!(matches!(test_task.claim(&fixture, WAKE, 1, "a").await, ClaimResult::Over(_)));
    // The first result is kept.
    let (_, withdrawn) =
        store.finish_suspended(result("second"), &test_task.digest()).await.unwrap();
    assert_eq!(withdrawn, []);
    assert_eq!(store.read_result(test_task.id()).await.unwrap(), Some(first.document));
    // Another task with the id stores its result, and ends only itself.
    let other = suspended_task(&fixture).await;
    let document = document(other.id(), "SUCCESS", "other");
    let result = StoreResult { document, reply_to: None, received: None };
    let digest = TaskDigest::from("two".to_owned());
    let (_, withdrawn) = store.finish_suspended(result, &digest).await.unwrap();
    assert_eq!(withdrawn, []);
    store.decide(&approve(&other.request("pay"), "ana")).await.unwrap();
    assert!(is_claimed(&other.claim(&fixture, RESUME, 1, "a").await, 1));
}
