//! Idempotency keys.

use std::sync::Arc;
use std::time::Duration;

use countersign::TaskId;
use countersign::backend::{Capability, KeyedTask, Store};

use crate::ground::{Ground, HOUR, eventually, race};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(a_key_stands_for_the_first_task_that_claims_it),
        promise(one_of_many_claims_a_key),
        promise(a_key_says_whether_its_task_was_sent),
        promise(another_task_does_not_mark_a_key_as_sent),
        promise(a_key_is_forgotten_in_its_time),
        promise(a_key_of_one_is_a_key_of_all).needs(Capability::SeveralProcesses),
    ]
}

async fn claim(store: &Arc<dyn Store>, key: &str, id: &TaskId) -> KeyedTask {
    store.claim_key(key, id, HOUR).await.unwrap()
}

fn keyed(id: &TaskId, sent: bool) -> KeyedTask {
    KeyedTask { id: id.clone(), sent }
}

async fn a_key_stands_for_the_first_task_that_claims_it(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [first, second] = [TaskId::random(), TaskId::random()];
    for key in ["", "k", "billing.refund:{an} odd 'key'\n日本 %*", &"long".repeat(500)] {
        assert_eq!(claim(store, key, &first).await, keyed(&first, false));
        assert_eq!(claim(store, key, &second).await, keyed(&first, false));
        assert_eq!(claim(store, key, &first).await, keyed(&first, false));
    }
    assert_eq!(claim(store, "another", &second).await, keyed(&second, false));
}

async fn one_of_many_claims_a_key(ground: Ground) {
    let claimed = race(50, |_| {
        let (store, id) = (ground.store.clone(), TaskId::random());
        async move { (claim(&store, "k", &id).await.id == id, claim(&store, "k", &id).await.id) }
    });
    let claimed = claimed.await;
    assert_eq!(claimed.iter().filter(|(is_mine, _)| *is_mine).count(), 1);
    assert!(claimed.iter().all(|(_, id)| *id == claimed[0].1), "they disagree");
}

async fn a_key_says_whether_its_task_was_sent(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [first, second] = [TaskId::random(), TaskId::random()];
    claim(store, "k", &first).await;
    for _ in 0..2 {
        store.mark_sent("k", &first, HOUR).await.unwrap();
        assert_eq!(claim(store, "k", &second).await, keyed(&first, true));
    }
}

async fn another_task_does_not_mark_a_key_as_sent(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [first, second] = [TaskId::random(), TaskId::random()];
    claim(store, "k", &first).await;
    store.mark_sent("k", &second, HOUR).await.unwrap();
    assert_eq!(claim(store, "k", &second).await, keyed(&first, false));
}

async fn a_key_is_forgotten_in_its_time(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [first, second] = [TaskId::random(), TaskId::random()];
    let second_long = Duration::from_secs(1);
    store.claim_key("unsent", &first, second_long).await.unwrap();
    store.claim_key("sent", &first, HOUR).await.unwrap();
    store.mark_sent("sent", &first, second_long).await.unwrap();
    store.claim_key("kept", &first, second_long).await.unwrap();
    store.mark_sent("kept", &first, HOUR).await.unwrap();
    for key in ["unsent", "sent"] {
        let is_forgotten = async || claim(store, key, &second).await == keyed(&second, false);
        eventually(&format!("{key} is forgotten"), is_forgotten).await;
    }
    assert_eq!(claim(store, "kept", &second).await, keyed(&first, true));
}

async fn a_key_of_one_is_a_key_of_all(ground: Ground) {
    let other = ground.open().await.store;
    let [first, second] = [TaskId::random(), TaskId::random()];
    claim(&ground.store, "k", &first).await;
    assert_eq!(claim(&other, "k", &second).await, keyed(&first, false));
    ground.store.mark_sent("k", &first, HOUR).await.unwrap();
    assert_eq!(claim(&other, "k", &second).await, keyed(&first, true));
}
