//! Finding tasks: failed ones, suspended ones, and ids by prefix.

use std::collections::BTreeSet;

use countersign::TaskId;
use countersign::backend::{ClaimResult, FailedTask, Forget};
use jiff::Timestamp;

use crate::case::{Case, case};
use crate::decisions::approve;
use crate::fixture::{Fixture, eventually};
use crate::suspensions::{RESUME, suspended_task};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(recorded_failures_are_listed_newest_first),
        case(a_recorded_failure_expires_with_its_result),
        case(a_forgotten_task_has_no_recorded_failure),
        case(a_suspended_task_is_found_until_it_runs),
        case(ids_are_found_by_prefix),
    ]
}

fn failed(id: &str, second: i64) -> FailedTask {
    FailedTask {
        id: id.into(),
        name: "billing.charge".into(),
        queue: "日本 {q}".into(),
        worker: "w@h".into(),
        attempt: 3,
        error: "ValueError: no such order".into(),
        at: Timestamp::from_second(second).unwrap(),
        has_result: true,
    }
}

async fn recorded_failures_are_listed_newest_first(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_eq!(store.failed_tasks(10).await.unwrap(), []);
    let (old, new) = (failed("a: {b}", 100), failed("b", 200));
    store.record_failure(old.clone()).await.unwrap();
    // A database lists them in the order in which they were noted.
    let before = store.clock().await.unwrap();
    let is_later = async || store.clock().await.unwrap() > before;
    eventually("the clock goes on", is_later).await;
    store.record_failure(new.clone()).await.unwrap();
    store.record_failure(new.clone()).await.unwrap();
    assert_eq!(store.failed_tasks(10).await.unwrap(), [new.clone(), old.clone()]);
    assert_eq!(store.failed_tasks(1).await.unwrap(), [new]);
    assert_eq!(store.failed_tasks(0).await.unwrap(), []);
    assert_eq!(store.failed_task(&old.id).await.unwrap(), Some(old));
    assert_eq!(store.failed_task(&TaskId::random()).await.unwrap(), None);
}

async fn a_recorded_failure_expires_with_its_result(fixture: Fixture) {
    let second = std::time::Duration::from_secs(1);
    let store = fixture.open_with(|config| config.result_expires = second).await.store;
    store.record_failure(failed("a", Timestamp::now().as_second())).await.unwrap();
    let is_gone = async || {
        store.failed_task(&"a".into()).await.unwrap().is_none()
            && store.failed_tasks(10).await.unwrap().is_empty()
    };
    eventually("the failure expires", is_gone).await;
}

async fn a_forgotten_task_has_no_recorded_failure(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    store.record_failure(failed(id.as_str(), 1)).await.unwrap();
    fixture.finish(&id, "FAILURE", "").await;
    assert_eq!(store.forget(&id).await.unwrap(), Forget::Forgotten);
    assert_eq!(store.failed_task(&id).await.unwrap(), None);
    assert_eq!(store.failed_tasks(10).await.unwrap(), []);
}

async fn a_suspended_task_is_found_until_it_runs(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    assert_eq!(store.suspended_tasks(10).await.unwrap(), []);
    let test_task = suspended_task(&fixture).await;
    let found = store.suspended_tasks(10).await.unwrap();
    assert_eq!((found.len(), &found[0].id, found[0].approvals.len()), (1, test_task.id(), 1));
    assert_eq!(found[0].name.as_deref(), Some("test.conformance"));
    assert_eq!(store.suspended_task(test_task.id()).await.unwrap().as_ref(), Some(&found[0]));
    assert_eq!(store.suspended_task(&TaskId::random()).await.unwrap(), None);
    assert_eq!(store.suspended_tasks(0).await.unwrap(), []);
    let [approval] = &found[0].approvals[..] else { panic!("{found:?}") };
    let ids = store.approval_ids(&approval.as_str()[..9], 10).await.unwrap();
    assert_eq!(ids, std::slice::from_ref(approval));
    assert_eq!(store.approval_ids("ap_zz", 10).await.unwrap(), []);
    store.decide(&approve(&test_task.request("pay"), "ana")).await.unwrap();
    let taken = test_task.claim(&fixture, RESUME, 1, "b").await;
    assert!(matches!(taken, ClaimResult::Claimed { .. }), "{taken:?}");
    assert_eq!(store.suspended_tasks(10).await.unwrap(), []);
    store.end_suspended(test_task.id(), None).await.unwrap();
    assert_eq!(store.suspended_tasks(10).await.unwrap(), []);
    assert_eq!(store.suspended_task(test_task.id()).await.unwrap(), None);
}

async fn ids_are_found_by_prefix(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let ids: Vec<_> = ["6f1f-a", "6f1f-b", "6f1e", "*", "6f1f*"].map(TaskId::from).into();
    for id in &ids {
        fixture.finish(id, "SUCCESS", "").await;
    }
    let find = async |prefix: &str| {
        let found = store.task_ids(prefix, 10).await.unwrap();
        found.into_iter().collect::<BTreeSet<_>>()
    };
    assert_eq!(find("6f1f-").await, ids[..2].iter().cloned().collect());
    assert_eq!(find("6f1").await.len(), 4);
    assert_eq!(find("*").await, [ids[3].clone()].into(), "`*` is not a pattern");
    assert_eq!(find("6f1f*").await, [ids[4].clone()].into());
    assert!(find("[6]").await.is_empty());
    assert_eq!(store.task_ids("6f1", 2).await.unwrap().len(), 2);
    let test_task = suspended_task(&fixture).await;
    let start = &test_task.id().as_str()[..8];
    assert_eq!(find(start).await, [test_task.id().clone()].into());
}
