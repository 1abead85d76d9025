//! What came of tasks.

use std::time::Duration;

use countersign::TaskId;
use countersign::backend::{Backends, Capability, Deed, Finish};
use countersign::protocol::{PARKED, State};

use crate::ground::{Ground, document, eventually, finish, race, run, text};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_result_is_read_as_it_was_stored),
        promise(the_first_terminal_result_wins),
        promise(what_is_not_the_end_is_replaced),
        promise(one_of_many_at_once_wins),
        promise(many_results_at_once_are_all_stored),
        promise(a_stored_result_is_the_proof_for_its_task),
        promise(a_result_expires),
        promise(a_parked_tasks_state_is_kept_until_another_takes_its_place),
        promise(reopening_takes_a_failure_back_and_notes_it),
        promise(reopening_leaves_a_success_and_a_revocation),
        promise(reopening_forgets_the_attempts_that_ran),
        promise(a_reopened_task_may_end_once_more),
        promise(a_closed_store_takes_nothing),
        promise(one_stores_and_another_reads).needs(Capability::SeveralProcesses),
    ]
}

async fn a_result_is_read_as_it_was_stored(ground: Ground) {
    let id = TaskId::random();
    assert_eq!(ground.store.read(&id).await.unwrap(), None);
    for result in ["", "grüße 日本 \u{0} \"\\", &"x".repeat(2 << 20)] {
        let id = TaskId::random();
        let stored = ground.finish(&id, "SUCCESS", result).await;
        let found = ground.store.read(&id).await.unwrap().unwrap();
        assert!(found == stored, "{} bytes are others", result.len());
        assert_eq!(found.state, State::Success);
    }
    // An id may be any text.
    let odd = TaskId::from("a task: {with} 'an' odd\n\"id\" 日本 *");
    let stored = ground.finish(&odd, "FAILURE", "x").await;
    assert_eq!(ground.store.read(&odd).await.unwrap(), Some(stored));
}

async fn the_first_terminal_result_wins(ground: Ground) {
    for first in ["SUCCESS", "FAILURE", "REVOKED"] {
        for second in ["SUCCESS", "FAILURE", "REVOKED", "RETRY", "STARTED", PARKED] {
            let id = TaskId::random();
            let stored = ground.finish(&id, first, "first").await;
            ground.finish(&id, second, "second").await;
            let found = ground.store.read(&id).await.unwrap();
            assert_eq!(found, Some(stored), "{first}, then {second}");
        }
    }
}

async fn what_is_not_the_end_is_replaced(ground: Ground) {
    let id = TaskId::random();
    for state in ["STARTED", "RETRY", PARKED, "RETRY", "FAILURE"] {
        let stored = ground.finish(&id, state, "").await;
        assert_eq!(ground.store.read(&id).await.unwrap(), Some(stored));
    }
}

async fn one_of_many_at_once_wins(ground: Ground) {
    let id = TaskId::random();
    let wait = ground.store.watch(id.clone(), countersign::backend::Origin::Foreign, None);
    race(50, |n| {
        let (store, id) = (ground.store.clone(), id.clone());
        async move {
            let status = ["SUCCESS", "FAILURE"][n % 2];
            finish(&store, &id, status, &n.to_string()).await
        }
    })
    .await;
    let stored = ground.store.read(&id).await.unwrap().unwrap();
    assert_eq!(*wait.await.unwrap().unwrap(), stored);
    ground.finish(&id, "SUCCESS", "late").await;
    assert_eq!(ground.store.read(&id).await.unwrap(), Some(stored));
}

async fn many_results_at_once_are_all_stored(ground: Ground) {
    let ids: Vec<_> = (0..500).map(|_| TaskId::random()).collect();
    race(ids.len(), |n| {
        let (store, id) = (ground.store.clone(), ids[n].clone());
        async move { finish(&store, &id, "SUCCESS", &n.to_string()).await }
    })
    .await;
    for (n, id) in ids.iter().enumerate() {
        let found = ground.store.read(id).await.unwrap();
        assert_eq!(found, Some(document(id, "SUCCESS", &n.to_string())));
    }
}

async fn a_stored_result_is_the_proof_for_its_task(ground: Ground) {
    let mut deliveries = ground.consume(1);
    for status in ["SUCCESS", "FAILURE"] {
        // The second time it loses, and is just as recorded.
        for _ in 0..2 {
            let sent = ground.send("a").await;
            let delivery = deliveries.next().await.unwrap();
            ground.finish(&sent.id, "SUCCESS", "first").await;
            let document = document(&sent.id, status, "");
            let proof = ground
                .store
                .finish(Finish { document, reply_to: None, received: None })
                .await
                .unwrap();
            let _ = delivery.ack(proof).unwrap();
        }
    }
    ground.send("last").await;
    assert_eq!(text(&deliveries.next().await.unwrap()), "last");
}

async fn short_lived(ground: &Ground) -> Backends {
    ground.open_with(|config| config.result_expires = Duration::from_secs(1)).await
}

