//! Revocations of tasks.

use std::sync::Arc;

use countersign::backend::{Capability, Revocation, Store};
use countersign::{Revoke, TaskId};
use tokio::sync::mpsc;

use crate::case::{Case, case};
use crate::fixture::Fixture;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(the_first_batch_is_empty_without_revocations),
        case(the_first_batch_has_every_revocation),
        case(new_revocations_are_delivered),
        case(every_subscriber_gets_every_revocation),
        case(a_stored_revocation_is_not_announced_again),
        case(closing_ends_the_subscription),
        case(another_process_gets_the_revocations).needs(Capability::SeveralProcesses),
    ]
}

type Revocations = mpsc::Receiver<Vec<Revocation>>;

async fn revoke(store: &Arc<dyn Store>, how: Revoke) -> Revocation {
    let id = TaskId::random();
    store.revoke(std::slice::from_ref(&id), how).await.unwrap();
    Revocation { id, revoke: how }
}

/// Receives batches until one contains this mark.
async fn wait_for(revocations: &mut Revocations, wanted: &Revocation) {
    while !revocations.recv().await.unwrap().contains(wanted) {}
}

async fn the_first_batch_is_empty_without_revocations(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    store.revoke(&[], Revoke::Terminate).await.unwrap();
    assert_eq!(store.watch_revocations().recv().await.unwrap(), []);
}

async fn the_first_batch_has_every_revocation(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let queued = revoke(store, Revoke::IfQueued).await;
    let running = revoke(store, Revoke::Terminate).await;
    let raised = revoke(store, Revoke::IfQueued).await.id;
    store.revoke(std::slice::from_ref(&raised), Revoke::Terminate).await.unwrap();
    let many: Vec<_> = (0..60_000).map(|_| TaskId::random()).collect();
    store.revoke(&many, Revoke::IfQueued).await.unwrap();
    let first = store.watch_revocations().recv().await.unwrap();
    let raised = Revocation { id: raised, revoke: Revoke::Terminate };
    for revocation in [&queued, &running, &raised] {
        assert!(first.contains(revocation), "{revocation:?} is missing");
    }
    let too_much = Revocation { revoke: Revoke::Terminate, ..queued };
    assert!(!first.contains(&too_much), "more than was revoked");
    let first: std::collections::HashSet<_> = first
        .into_iter()
        .map(|revocation| (revocation.id, revocation.revoke == Revoke::Terminate))
        .collect();
    let lost = many.into_iter().filter(|id| !first.contains(&(id.clone(), false))).count();
    assert_eq!(lost, 0, "revocations are lost");
}

async fn new_revocations_are_delivered(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let mut revocations = store.watch_revocations();
    assert_eq!(revocations.recv().await.unwrap(), []);
    for how in [Revoke::IfQueued, Revoke::Terminate, Revoke::IfQueued] {
        let revocation = revoke(store, how).await;
        wait_for(&mut revocations, &revocation).await;
    }
}

/// Each worker that receives a broadcast stores its revocations: only the first one announces them.
async fn a_stored_revocation_is_not_announced_again(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let mut revocations = store.watch_revocations();
    // After this, only a batch of all stored marks contains this one.
    let oldest = revoke(store, Revoke::IfQueued).await;
    wait_for(&mut revocations, &oldest).await;
    let first = revoke(store, Revoke::IfQueued).await;
    wait_for(&mut revocations, &first).await;
    // Returns whether marks of the first task are announced before the mark `next`.
    let mut is_announced = async |next: Revocation| {
        let mut is_announced = false;
        loop {
            let batch = revocations.recv().await.unwrap();
            let is_of_all = batch.contains(&oldest);
            is_announced |= !is_of_all && batch.iter().any(|revocation| revocation.id == first.id);
            if batch.contains(&next) {
                return is_announced;
            }
        }
    };
    store.revoke(std::slice::from_ref(&first.id), Revoke::IfQueued).await.unwrap();
    let second = Revocation { id: TaskId::random(), revoke: Revoke::IfQueued };
    store.revoke(&[first.id.clone(), second.id.clone()], Revoke::IfQueued).await.unwrap();
    assert!(!is_announced(second).await, "the revocation was announced twice");
    store.revoke(std::slice::from_ref(&first.id), Revoke::Terminate).await.unwrap();
    let third = revoke(store, Revoke::IfQueued).await;
    assert!(is_announced(third).await, "a stronger revocation is new");
    store.revoke(std::slice::from_ref(&first.id), Revoke::IfQueued).await.unwrap();
    let fourth = revoke(store, Revoke::IfQueued).await;
    assert!(!is_announced(fourth).await, "a weaker revocation is not new");
}

async fn every_subscriber_gets_every_revocation(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let mut listeners =
        [store.watch_revocations(), store.watch_revocations(), store.watch_revocations()];
    let revocation = revoke(store, Revoke::Terminate).await;
    for revocations in &mut listeners {
        wait_for(revocations, &revocation).await;
    }
    let [first, ..] = listeners;
    drop(first);
    revoke(store, Revoke::IfQueued).await;
}

async fn closing_ends_the_subscription(fixture: Fixture) {
    let mut revocations = fixture.store.watch_revocations();
    let ending = async { while revocations.recv().await.is_some() {} };
    tokio::join!(fixture.store.close(), ending);
}

async fn another_process_gets_the_revocations(fixture: Fixture) {
    let other = fixture.open().await.store;
    let before = revoke(&fixture.store, Revoke::IfQueued).await;
    let mut revocations = other.watch_revocations();
    assert!(revocations.recv().await.unwrap().contains(&before));
    for how in [Revoke::IfQueued, Revoke::Terminate] {
        let revocation = revoke(&fixture.store, how).await;
        wait_for(&mut revocations, &revocation).await;
    }
}
