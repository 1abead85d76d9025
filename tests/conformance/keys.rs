//! Idempotency keys.

use std::sync::Arc;
use std::time::Duration;

use countersign::TaskId;
use countersign::backend::{Capability, IdempotencyEntry, Store};

use crate::case::{Case, case};
use crate::fixture::{Fixture, HOUR, eventually, race};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_key_belongs_to_the_first_task_that_claims_it),
        case(one_of_many_claims_a_key),
        case(a_key_says_whether_its_task_was_sent),
        case(another_task_does_not_mark_a_key_as_sent),
        case(a_key_expires),
        case(another_process_sees_the_key).needs(Capability::SeveralProcesses),
    ]
}

async fn claim(store: &Arc<dyn Store>, key: &str, id: &TaskId) -> IdempotencyEntry {
    store.claim_key(key, id, HOUR).await.unwrap()
}

fn keyed(id: &TaskId, sent: bool) -> IdempotencyEntry {
    IdempotencyEntry { id: id.clone(), sent }
}

async fn a_key_belongs_to_the_first_task_that_claims_it(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [first, second] = [TaskId::random(), TaskId::random()];
    for key in ["", "k", "billing.refund:{an} odd 'key'\n日本 %*", &"long".repeat(500)] {
        assert_eq!(claim(store, key, &first).await, keyed(&first, false));
        assert_eq!(claim(store, key, &second).await, keyed(&first, false));
        assert_eq!(claim(store, key, &first).await, keyed(&first, false));
    }
    assert_eq!(claim(store, "another", &second).await, keyed(&second, false));
}

async fn one_of_many_claims_a_key(fixture: Fixture) {
    let claimed = race(50, |_| {
        let (store, id) = (fixture.store.clone(), TaskId::random());
        async move { (claim(&store, "k", &id).await.id == id, claim(&store, "k", &id).await.id) }
    });
    let claimed = claimed.await;
    assert_eq!(claimed.iter().filter(|(is_mine, _)| *is_mine).count(), 1);
    assert!(claimed.iter().all(|(_, id)| *id == claimed[0].1), "they disagree");
}

async fn a_key_says_whether_its_task_was_sent(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [first, second] = [TaskId::random(), TaskId::random()];
    claim(store, "k", &first).await;
    for _ in 0..2 {
        store.mark_key_sent("k", &first, HOUR).await.unwrap();
        assert_eq!(claim(store, "k", &second).await, keyed(&first, true));
    }
}

async fn another_task_does_not_mark_a_key_as_sent(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [first, second] = [TaskId::random(), TaskId::random()];
    claim(store, "k", &first).await;
    store.mark_key_sent("k", &second, HOUR).await.unwrap();
    assert_eq!(claim(store, "k", &second).await, keyed(&first, false));
}

async fn a_key_expires(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [first, second] = [TaskId::random(), TaskId::random()];
    let one_second = Duration::from_secs(1);
    store.claim_key("unsent", &first, one_second).await.unwrap();
    store.claim_key("sent", &first, HOUR).await.unwrap();
    store.mark_key_sent("sent", &first, one_second).await.unwrap();
    store.claim_key("kept", &first, one_second).await.unwrap();
    store.mark_key_sent("kept", &first, HOUR).await.unwrap();
    for key in ["unsent", "sent"] {
        let is_forgotten = async || claim(store, key, &second).await == keyed(&second, false);
        eventually(&format!("{key} is forgotten"), is_forgotten).await;
    }
    assert_eq!(claim(store, "kept", &second).await, keyed(&first, true));
}

async fn another_process_sees_the_key(fixture: Fixture) {
    let other = fixture.open().await.store;
    let [first, second] = [TaskId::random(), TaskId::random()];
    claim(&fixture.store, "k", &first).await;
    assert_eq!(claim(&other, "k", &second).await, keyed(&first, false));
    fixture.store.mark_key_sent("k", &first, HOUR).await.unwrap();
    assert_eq!(claim(&other, "k", &second).await, keyed(&first, true));
}
