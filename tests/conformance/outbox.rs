//! Resume messages that nobody is known to have sent.

use std::time::{Duration, Instant};

use countersign::backend::{Capability, Parked, Parking, Resume};
use tokio::time::interval;

use crate::ground::{Ground, race};
use crate::parks::{Asker, parked};
use crate::promise::{Promise, promise};
use crate::verdicts::approve;

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(what_was_sent_is_not_swept),
        promise(what_was_not_sent_is_swept_after_a_second),
        promise(what_is_swept_is_swept_again_later),
        promise(a_run_that_finds_its_decision_leaves_word_in_case_it_dies),
        promise(what_one_left_another_sweeps).needs(Capability::SeveralProcesses),
    ]
}

/// Sweeps come no earlier than this after what they find.
const OVERDUE: Duration = Duration::from_secs(1);

async fn decided(ground: &Ground) -> Resume {
    let asker = parked(ground).await;
    let (_, resume) = ground.store.decide(&approve(&asker.question("pay"), "ana")).await.unwrap();
    resume.expect("a task waits for it")
}

/// The first sweep that finds something.
async fn swept(sweep: impl AsyncFn() -> Vec<Resume>) -> Vec<Resume> {
    let mut pace = interval(Duration::from_millis(20));
    loop {
        let found = sweep().await;
        if !found.is_empty() {
            return found;
        }
        pace.tick().await;
    }
}

async fn overdue(ground: &Ground) -> Vec<Resume> {
    ground.store.overdue_resumes().await.unwrap()
}

async fn what_was_sent_is_not_swept(ground: Ground) {
    let sent = decided(&ground).await;
    for _ in 0..2 {
        ground.store.resume_sent(&sent).await.unwrap();
    }
    let left = decided(&ground).await;
    assert_eq!(swept(async || overdue(&ground).await).await, [left]);
}

async fn what_was_not_sent_is_swept_after_a_second(ground: Ground) {
    let begun = Instant::now();
    let left = [decided(&ground).await, decided(&ground).await];
    let found = swept(async || {
        // Sweepers at the same time are not given the same.
        let all = race(10, |_| {
            let store = ground.store.clone();
            async move { store.overdue_resumes().await.unwrap() }
        });
        all.await.into_iter().flatten().collect()
    });
    let mut found = found.await;
    assert!(
        begun.elapsed() + Duration::from_millis(1) >= OVERDUE,
        "whoever decided may still send it"
    );
    while found.len() < left.len() {
        found.extend(swept(async || overdue(&ground).await).await);
    }
    assert_eq!(found.len(), left.len());
    assert!(left.iter().all(|resume| found.contains(resume)), "{found:?}");
}

/// Whoever swept it may have died with it.
async fn what_is_swept_is_swept_again_later(ground: Ground) {
    let begun = Instant::now();
    let left = decided(&ground).await;
    for round in 1..=2 {
        assert_eq!(swept(async || overdue(&ground).await).await, std::slice::from_ref(&left));
        // Clocks count whole milliseconds.
        assert!(begun.elapsed() + Duration::from_millis(2) >= OVERDUE * round, "round {round}");
    }
    ground.store.resume_sent(&left).await.unwrap();
    let next = decided(&ground).await;
    assert_eq!(swept(async || overdue(&ground).await).await, [next]);
}

async fn a_run_that_finds_its_decision_leaves_word_in_case_it_dies(ground: Ground) {
    let asker: Asker = parked(&ground).await;
    let question = asker.question("pay");
    let (_, resume) = ground.store.decide(&approve(&question, "ana")).await.unwrap();
    ground.store.resume_sent(&resume.unwrap()).await.unwrap();
    let lease = Duration::from_millis(1);
    let again = Parking { lease, ..asker.parking(2, &["pay"]) };
    assert!(matches!(ground.store.park(again).await.unwrap(), Parked::Ready(_)));
    let [word] = swept(async || overdue(&ground).await).await.try_into().unwrap();
    let Resume { task, number, queue, .. } = &word;
    assert_eq!((task, *number, queue.as_str()), (asker.id(), 2, "q"));
}

async fn what_one_left_another_sweeps(ground: Ground) {
    let other = ground.open().await.store;
    let left = decided(&ground).await;
    let found = swept(async || other.overdue_resumes().await.unwrap()).await;
    assert_eq!(found, std::slice::from_ref(&left));
    other.resume_sent(&found[0]).await.unwrap();
    let next = decided(&ground).await;
    assert_eq!(swept(async || overdue(&ground).await).await, [next]);
}
