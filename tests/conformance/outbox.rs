//! Resume messages that are not known to be sent.

use std::time::{Duration, Instant};

use countersign::backend::{Capability, Resume, SuspendRequest, SuspendResult};
use tokio::time::interval;

use crate::case::{Case, case};
use crate::decisions::approve;
use crate::fixture::{Fixture, eventually, race};
use crate::suspensions::{RESUME, TestTask, WAKE, is_claimed, suspended_task};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(a_sent_resume_message_is_not_swept),
        case(an_unsent_resume_message_is_swept_after_a_second),
        case(an_unsent_resume_message_is_swept_repeatedly),
        case(a_sleep_whose_wake_message_is_lost_is_swept),
        case(a_run_that_finds_its_decision_writes_an_outbox_entry),
        case(another_process_sweeps_unsent_messages).needs(Capability::SeveralProcesses),
    ]
}

/// A sweep returns an entry no earlier than this after it was written.
const OVERDUE: Duration = Duration::from_secs(1);

async fn decided(fixture: &Fixture) -> Resume {
    let test_task = suspended_task(fixture).await;
    let (_, resume) =
        fixture.store.decide(&approve(&test_task.request("pay"), "ana")).await.unwrap();
    resume.expect("a task waits for it")
}

/// Returns the entries of the first sweep that finds any.
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

async fn overdue(fixture: &Fixture) -> Vec<Resume> {
    fixture.store.overdue_resumes().await.unwrap()
}

/// The sweeper sends a resume message after the sleep, unless another message has claimed the task.
async fn a_sleep_whose_wake_message_is_lost_is_swept(fixture: Fixture) {
    let [lost, woken] = [TestTask::new(), TestTask::new()];
    for test_task in [&woken, &lost] {
        let alarm = Some(Duration::from_millis(200));
        let suspension = SuspendRequest { alarm, ..test_task.suspend_request(1, &[]) };
        assert!(matches!(
            fixture.store.suspend(suspension).await.unwrap(),
            SuspendResult::Waiting(..)
        ));
    }
    let is_awake = async || is_claimed(&woken.claim(&fixture, WAKE, 1, "b").await, 1);
    eventually("the task wakes", is_awake).await;
    let found = swept(async || overdue(&fixture).await).await;
    let found: Vec<_> = found.iter().map(|resume| (resume.task.clone(), resume.number)).collect();
    assert_eq!(found, [(lost.id().clone(), 1)]);
    assert!(is_claimed(&lost.claim(&fixture, RESUME, 1, "b").await, 1));
}

async fn a_sent_resume_message_is_not_swept(fixture: Fixture) {
    let sent = decided(&fixture).await;
    for _ in 0..2 {
        fixture.store.resume_sent(&sent).await.unwrap();
    }
    let left = decided(&fixture).await;
    assert_eq!(swept(async || overdue(&fixture).await).await, [left]);
}

async fn an_unsent_resume_message_is_swept_after_a_second(fixture: Fixture) {
    let begun = Instant::now();
    let left = [decided(&fixture).await, decided(&fixture).await];
    let found = swept(async || {
        // Concurrent sweepers do not receive the same entries.
        let all = race(10, |_| {
            let store = fixture.store.clone();
            async move { store.overdue_resumes().await.unwrap() }
        });
        all.await.into_iter().flatten().collect()
    });
    let mut found = found.await;
    assert!(
        begun.elapsed() + Duration::from_millis(1) >= OVERDUE,
        "the process that decided may still send it"
    );
    while found.len() < left.len() {
        found.extend(swept(async || overdue(&fixture).await).await);
    }
    assert_eq!(found.len(), left.len());
    assert!(left.iter().all(|resume| found.contains(resume)), "{found:?}");
}

/// The process that swept it may have died before it sent the message.
async fn an_unsent_resume_message_is_swept_repeatedly(fixture: Fixture) {
    let begun = Instant::now();
    let left = decided(&fixture).await;
    for round in 1..=2 {
        assert_eq!(swept(async || overdue(&fixture).await).await, std::slice::from_ref(&left));
        // Clocks count whole milliseconds.
        assert!(begun.elapsed() + Duration::from_millis(2) >= OVERDUE * round, "round {round}");
    }
    fixture.store.resume_sent(&left).await.unwrap();
    let next = decided(&fixture).await;
    assert_eq!(swept(async || overdue(&fixture).await).await, [next]);
}

async fn a_run_that_finds_its_decision_writes_an_outbox_entry(fixture: Fixture) {
    let test_task: TestTask = suspended_task(&fixture).await;
    let request = test_task.request("pay");
    let (_, resume) = fixture.store.decide(&approve(&request, "ana")).await.unwrap();
    fixture.store.resume_sent(&resume.unwrap()).await.unwrap();
    let lease = Duration::from_millis(1);
    let again = SuspendRequest { lease, ..test_task.suspend_request(2, &["pay"]) };
    assert!(matches!(fixture.store.suspend(again).await.unwrap(), SuspendResult::Ready(_)));
    let [entry] = swept(async || overdue(&fixture).await).await.try_into().unwrap();
    let Resume { task, number, queue, .. } = &entry;
    assert_eq!((task, *number, queue.as_str()), (test_task.id(), 2, "q"));
}

async fn another_process_sweeps_unsent_messages(fixture: Fixture) {
    let other = fixture.open().await.store;
    let left = decided(&fixture).await;
    let found = swept(async || other.overdue_resumes().await.unwrap()).await;
    assert_eq!(found, std::slice::from_ref(&left));
    other.resume_sent(&found[0]).await.unwrap();
    let next = decided(&fixture).await;
    assert_eq!(swept(async || overdue(&fixture).await).await, [next]);
}
