//! Forgetting tasks: all data of an ended task is deleted, and no data of another task.

use countersign::TaskId;
use countersign::backend::{ClaimResult, Crashes, EntryKind, Forget, Scope, StreamAppend};
use countersign::protocol::{SUSPENDED, State, SuspendHeader, SuspendKind};

use crate::case::{Case, case};
use crate::fixture::{Fixture, HOUR, run};
use crate::suspensions::suspended_task;

pub(crate) fn cases() -> Vec<Case> {
    vec![case(a_forgotten_task_leaves_nothing), case(a_task_that_may_run_is_not_forgotten)]
}

async fn a_forgotten_task_leaves_nothing(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let test_task = suspended_task(&fixture).await;
    let id = test_task.id();
    let run = run("one");
    store.record_step(id, &run, "s", "1".into()).await.unwrap();
    let entry =
        StreamAppend { scope: Scope::Body, number: 1, kind: EntryKind::Output, json: "1".into() };
    store.append_entry(id, &run, entry).await.unwrap();
    for attempt in [1, 2, 3] {
        assert!(store.claim_attempt(id, &run.digest, attempt).await.unwrap());
    }
    store.record_run(id, true).await.unwrap();
    assert_eq!(store.forget(id).await.unwrap(), Forget::Unfinished(Some(State::named(SUSPENDED))));
    fixture.finish(id, "FAILURE", "").await;
    assert_eq!(store.forget(id).await.unwrap(), Forget::Unfinished(Some(State::named(SUSPENDED))));
    assert_eq!(store.task_history(id, None).await.unwrap().steps.len(), 1, "nothing was deleted");
    store.end_suspended(id, Some(&run.digest)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.forget(id).await.unwrap(), Forget::Forgotten);
        assert!(store.read_result(id).await.unwrap().is_none());
        let history = store.task_history(id, None).await.unwrap();
        assert!(history.steps.is_empty() && history.streamed.is_empty());
        assert_eq!(store.read_entries(id, 0).await.unwrap(), []);
        assert_eq!(store.crashes(id).await.unwrap(), Crashes::default());
    }
    assert!(store.claim_attempt(id, &run.digest, 3).await.unwrap());
    // Late messages of the task are distinguished from the same message when it is sent again.
    let late = store
        .claim_suspended(
            id,
            SuspendHeader { kind: SuspendKind::Wake, number: 1 },
            Some(&run.digest),
            "b",
            HOUR,
        )
        .await
        .unwrap();
    assert!(matches!(late, ClaimResult::Over(_)), "{late:?}");
    let first = SuspendHeader { kind: SuspendKind::Original, number: 0 };
    let again = store.claim_suspended(id, first, Some(&run.digest), "b", HOUR).await.unwrap();
    assert!(matches!(again, ClaimResult::Unclaimed), "{again:?}");
    let begun = store.claim_first(id, &run.digest, false, "b", HOUR).await.unwrap();
    assert!(matches!(begun, ClaimResult::Claimed { number: 2, .. }), "{begun:?}");
}

async fn a_task_that_may_run_is_not_forgotten(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    store.record_step(&id, &run("one"), "s", "1".into()).await.unwrap();
    assert_eq!(store.forget(&id).await.unwrap(), Forget::Unfinished(None));
    fixture.finish(&id, "RETRY", "").await;
    assert_eq!(store.forget(&id).await.unwrap(), Forget::Unfinished(Some(State::named("RETRY"))));
    fixture.finish(&id, "REVOKED", "").await;
    assert_eq!(store.forget(&id).await.unwrap(), Forget::Forgotten);
    assert_eq!(store.forget(&TaskId::random()).await.unwrap(), Forget::Forgotten);
}
