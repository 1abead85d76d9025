//! Marks on tasks that are not to run.

use std::sync::Arc;

use countersign::backend::{Capability, Revocation, Store};
use countersign::{Revoke, TaskId};
use tokio::sync::mpsc;

use crate::ground::Ground;
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(where_nothing_is_marked_an_empty_batch_says_so),
        promise(the_first_batch_has_every_mark),
        promise(new_marks_come_as_they_are_made),
        promise(everybody_who_listens_is_told),
        promise(closing_ends_the_marks),
        promise(marks_of_one_come_to_another).needs(Capability::SeveralProcesses),
    ]
}

type Marks = mpsc::Receiver<Vec<Revocation>>;

async fn revoke(store: &Arc<dyn Store>, how: Revoke) -> Revocation {
    let id = TaskId::random();
    store.revoke(std::slice::from_ref(&id), how).await.unwrap();
    Revocation { id, revoke: how }
}

/// Takes batches until this mark is among them.
async fn hear(marks: &mut Marks, wanted: &Revocation) {
    while !marks.recv().await.unwrap().contains(wanted) {}
}

async fn where_nothing_is_marked_an_empty_batch_says_so(ground: Ground) {
    let Ground { store, .. } = &ground;
    store.revoke(&[], Revoke::EvenRunning).await.unwrap();
    assert_eq!(store.revocations().recv().await.unwrap(), []);
}

async fn the_first_batch_has_every_mark(ground: Ground) {
    let Ground { store, .. } = &ground;
    let queued = revoke(store, Revoke::IfQueued).await;
    let running = revoke(store, Revoke::EvenRunning).await;
    let raised = revoke(store, Revoke::IfQueued).await.id;
    store.revoke(std::slice::from_ref(&raised), Revoke::EvenRunning).await.unwrap();
    let many: Vec<_> = (0..60_000).map(|_| TaskId::random()).collect();
    store.revoke(&many, Revoke::IfQueued).await.unwrap();
    let first = store.revocations().recv().await.unwrap();
    let raised = Revocation { id: raised, revoke: Revoke::EvenRunning };
    for mark in [&queued, &running, &raised] {
        assert!(first.contains(mark), "{mark:?} is missing");
    }
    let too_much = Revocation { revoke: Revoke::EvenRunning, ..queued };
    assert!(!first.contains(&too_much), "more than was said");
    let first: std::collections::HashSet<_> =
        first.into_iter().map(|mark| (mark.id, mark.revoke == Revoke::EvenRunning)).collect();
    let lost = many.into_iter().filter(|id| !first.contains(&(id.clone(), false))).count();
    assert_eq!(lost, 0, "marks are lost");
}

async fn new_marks_come_as_they_are_made(ground: Ground) {
    let Ground { store, .. } = &ground;
    let mut marks = store.revocations();
    assert_eq!(marks.recv().await.unwrap(), []);
    for how in [Revoke::IfQueued, Revoke::EvenRunning, Revoke::IfQueued] {
        let mark = revoke(store, how).await;
        hear(&mut marks, &mark).await;
    }
}

async fn everybody_who_listens_is_told(ground: Ground) {
    let Ground { store, .. } = &ground;
    let mut listeners = [store.revocations(), store.revocations(), store.revocations()];
    let mark = revoke(store, Revoke::EvenRunning).await;
    for marks in &mut listeners {
        hear(marks, &mark).await;
    }
    let [first, ..] = listeners;
    drop(first);
    revoke(store, Revoke::IfQueued).await;
}

async fn closing_ends_the_marks(ground: Ground) {
    let mut marks = ground.store.revocations();
    let ending = async { while marks.recv().await.is_some() {} };
    tokio::join!(ground.store.close(), ending);
}

async fn marks_of_one_come_to_another(ground: Ground) {
    let other = ground.open().await.store;
    let before = revoke(&ground.store, Revoke::IfQueued).await;
    let mut marks = other.revocations();
    assert!(marks.recv().await.unwrap().contains(&before));
    for how in [Revoke::IfQueued, Revoke::EvenRunning] {
        let mark = revoke(&ground.store, how).await;
        hear(&mut marks, &mark).await;
    }
}
