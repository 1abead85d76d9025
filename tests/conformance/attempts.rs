//! Claimed attempts, and runs whose end was not recorded.

use countersign::TaskId;
use countersign::backend::{Capability, Crashes};

use crate::case::{Case, case};
use crate::fixture::{Fixture, race, run};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(an_attempt_is_claimed_once),
        case(one_of_many_claims_an_attempt),
        case(runs_are_counted_until_the_crashes_are_cleared),
        case(concurrent_runs_are_all_counted),
        case(another_process_sees_attempts_and_runs).needs(Capability::SeveralProcesses),
    ]
}

async fn an_attempt_is_claimed_once(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [id, other] = [TaskId::random(), TaskId::random()];
    for attempt in [1, 2, u32::MAX] {
        assert!(store.claim_attempt(&id, &run("one").digest, attempt).await.unwrap());
        assert!(!store.claim_attempt(&id, &run("one").digest, attempt).await.unwrap());
        assert!(store.claim_attempt(&other, &run("one").digest, attempt).await.unwrap());
        // Another task has the same id.
        assert!(store.claim_attempt(&id, &run("two").digest, attempt).await.unwrap());
    }
}

async fn one_of_many_claims_an_attempt(fixture: Fixture) {
    let id = TaskId::random();
    let taken = race(50, |_| {
        let (store, id) = (fixture.store.clone(), id.clone());
        async move { store.claim_attempt(&id, &run("one").digest, 1).await.unwrap() }
    });
    assert_eq!(taken.await.into_iter().filter(|taken| *taken).count(), 1);
}

async fn runs_are_counted_until_the_crashes_are_cleared(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [id, other] = [TaskId::random(), TaskId::random()];
    assert_eq!(store.crashes(&id).await.unwrap(), Crashes::default());
    store.record_run(&id, false).await.unwrap();
    store.record_run(&id, true).await.unwrap();
    store.record_run(&id, false).await.unwrap();
    store.record_run(&other, true).await.unwrap();
    assert_eq!(store.crashes(&id).await.unwrap(), Crashes { runs: 3, alone: 1 });
    store.clear_crashes(&id).await.unwrap();
    assert_eq!(store.crashes(&id).await.unwrap(), Crashes::default());
    assert_eq!(store.crashes(&other).await.unwrap(), Crashes { runs: 1, alone: 1 });
    store.record_run(&id, false).await.unwrap();
    assert_eq!(store.crashes(&id).await.unwrap(), Crashes { runs: 1, alone: 0 });
}

async fn concurrent_runs_are_all_counted(fixture: Fixture) {
    let id = TaskId::random();
    race(50, |n| {
        let (store, id) = (fixture.store.clone(), id.clone());
        async move { store.record_run(&id, n % 5 == 0).await.unwrap() }
    })
    .await;
    assert_eq!(fixture.store.crashes(&id).await.unwrap(), Crashes { runs: 50, alone: 10 });
}

async fn another_process_sees_attempts_and_runs(fixture: Fixture) {
    let other = fixture.open().await.store;
    let id = TaskId::random();
    assert!(fixture.store.claim_attempt(&id, &run("one").digest, 1).await.unwrap());
    assert!(!other.claim_attempt(&id, &run("one").digest, 1).await.unwrap());
    other.record_run(&id, true).await.unwrap();
    assert_eq!(fixture.store.crashes(&id).await.unwrap(), Crashes { runs: 1, alone: 1 });
    fixture.store.clear_crashes(&id).await.unwrap();
    assert_eq!(other.crashes(&id).await.unwrap(), Crashes::default());
}
