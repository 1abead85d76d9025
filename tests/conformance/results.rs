//! The results of tasks.

use std::time::Duration;

use countersign::TaskId;
use countersign::backend::{AuditAction, Backends, Capability, StoreResult};
use countersign::protocol::{SUSPENDED, State};

use crate::case::{Case, case};
use crate::fixture::{Fixture, document, eventually, finish, race, run, text};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_result_is_read_as_it_was_stored),
        case(the_first_terminal_result_wins),
        case(a_state_that_is_not_terminal_is_replaced),
        case(one_of_many_concurrent_results_wins),
        case(concurrent_results_are_all_stored),
        case(a_stored_result_is_the_proof_for_its_task),
        case(a_result_expires),
        case(the_state_of_a_suspended_task_is_kept_until_replaced),
        case(reopening_removes_a_failure_and_audits_it),
        case(reopening_keeps_a_success_and_a_revocation),
        case(reopening_forgets_the_attempts_that_ran),
        case(a_reopened_task_may_end_once_more),
        case(a_closed_store_takes_nothing),
        case(another_process_reads_a_result).needs(Capability::SeveralProcesses),
    ]
}

async fn a_result_is_read_as_it_was_stored(fixture: Fixture) {
    let id = TaskId::random();
    assert_eq!(fixture.store.read_result(&id).await.unwrap(), None);
    for result in ["", "grüße 日本 \u{0} \"\\", &"x".repeat(2 << 20)] {
        let id = TaskId::random();
        let stored = fixture.finish(&id, "SUCCESS", result).await;
        let found = fixture.store.read_result(&id).await.unwrap().unwrap();
        assert!(found == stored, "{} bytes differ", result.len());
        assert_eq!(found.state, State::Success);
    }
    // An id may be any text.
    let odd = TaskId::from("a task: {with} 'an' odd\n\"id\" 日本 *");
    let stored = fixture.finish(&odd, "FAILURE", "x").await;
    assert_eq!(fixture.store.read_result(&odd).await.unwrap(), Some(stored));
}

async fn the_first_terminal_result_wins(fixture: Fixture) {
    for first in ["SUCCESS", "FAILURE", "REVOKED"] {
        for second in ["SUCCESS", "FAILURE", "REVOKED", "RETRY", "STARTED", SUSPENDED] {
            let id = TaskId::random();
            let stored = fixture.finish(&id, first, "first").await;
            fixture.finish(&id, second, "second").await;
            let found = fixture.store.read_result(&id).await.unwrap();
            assert_eq!(found, Some(stored), "{first}, then {second}");
        }
    }
}

async fn a_state_that_is_not_terminal_is_replaced(fixture: Fixture) {
    let id = TaskId::random();
    for state in ["STARTED", "RETRY", SUSPENDED, "RETRY", "FAILURE"] {
        let stored = fixture.finish(&id, state, "").await;
        assert_eq!(fixture.store.read_result(&id).await.unwrap(), Some(stored));
    }
}

async fn one_of_many_concurrent_results_wins(fixture: Fixture) {
    let id = TaskId::random();
    let wait = fixture.store.watch_result(id.clone(), countersign::backend::Origin::Foreign, None);
    race(50, |n| {
        let (store, id) = (fixture.store.clone(), id.clone());
        async move {
            let status = ["SUCCESS", "FAILURE"][n % 2];
            finish(&store, &id, status, &n.to_string()).await
        }
    })
    .await;
    let stored = fixture.store.read_result(&id).await.unwrap().unwrap();
    assert_eq!(*wait.await.unwrap().unwrap(), stored);
    fixture.finish(&id, "SUCCESS", "late").await;
    assert_eq!(fixture.store.read_result(&id).await.unwrap(), Some(stored));
}

async fn concurrent_results_are_all_stored(fixture: Fixture) {
    let ids: Vec<_> = (0..500).map(|_| TaskId::random()).collect();
    race(ids.len(), |n| {
        let (store, id) = (fixture.store.clone(), ids[n].clone());
        async move { finish(&store, &id, "SUCCESS", &n.to_string()).await }
    })
    .await;
    for (n, id) in ids.iter().enumerate() {
        let found = fixture.store.read_result(id).await.unwrap();
        assert_eq!(found, Some(document(id, "SUCCESS", &n.to_string())));
    }
}

async fn a_stored_result_is_the_proof_for_its_task(fixture: Fixture) {
    let mut deliveries = fixture.consume(1);
    for status in ["SUCCESS", "FAILURE"] {
        // The second result is not stored, but counts as recorded, too.
        for _ in 0..2 {
            let sent = fixture.send("a").await;
            let delivery = deliveries.next().await.unwrap();
            fixture.finish(&sent.id, "SUCCESS", "first").await;
            let document = document(&sent.id, status, "");
            let proof = fixture
                .store
                .store_result(StoreResult { document, reply_to: None, received: None })
                .await
                .unwrap();
            let _ = delivery.ack(proof).unwrap();
        }
    }
    fixture.send("last").await;
    assert_eq!(text(&deliveries.next().await.unwrap()), "last");
}

async fn short_lived(fixture: &Fixture) -> Backends {
    fixture.open_with(|config| config.result_expires = Duration::from_secs(1)).await
}