async fn a_result_expires(ground: Ground) {
    let store = short_lived(&ground).await.store;
    let id = TaskId::random();
    let stored = finish(&store, &id, "SUCCESS", "").await;
    assert_eq!(store.read(&id).await.unwrap(), Some(stored));
    eventually("it has expired", async || store.read(&id).await.unwrap().is_none()).await;
    // As if it had never been.
    let again = finish(&store, &id, "FAILURE", "").await;
    assert_eq!(store.read(&id).await.unwrap(), Some(again));
}

async fn a_parked_tasks_state_is_kept_until_another_takes_its_place(ground: Ground) {
    let store = short_lived(&ground).await.store;
    let [parked, ended] = [TaskId::random(), TaskId::random()];
    let stored = finish(&store, &parked, PARKED, "").await;
    finish(&store, &ended, "SUCCESS", "").await;
    eventually("the other has expired", async || store.read(&ended).await.unwrap().is_none()).await;
    assert_eq!(store.read(&parked).await.unwrap(), Some(stored));
    finish(&store, &parked, "SUCCESS", "").await;
    eventually("it has expired, too", async || store.read(&parked).await.unwrap().is_none()).await;
}

fn replay(id: &TaskId) -> Deed {
    Deed { what: "replay", id: id.clone(), queue: "q.dead".into(), by: "ana@here".into() }
}

async fn reopening_takes_a_failure_back_and_notes_it(ground: Ground) {
    let Ground { store, .. } = &ground;
    for found in [Some(State::Failure), Some(State::Retry), None] {
        let id = TaskId::random();
        if let Some(state) = &found {
            ground.finish(&id, state.as_str(), "").await;
        }
        assert_eq!(store.reopen(replay(&id), 3).await.unwrap(), found);
        let left = store.read(&id).await.unwrap().map(|document| document.state);
        assert_eq!(left, found.filter(|state| !state.is_terminal()));
        let noted = store.audit_entries(1).await.unwrap().remove(0).fields;
        for (name, value) in
            [("what", "replay"), ("task", id.as_str()), ("queue", "q.dead"), ("by", "ana@here")]
        {
            assert!(noted.contains(&(name.to_owned(), value.to_owned())), "{noted:?}");
        }
    }
}

async fn reopening_leaves_a_success_and_a_revocation(ground: Ground) {
    let Ground { store, .. } = &ground;
    for state in [State::Success, State::Revoked] {
        let id = TaskId::random();
        let stored = ground.finish(&id, state.as_str(), "").await;
        assert!(store.take(&id, &run("one").digest, 1).await.unwrap());
        assert_eq!(store.reopen(replay(&id), 3).await.unwrap(), Some(state));
        assert_eq!(store.read(&id).await.unwrap(), Some(stored));
        assert!(
            !store.take(&id, &run("one").digest, 1).await.unwrap(),
            "its attempt is still taken"
        );
    }
    assert_eq!(store.audit_entries(10).await.unwrap(), [], "nothing was done");
}

async fn reopening_forgets_the_attempts_that_ran(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [id, other] = [TaskId::random(), TaskId::random()];
    ground.finish(&id, "FAILURE", "").await;
    for attempt in 1..=4 {
        assert!(store.take(&id, &run("one").digest, attempt).await.unwrap());
        assert!(store.take(&other, &run("one").digest, attempt).await.unwrap());
    }
    store.reopen(replay(&id), 3).await.unwrap();
    for attempt in 1..=4 {
        assert_eq!(
            store.take(&id, &run("one").digest, attempt).await.unwrap(),
            attempt < 4,
            "attempt {attempt}"
        );
        assert!(
            !store.take(&other, &run("one").digest, attempt).await.unwrap(),
            "another task's {attempt}"
        );
    }
}

async fn a_reopened_task_may_end_once_more(ground: Ground) {
    let Ground { store, .. } = &ground;
    let id = TaskId::random();
    ground.finish(&id, "FAILURE", "first").await;
    store.reopen(replay(&id), 1).await.unwrap();
    let wait = store.watch(id.clone(), countersign::backend::Origin::Foreign, None);
    let stored = ground.finish(&id, "SUCCESS", "second").await;
    assert_eq!(*wait.await.unwrap().unwrap(), stored);
    assert_eq!(store.read(&id).await.unwrap(), Some(stored));
}

async fn a_closed_store_takes_nothing(ground: Ground) {
    let Ground { store, .. } = &ground;
    store.close().await;
    let id = TaskId::random();
    let finish = Finish { document: document(&id, "SUCCESS", ""), reply_to: None, received: None };
    assert!(store.finish(finish).await.is_err());
    assert!(store.read(&id).await.is_err());
    assert!(store.take(&id, &run("one").digest, 1).await.is_err());
    assert!(store.kept(&id, None).await.is_err());
    assert!(store.audit_entries(1).await.is_err());
}

async fn one_stores_and_another_reads(ground: Ground) {
    let other = ground.open().await;
    let id = TaskId::random();
    let stored = ground.finish(&id, "RETRY", "first").await;
    assert_eq!(other.store.read(&id).await.unwrap(), Some(stored));
    let stored = finish(&other.store, &id, "SUCCESS", "second").await;
    ground.finish(&id, "FAILURE", "third").await;
    for store in [&ground.store, &other.store] {
        assert_eq!(store.read(&id).await.unwrap().as_ref(), Some(&stored));
    }
}
