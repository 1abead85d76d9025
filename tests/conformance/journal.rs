//! The recorded results of a task's steps.

use bytes::Bytes;
use countersign::TaskId;
use countersign::backend::{Capability, RunOwner};

use crate::case::{Case, case};
use crate::fixture::{Fixture, race, run};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(the_first_record_of_a_step_wins),
        case(concurrent_records_of_a_step_agree),
        case(every_step_is_read_as_recorded),
        case(a_task_without_steps_has_an_empty_journal),
        case(a_journal_outlives_the_end_of_its_task),
        case(a_journal_belongs_to_one_task),
        case(a_fresh_run_replaces_the_journal_of_an_ended_one),
        case(another_process_reads_a_recorded_step).needs(Capability::SeveralProcesses),
    ]
}

async fn the_first_record_of_a_step_wins(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let [id, other] = [TaskId::random(), TaskId::random()];
    let [first, second] = [Bytes::from_static(b"1"), Bytes::from_static(b"2")];
    assert_eq!(store.record_step(&id, &run("one"), "s", first.clone()).await.unwrap(), None);
    assert_eq!(
        store.record_step(&id, &run("one"), "s", second.clone()).await.unwrap(),
        Some(first.clone())
    );
    assert_eq!(
        store.record_step(&id, &run("one"), "s", first.clone()).await.unwrap(),
        Some(first.clone())
    );
    assert_eq!(store.record_step(&id, &run("one"), "t", second.clone()).await.unwrap(), None);
    assert_eq!(store.record_step(&other, &run("one"), "s", second.clone()).await.unwrap(), None);
    let history = store.task_history(&id, None).await.unwrap();
    assert_eq!((&history.steps["s"], &history.steps["t"]), (&first, &second));
}

async fn concurrent_records_of_a_step_agree(fixture: Fixture) {
    let id = TaskId::random();
    let recorded = race(50, |n| {
        let (store, id) = (fixture.store.clone(), id.clone());
        let entry = Bytes::from(n.to_string());
        async move {
            store.record_step(&id, &run("one"), "s", entry.clone()).await.unwrap().ok_or(entry)
        }
    });
    let recorded = recorded.await;
    let firsts: Vec<_> = recorded.iter().filter_map(|result| result.as_ref().err()).collect();
    let [first] = firsts[..] else { panic!("{} were the first", firsts.len()) };
    assert!(recorded.iter().flatten().all(|result| result == first), "they disagree");
    assert_eq!(fixture.store.task_history(&id, None).await.unwrap().steps["s"], first);
}

async fn every_step_is_read_as_recorded(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let every: Vec<u8> = (0..=u8::MAX).collect();
    let large = every.repeat(4 << 10);
    let steps = [
        ("", Vec::new()),
        ("every byte", every),
        ("a {step} of 'odd'\nname 日本", b"{\"v\": 1}".to_vec()),
        ("large", large),
    ];
    for (step, entry) in &steps {
        assert_eq!(
            store.record_step(&id, &run("one"), step, entry.clone().into()).await.unwrap(),
            None
        );
    }
    let history = store.task_history(&id, None).await.unwrap();
    assert_eq!(history.steps.len(), steps.len());
    for (step, entry) in &steps {
        assert!(history.steps[*step] == *entry, "{step:?} differs");
    }
    assert!(history.streamed.is_empty());
}

async fn a_task_without_steps_has_an_empty_journal(fixture: Fixture) {
    let history = fixture.store.task_history(&TaskId::random(), None).await.unwrap();
    assert!(history.steps.is_empty() && history.streamed.is_empty());
}

/// The journal can be read until the task's result has expired.
async fn a_journal_outlives_the_end_of_its_task(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    store.record_step(&id, &run("one"), "s", Bytes::from_static(b"1")).await.unwrap();
    fixture.finish(&id, "FAILURE", "").await;
    store.end_history(&id, &run("one").digest).await.unwrap();
    // Later records do not delete it.
    store.record_step(&TaskId::random(), &run("one"), "s", Bytes::new()).await.unwrap();
    assert_eq!(store.task_history(&id, None).await.unwrap().steps["s"], "1");
}

/// Another task has the same id: it reads nothing, and its first record replaces the journal.
async fn a_journal_belongs_to_one_task(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let [first, second] = [Bytes::from_static(b"1"), Bytes::from_static(b"2")];
    assert_eq!(store.record_step(&id, &run("one"), "s", first.clone()).await.unwrap(), None);
    assert_eq!(store.record_step(&id, &run("one"), "\0digest", first.clone()).await.unwrap(), None);
    let [one, two] = ["one", "two"].map(|name| run(name).digest);
    let history = store.task_history(&id, Some(&one)).await.unwrap();
    assert_eq!((history.steps.len(), &history.steps["\0digest"]), (2, &first));
    assert!(store.task_history(&id, Some(&two)).await.unwrap().steps.is_empty());
    assert_eq!(store.record_step(&id, &run("two"), "s", second.clone()).await.unwrap(), None);
    let history = store.task_history(&id, Some(&two)).await.unwrap();
    assert_eq!((history.steps.len(), &history.steps["s"]), (1, &second));
    assert!(store.task_history(&id, Some(&one)).await.unwrap().steps.is_empty());
    // The end of the earlier task does not affect this one.
    store.end_history(&id, &one).await.unwrap();
    let fresh = RunOwner { is_fresh: true, ..run("two") };
    assert_eq!(store.record_step(&id, &fresh, "s", first).await.unwrap(), Some(second));
}

/// The same message is sent again: a later run of the first one still reads the journal.
async fn a_fresh_run_replaces_the_journal_of_an_ended_one(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let [first, second] = [Bytes::from_static(b"1"), Bytes::from_static(b"2")];
    let fresh = RunOwner { is_fresh: true, ..run("one") };
    assert_eq!(store.record_step(&id, &fresh, "s", first.clone()).await.unwrap(), None);
    assert_eq!(
        store.record_step(&id, &fresh, "s", second.clone()).await.unwrap(),
        Some(first.clone())
    );
    store.end_history(&id, &fresh.digest).await.unwrap();
    assert_eq!(
        store.record_step(&id, &run("one"), "s", second.clone()).await.unwrap(),
        Some(first)
    );
    store.end_history(&id, &fresh.digest).await.unwrap();
    assert_eq!(store.record_step(&id, &fresh, "s", second.clone()).await.unwrap(), None);
    assert_eq!(store.task_history(&id, Some(&fresh.digest)).await.unwrap().steps["s"], second);
}

async fn another_process_reads_a_recorded_step(fixture: Fixture) {
    let other = fixture.open().await.store;
    let id = TaskId::random();
    let [first, second] = [Bytes::from_static(b"1"), Bytes::from_static(b"2")];
    assert_eq!(
        fixture.store.record_step(&id, &run("one"), "s", first.clone()).await.unwrap(),
        None
    );
    assert_eq!(
        other.record_step(&id, &run("one"), "s", second).await.unwrap(),
        Some(first.clone())
    );
    assert_eq!(other.task_history(&id, None).await.unwrap().steps["s"], first);
}
