//! Suspensions that end at their deadline, or with their sleep.

use std::time::Duration;

use countersign::approval::ApprovalStatus;
use countersign::backend::{ClaimResult, SuspendRequest, SuspendResult};

use crate::case::{Case, case};
use crate::fixture::{Fixture, HOUR, eventually};
use crate::suspensions::{TestTask, WAKE, is_claimed};

pub(crate) fn cases() -> Vec<Case> {
    vec![case(a_sleep_ends_with_its_alarm), case(a_deadline_ends_a_suspension)]
}

async fn a_sleep_ends_with_its_alarm(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = TestTask::new();
    let sleeps = |number, time| SuspendRequest {
        alarm: Some(time),
        ..test_task.suspend_request(number, &[])
    };
    let result = store.suspend(sleeps(1, HOUR)).await.unwrap();
    let SuspendResult::Waiting(_, due) = result else { panic!("{result:?}") };
    assert!(due > HOUR / 2, "{due:?}");
    assert!(matches!(test_task.claim(&fixture, WAKE, 1, "b").await, ClaimResult::Postpone(_)));
    let result = store.suspend(sleeps(2, Duration::from_millis(200))).await.unwrap();
    assert!(matches!(result, SuspendResult::Waiting(..)));
    let is_awake = async || is_claimed(&test_task.claim(&fixture, WAKE, 2, "b").await, 2);
    eventually("the task wakes", is_awake).await;
}

async fn a_deadline_ends_a_suspension(fixture: Fixture) {
    let test_task = TestTask::new();
    let mut suspension = test_task.suspend_request(1, &["pay"]);
    suspension.requests[0].expires_in = Duration::from_millis(200);
    let result = fixture.store.suspend(suspension).await.unwrap();
    assert!(matches!(result, SuspendResult::Waiting(..)), "{result:?}");
    let outcomes = async || match test_task.claim(&fixture, WAKE, 1, "b").await {
        ClaimResult::Claimed { outcomes, .. } => Some(outcomes),
        _ => None,
    };
    eventually("the task wakes", async || outcomes().await.is_some()).await;
    let outcomes = outcomes().await.unwrap();
    assert!(matches!(outcomes[0].status, ApprovalStatus::Expired(_)), "{outcomes:?}");
    assert_eq!(outcomes[0].decision, None);
}