async fn a_result_expires(fixture: Fixture) {
    let store = short_lived(&fixture).await.store;
    let id = TaskId::random();
    let stored = finish(&store, &id, "SUCCESS", "").await;
    assert_eq!(store.read_result(&id).await.unwrap(), Some(stored));
    eventually("the result has expired", async || store.read_result(&id).await.unwrap().is_none())
        .await;
    // A new result is stored as if there had never been one.
    let again = finish(&store, &id, "FAILURE", "").await;
    assert_eq!(store.read_result(&id).await.unwrap(), Some(again));
}

async fn the_state_of_a_suspended_task_is_kept_until_replaced(fixture: Fixture) {
    let store = short_lived(&fixture).await.store;
    let [suspended, ended] = [TaskId::random(), TaskId::random()];
    let stored = finish(&store, &suspended, SUSPENDED, "").await;
    finish(&store, &ended, "SUCCESS", "").await;
    eventually("the other result has expired", async || {
        store.read_result(&ended).await.unwrap().is_none()
    })
    .await;
    assert_eq!(store.read_result(&suspended).await.unwrap(), Some(stored));
    finish(&store, &suspended, "SUCCESS", "").await;
    eventually("the second result has expired", async || {
        store.read_result(&suspended).await.unwrap().is_none()
    })
    .await;
}

fn replay(id: &TaskId) -> AuditAction {
    AuditAction { what: "replay", id: id.clone(), queue: "q.dead".into(), by: "ana@here".into() }
}

async fn reopening_removes_a_failure_and_audits_it(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    for found in [Some(State::Failure), Some(State::Retry), None] {
        let id = TaskId::random();
        if let Some(state) = &found {
            fixture.finish(&id, state.as_str(), "").await;
        }
        assert_eq!(store.reopen(replay(&id), 3).await.unwrap(), found);
        let left = store.read_result(&id).await.unwrap().map(|document| document.state);
        assert_eq!(left, found.filter(|state| !state.is_terminal()));
        let noted = store.audit_entries(1).await.unwrap().remove(0).fields;
        for (name, value) in
            [("what", "replay"), ("task", id.as_str()), ("queue", "q.dead"), ("by", "ana@here")]
        {
            assert!(noted.contains(&(name.to_owned(), value.to_owned())), "{noted:?}");
        }
    }
}

async fn reopening_keeps_a_success_and_a_revocation(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    for state in [State::Success, State::Revoked] {
        let id = TaskId::random();
        let stored = fixture.finish(&id, state.as_str(), "").await;
        assert!(store.claim_attempt(&id, &run("one").digest, 1).await.unwrap());
        assert_eq!(store.reopen(replay(&id), 3).await.unwrap(), Some(state));
        assert_eq!(store.read_result(&id).await.unwrap(), Some(stored));
        assert!(
            !store.claim_attempt(&id, &run("one").digest, 1).await.unwrap(),
            "its attempt is still taken"
        );
    }
    assert_eq!(store.audit_entries(10).await.unwrap(), [], "nothing was done");
}

async fn reopening_forgets_the_attempts_that_ran(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [id, other] = [TaskId::random(), TaskId::random()];
    fixture.finish(&id, "FAILURE", "").await;
    for attempt in 1..=4 {
        assert!(store.claim_attempt(&id, &run("one").digest, attempt).await.unwrap());
        assert!(store.claim_attempt(&other, &run("one").digest, attempt).await.unwrap());
    }
    store.reopen(replay(&id), 3).await.unwrap();
    for attempt in 1..=4 {
        assert_eq!(
            store.claim_attempt(&id, &run("one").digest, attempt).await.unwrap(),
            attempt < 4,
            "attempt {attempt}"
        );
        assert!(
            !store.claim_attempt(&other, &run("one").digest, attempt).await.unwrap(),
            "another task's {attempt}"
        );
    }
}

async fn a_reopened_task_may_end_once_more(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    fixture.finish(&id, "FAILURE", "first").await;
    store.reopen(replay(&id), 1).await.unwrap();
    let wait = store.watch_result(id.clone(), countersign::backend::Origin::Foreign, None);
    let stored = fixture.finish(&id, "SUCCESS", "second").await;
    assert_eq!(*wait.await.unwrap().unwrap(), stored);
    assert_eq!(store.read_result(&id).await.unwrap(), Some(stored));
}

async fn a_closed_store_takes_nothing(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    store.close().await;
    let id = TaskId::random();
    let finish =
        StoreResult { document: document(&id, "SUCCESS", ""), reply_to: None, received: None };
    assert!(store.store_result(finish).await.is_err());
    assert!(store.read_result(&id).await.is_err());
    assert!(store.claim_attempt(&id, &run("one").digest, 1).await.is_err());
    assert!(store.task_history(&id, None).await.is_err());
    assert!(store.audit_entries(1).await.is_err());
}

async fn another_process_reads_a_result(fixture: Fixture) {
    let other = fixture.open().await;
    let id = TaskId::random();
    let stored = fixture.finish(&id, "RETRY", "first").await;
    assert_eq!(other.store.read_result(&id).await.unwrap(), Some(stored));
    let stored = finish(&other.store, &id, "SUCCESS", "second").await;
    fixture.finish(&id, "FAILURE", "third").await;
    for store in [&fixture.store, &other.store] {
        assert_eq!(store.read_result(&id).await.unwrap().as_ref(), Some(&stored));
    }
}
