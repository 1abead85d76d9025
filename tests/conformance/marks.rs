//! Attempts that were taken, and runs that nobody saw end.

use countersign::TaskId;
use countersign::backend::{Capability, Crashes};

use crate::ground::{Ground, race, run};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(an_attempt_is_taken_once),
        promise(one_of_many_takes_an_attempt),
        promise(runs_are_counted_until_the_task_is_acquitted),
        promise(runs_at_once_are_all_counted),
        promise(what_one_marks_another_sees).needs(Capability::SeveralProcesses),
    ]
}

async fn an_attempt_is_taken_once(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [id, other] = [TaskId::random(), TaskId::random()];
    for attempt in [1, 2, u32::MAX] {
        assert!(store.take(&id, &run("one").digest, attempt).await.unwrap());
        assert!(!store.take(&id, &run("one").digest, attempt).await.unwrap());
        assert!(store.take(&other, &run("one").digest, attempt).await.unwrap());
        // Another task with the same id.
        assert!(store.take(&id, &run("two").digest, attempt).await.unwrap());
    }
}

async fn one_of_many_takes_an_attempt(ground: Ground) {
    let id = TaskId::random();
    let taken = race(50, |_| {
        let (store, id) = (ground.store.clone(), id.clone());
        async move { store.take(&id, &run("one").digest, 1).await.unwrap() }
    });
    assert_eq!(taken.await.into_iter().filter(|taken| *taken).count(), 1);
}

async fn runs_are_counted_until_the_task_is_acquitted(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [id, other] = [TaskId::random(), TaskId::random()];
    assert_eq!(store.crashes(&id).await.unwrap(), Crashes::default());
    store.note_run(&id, false).await.unwrap();
    store.note_run(&id, true).await.unwrap();
    store.note_run(&id, false).await.unwrap();
    store.note_run(&other, true).await.unwrap();
    assert_eq!(store.crashes(&id).await.unwrap(), Crashes { runs: 3, alone: 1 });
    store.acquit(&id).await.unwrap();
    assert_eq!(store.crashes(&id).await.unwrap(), Crashes::default());
    assert_eq!(store.crashes(&other).await.unwrap(), Crashes { runs: 1, alone: 1 });
    store.note_run(&id, false).await.unwrap();
    assert_eq!(store.crashes(&id).await.unwrap(), Crashes { runs: 1, alone: 0 });
}

async fn runs_at_once_are_all_counted(ground: Ground) {
    let id = TaskId::random();
    race(50, |n| {
        let (store, id) = (ground.store.clone(), id.clone());
        async move { store.note_run(&id, n % 5 == 0).await.unwrap() }
    })
    .await;
    assert_eq!(ground.store.crashes(&id).await.unwrap(), Crashes { runs: 50, alone: 10 });
}

async fn what_one_marks_another_sees(ground: Ground) {
    let other = ground.open().await.store;
    let id = TaskId::random();
    assert!(ground.store.take(&id, &run("one").digest, 1).await.unwrap());
    assert!(!other.take(&id, &run("one").digest, 1).await.unwrap());
    other.note_run(&id, true).await.unwrap();
    assert_eq!(ground.store.crashes(&id).await.unwrap(), Crashes { runs: 1, alone: 1 });
    ground.store.acquit(&id).await.unwrap();
    assert_eq!(other.crashes(&id).await.unwrap(), Crashes::default());
}
