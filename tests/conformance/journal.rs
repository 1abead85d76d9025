//! What the steps of a task answered.

use bytes::Bytes;
use countersign::TaskId;
use countersign::backend::{Capability, RunOwner};

use crate::ground::{Ground, race, run};
use crate::promise::{Promise, promise};

pub(crate) fn promises() -> Vec<Promise> {
    vec![
        promise(the_first_record_of_a_step_wins),
        promise(who_records_at_once_agrees),
        promise(what_is_kept_is_every_step_as_it_was_recorded),
        promise(a_task_that_left_nothing_has_nothing),
        promise(what_a_task_left_outlives_its_end),
        promise(a_journal_belongs_to_one_task),
        promise(a_fresh_run_replaces_the_journal_of_an_ended_one),
        promise(a_step_of_one_is_there_for_another).needs(Capability::SeveralProcesses),
    ]
}

async fn the_first_record_of_a_step_wins(ground: Ground) {
    let Ground { store, .. } = &ground;
    let [id, other] = [TaskId::random(), TaskId::random()];
    let [first, second] = [Bytes::from_static(b"1"), Bytes::from_static(b"2")];
    assert_eq!(store.record(&id, &run("one"), "s", first.clone()).await.unwrap(), None);
    assert_eq!(
        store.record(&id, &run("one"), "s", second.clone()).await.unwrap(),
        Some(first.clone())
    );
    assert_eq!(
        store.record(&id, &run("one"), "s", first.clone()).await.unwrap(),
        Some(first.clone())
    );
    assert_eq!(store.record(&id, &run("one"), "t", second.clone()).await.unwrap(), None);
    assert_eq!(store.record(&other, &run("one"), "s", second.clone()).await.unwrap(), None);
    let kept = store.kept(&id, None).await.unwrap();
    assert_eq!((&kept.steps["s"], &kept.steps["t"]), (&first, &second));
}

async fn who_records_at_once_agrees(ground: Ground) {
    let id = TaskId::random();
    let recorded = race(50, |n| {
        let (store, id) = (ground.store.clone(), id.clone());
        let entry = Bytes::from(n.to_string());
        async move { store.record(&id, &run("one"), "s", entry.clone()).await.unwrap().ok_or(entry) }
    });
    let recorded = recorded.await;
    let firsts: Vec<_> = recorded.iter().filter_map(|told| told.as_ref().err()).collect();
    let [first] = firsts[..] else { panic!("{} were the first", firsts.len()) };
    assert!(recorded.iter().flatten().all(|told| told == first), "they disagree");
    assert_eq!(ground.store.kept(&id, None).await.unwrap().steps["s"], first);
}

async fn what_is_kept_is_every_step_as_it_was_recorded(ground: Ground) {
    let Ground { store, .. } = &ground;
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
        assert_eq!(store.record(&id, &run("one"), step, entry.clone().into()).await.unwrap(), None);
    }
    let kept = store.kept(&id, None).await.unwrap();
    assert_eq!(kept.steps.len(), steps.len());
    for (step, entry) in &steps {
        assert!(kept.steps[*step] == *entry, "{step:?} is another");
    }
    assert!(kept.streamed.is_empty());
}

async fn a_task_that_left_nothing_has_nothing(ground: Ground) {
    let kept = ground.store.kept(&TaskId::random(), None).await.unwrap();
    assert!(kept.steps.is_empty() && kept.streamed.is_empty());
}

/// It may be asked for until its result has expired.
async fn what_a_task_left_outlives_its_end(ground: Ground) {
    let Ground { store, .. } = &ground;
    let id = TaskId::random();
    store.record(&id, &run("one"), "s", Bytes::from_static(b"1")).await.unwrap();
    ground.finish(&id, "FAILURE", "").await;
    store.ended(&id, &run("one").digest).await.unwrap();
    // What is written after it comes after it.
    store.record(&TaskId::random(), &run("one"), "s", Bytes::new()).await.unwrap();
    assert_eq!(store.kept(&id, None).await.unwrap().steps["s"], "1");
}

/// Another task has the same id: it is answered nothing, and its first record replaces the journal.
async fn a_journal_belongs_to_one_task(ground: Ground) {
    let Ground { store, .. } = &ground;
    let id = TaskId::random();
    let [first, second] = [Bytes::from_static(b"1"), Bytes::from_static(b"2")];
    assert_eq!(store.record(&id, &run("one"), "s", first.clone()).await.unwrap(), None);
    assert_eq!(store.record(&id, &run("one"), "\0digest", first.clone()).await.unwrap(), None);
    let [one, two] = ["one", "two"].map(|name| run(name).digest);
    let kept = store.kept(&id, Some(&one)).await.unwrap();
    assert_eq!((kept.steps.len(), &kept.steps["\0digest"]), (2, &first));
    assert!(store.kept(&id, Some(&two)).await.unwrap().steps.is_empty());
    assert_eq!(store.record(&id, &run("two"), "s", second.clone()).await.unwrap(), None);
    let kept = store.kept(&id, Some(&two)).await.unwrap();
    assert_eq!((kept.steps.len(), &kept.steps["s"]), (1, &second));
    assert!(store.kept(&id, Some(&one)).await.unwrap().steps.is_empty());
    // The end of the task before says nothing about this one.
    store.ended(&id, &one).await.unwrap();
    let fresh = RunOwner { is_fresh: true, ..run("two") };
    assert_eq!(store.record(&id, &fresh, "s", first).await.unwrap(), Some(second));
}

/// The same message is sent anew: a later run of the first one still reads the journal.
async fn a_fresh_run_replaces_the_journal_of_an_ended_one(ground: Ground) {
    let Ground { store, .. } = &ground;
    let id = TaskId::random();
    let [first, second] = [Bytes::from_static(b"1"), Bytes::from_static(b"2")];
    let fresh = RunOwner { is_fresh: true, ..run("one") };
    assert_eq!(store.record(&id, &fresh, "s", first.clone()).await.unwrap(), None);
    assert_eq!(store.record(&id, &fresh, "s", second.clone()).await.unwrap(), Some(first.clone()));
    store.ended(&id, &fresh.digest).await.unwrap();
    assert_eq!(store.record(&id, &run("one"), "s", second.clone()).await.unwrap(), Some(first));
    store.ended(&id, &fresh.digest).await.unwrap();
    assert_eq!(store.record(&id, &fresh, "s", second.clone()).await.unwrap(), None);
    assert_eq!(store.kept(&id, Some(&fresh.digest)).await.unwrap().steps["s"], second);
}

async fn a_step_of_one_is_there_for_another(ground: Ground) {
    let other = ground.open().await.store;
    let id = TaskId::random();
    let [first, second] = [Bytes::from_static(b"1"), Bytes::from_static(b"2")];
    assert_eq!(ground.store.record(&id, &run("one"), "s", first.clone()).await.unwrap(), None);
    assert_eq!(other.record(&id, &run("one"), "s", second).await.unwrap(), Some(first.clone()));
    assert_eq!(other.kept(&id, None).await.unwrap().steps["s"], first);
}
