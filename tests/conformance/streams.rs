//! The streams of running tasks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign::TaskId;
use countersign::backend::{
    Capability, EntryKind, RunOwner, Scope, Store, StreamAppend, StreamEntry,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::case::{Case, case};
use crate::fixture::{Fixture, race, run};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(entries_are_numbered_and_read_as_they_were_written),
        case(an_entry_written_again_is_ignored),
        case(each_scope_has_its_own_numbers),
        case(a_step_that_runs_again_writes_a_restart_entry),
        case(a_step_may_write_only_a_restart_entry),
        case(a_replaced_execution_writes_nothing),
        case(streams_of_tasks_are_separate),
        case(a_stream_belongs_to_one_task),
        case(an_entry_written_concurrently_is_stored_once),
        case(entries_are_read_from_any_position),
        case(a_follower_wakes_for_a_new_entry),
        case(followers_get_every_entry_while_it_is_written),
        case(a_new_follower_gets_the_entries_after_its_own_position),
        case(closing_ends_a_follower),
        case(another_process_follows_a_stream).needs(Capability::SeveralProcesses),
    ]
}

fn body(number: u64, value: &Value) -> StreamAppend {
    let json = Bytes::from(value.to_string());
    StreamAppend { scope: Scope::Body, number, kind: EntryKind::Output, json }
}

fn step(execution: u64, number: u64, value: &Value) -> StreamAppend {
    StreamAppend { scope: Scope::Step { name: "s".into(), execution }, ..body(number, value) }
}

async fn append(
    store: &Arc<dyn Store>,
    id: &TaskId,
    lines: impl IntoIterator<Item = StreamAppend>,
) {
    for line in lines {
        store.append_entry(id, &run("one"), line).await.unwrap();
    }
}

/// Reads the whole stream, a few entries at a time.
async fn all(store: &Arc<dyn Store>, id: &TaskId) -> Vec<StreamEntry> {
    let mut entries: Vec<StreamEntry> = Vec::new();
    loop {
        let after = entries.last().map_or(0, |entry| entry.number);
        let more = store.read_entries(id, after).await.unwrap();
        if more.is_empty() {
            return entries;
        }
        entries.extend(more);
    }
}

/// Returns the entries in short form: number, run, value.
async fn short(store: &Arc<dyn Store>, id: &TaskId) -> Vec<String> {
    let short = |StreamEntry { number, run, kind, value, .. }: StreamEntry| match kind {
        EntryKind::Restarted => format!("{number} {run} restarted"),
        EntryKind::Progress | EntryKind::Output => format!("{number} {run} {value}"),
        other => panic!("no such entry was written: {other:?}"),
    };
    all(store, id).await.into_iter().map(short).collect()
}

async fn entries_are_numbered_and_read_as_they_were_written(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    assert_eq!(store.read_entries(&id, 0).await.unwrap(), []);
    assert_eq!(store.last_entry(&id).await.unwrap(), 0);
    let values =
        [json!({"done": 0.5, "of": ["grüße", null]}), json!("x".repeat(200_000)), json!(7)];
    let progress = StreamAppend { kind: EntryKind::Progress, ..body(1, &values[0]) };
    append(store, &id, [progress, step(9, 1, &values[1]), body(2, &values[2])]).await;
    let entry = |number, kind, step: Option<&str>, value: &Value| StreamEntry {
        number,
        kind,
        step: step.map(str::to_owned),
        run: 1,
        value: value.clone(),
    };
    let wanted = [
        entry(1, EntryKind::Progress, None, &values[0]),
        entry(2, EntryKind::Output, Some("s"), &values[1]),
        entry(3, EntryKind::Output, None, &values[2]),
    ];
    assert!(all(store, &id).await == wanted, "they differ");
    assert_eq!(store.last_entry(&id).await.unwrap(), 3);
    let streamed = store.task_history(&id, None).await.unwrap().streamed;
    assert_eq!(streamed.into_iter().collect::<Vec<_>>(), ["s"]);
}

async fn an_entry_written_again_is_ignored(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let lines =
        [body(1, &json!(1)), body(2, &json!(2)), step(7, 1, &json!(3)), step(7, 2, &json!(4))];
    append(store, &id, lines.clone()).await;
    append(store, &id, lines).await;
    append(store, &id, [body(1, &json!("other")), body(3, &json!(5))]).await;
    assert_eq!(short(store, &id).await, ["1 1 1", "2 1 2", "3 1 3", "4 1 4", "5 1 5"]);
    assert_eq!(store.last_entry(&id).await.unwrap(), 5);
}

async fn each_scope_has_its_own_numbers(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let named = |name: &str, number, value: &Value| StreamAppend {
        scope: Scope::Step { name: name.into(), execution: 1 },
        ..body(number, value)
    };
    // A step may have the name that another backend uses for the body.
    for (n, name) in ["a", "b", "body", "", "a b"].into_iter().enumerate() {
        append(store, &id, [named(name, 1, &json!(n)), named(name, 2, &json!(n))]).await;
    }
    append(store, &id, [body(1, &json!("body"))]).await;
    let steps: Vec<_> = all(store, &id).await.into_iter().map(|entry| entry.step).collect();
    let wanted = ["a", "a", "b", "b", "body", "body", "", "", "a b", "a b"];
    let wanted = wanted.map(|step| Some(step.to_owned())).into_iter().chain([None]);
    assert_eq!(steps, wanted.collect::<Vec<_>>());
}

async fn a_step_that_runs_again_writes_a_restart_entry(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    append(store, &id, [step(7, 1, &json!(1)), step(7, 2, &json!(2))]).await;
    append(store, &id, [step(8, 1, &json!(3)), step(8, 2, &json!(4)), step(9, 1, &json!(5))]).await;
    let wanted = ["1 1 1", "2 1 2", "3 2 restarted", "4 2 3", "5 2 4", "6 3 restarted", "7 3 5"];
    assert_eq!(short(store, &id).await, wanted);
    let restarted = all(store, &id).await.remove(2);
    assert_eq!((restarted.value, restarted.step.as_deref()), (Value::Null, Some("s")));
}

async fn a_step_may_write_only_a_restart_entry(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    append(store, &id, [step(7, 1, &json!(1)), step(8, 0, &Value::Null)]).await;
    append(store, &id, [step(8, 0, &Value::Null), step(8, 1, &json!(2))]).await;
    assert_eq!(short(store, &id).await, ["1 1 1", "2 2 restarted", "3 2 2"]);
}

async fn a_replaced_execution_writes_nothing(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let lines = [step(7, 1, &json!(1)), step(8, 1, &json!(2)), step(7, 2, &json!("late"))];
    append(store, &id, lines).await;
    append(store, &id, [step(8, 2, &json!(3))]).await;
    assert_eq!(short(store, &id).await, ["1 1 1", "2 2 restarted", "3 2 2", "4 2 3"]);
}

async fn streams_of_tasks_are_separate(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let ids = [TaskId::from("a task"), TaskId::from("a task:heads"), TaskId::from("{a} 'task'")];
    for (n, id) in ids.iter().enumerate() {
        append(store, id, [body(1, &json!(n))]).await;
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(short(store, id).await, [format!("1 1 {n}")]);
    }
}

/// Another task has the same id, and then the same message is sent again: readers see increasing numbers.
async fn a_stream_belongs_to_one_task(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let lines = [body(1, &json!(1)), step(7, 1, &json!(2))];
    append(store, &id, lines.clone()).await;
    let two = run("two");
    assert!(store.task_history(&id, Some(&two.digest)).await.unwrap().streamed.is_empty());
    for line in lines.clone() {
        store.append_entry(&id, &two, line).await.unwrap();
    }
    assert_eq!(short(store, &id).await, ["3 1 1", "4 1 2"]);
    store.end_history(&id, &two.digest).await.unwrap();
    let fresh = RunOwner { is_fresh: true, ..two };
    for line in lines {
        store.append_entry(&id, &fresh, line).await.unwrap();
    }
    assert_eq!(short(store, &id).await, ["5 1 1", "6 1 2"]);
    assert_eq!(store.last_entry(&id).await.unwrap(), 6);
}

/// Several runs of a task write the same entries concurrently.
async fn an_entry_written_concurrently_is_stored_once(fixture: Fixture) {
    let id = TaskId::random();
    race(4, |_| {
        let (store, id) = (fixture.store.clone(), id.clone());
        async move { append(&store, &id, (1..=50).map(|n| body(n, &json!(n)))).await }
    })
    .await;
    let wanted: Vec<_> = (1..=50).map(|n| format!("{n} 1 {n}")).collect();
    assert_eq!(short(&fixture.store, &id).await, wanted);
}

async fn entries_are_read_from_any_position(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    append(store, &id, (1..=300).map(|n| body(n, &json!(n)))).await;
    let numbers: Vec<_> = all(store, &id).await.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, (1..=300).collect::<Vec<_>>());
    for after in [0, 1, 298, 299] {
        let found = [
            store.read_entries(&id, after).await.unwrap(),
            store.next_entries(&id, after).await.unwrap(),
        ];
        for entries in found {
            assert_eq!(entries[0].number, after + 1);
        }
    }
    for after in [300, 301, 1 << 40] {
        assert_eq!(store.read_entries(&id, after).await.unwrap(), []);
    }
    assert_eq!(store.last_entry(&id).await.unwrap(), 300);
}

async fn a_follower_wakes_for_a_new_entry(fixture: Fixture) {
    let Fixture { store, .. } = &fixture;
    let id = TaskId::random();
    let mut next = std::pin::pin!(store.next_entries(&id, 0));
    // There are no entries yet.
    assert!(timeout(Duration::from_millis(20), &mut next).await.is_err());
    append(store, &id, [body(1, &json!(1))]).await;
    assert_eq!(next.await.unwrap()[0].value, 1);
    for n in 2..=20 {
        let (entries, ()) =
            tokio::join!(store.next_entries(&id, n - 1), append(store, &id, [body(n, &json!(n))]));
        assert_eq!(entries.unwrap()[0].number, n);
    }
}

async fn followed(store: Arc<dyn Store>, id: TaskId, last: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&last) {
        let after = numbers.last().copied().unwrap_or(0);
        let entries = store.next_entries(&id, after).await.unwrap();
        assert!(!entries.is_empty(), "woken for nothing");
        numbers.extend(entries.iter().map(|entry| entry.number));
    }
    numbers
}

async fn followers_get_every_entry_while_it_is_written(fixture: Fixture) {
    const LAST: u64 = 150;
    let ids = [TaskId::random(), TaskId::random()];
    let following = race(10, |n| followed(fixture.store.clone(), ids[n % 2].clone(), LAST));
    let writing = async {
        for n in 1..=LAST {
            for id in &ids {
                append(&fixture.store, id, [body(n, &json!(n))]).await;
            }
        }
    };
    let (followed, ()) = tokio::join!(following, writing);
    for numbers in followed {
        assert_eq!(numbers, (1..=LAST).collect::<Vec<_>>());
    }
}

/// It begins to follow while an entry wakes another follower, which is further on.
async fn a_new_follower_gets_the_entries_after_its_own_position(fixture: Fixture) {
    const ROUNDS: usize = 200;
    let Fixture { store, .. } = &fixture;
    for round in 0..ROUNDS {
        let id = TaskId::random();
        append(store, &id, (1..=3).map(|n| body(n, &json!(n)))).await;
        let mut first = std::pin::pin!(store.next_entries(&id, 3));
        assert!(timeout(Duration::from_millis(5), &mut first).await.is_err());
        let second = async {
            // The entry and the follower arrive in either order.
            for _ in 0..round % 20 {
                tokio::task::yield_now().await;
            }
            store.next_entries(&id, 0).await
        };
        let ((), second, first) =
            tokio::join!(append(store, &id, [body(4, &json!(4))]), second, first);
        assert_eq!(first.unwrap()[0].number, 4);
        assert_eq!(second.unwrap()[0].number, 1);
    }
}

async fn closing_ends_a_follower(fixture: Fixture) {
    let store = fixture.store.clone();
    let id = TaskId::random();
    let (entries, ()) = tokio::join!(store.next_entries(&id, 0), store.close());
    assert!(entries.is_err());
    assert!(store.next_entries(&id, 0).await.is_err());
    assert!(store.append_entry(&id, &run("one"), body(1, &json!(1))).await.is_err());
}

async fn another_process_follows_a_stream(fixture: Fixture) {
    const LAST: u64 = 50;
    let other = fixture.open().await.store;
    let id = TaskId::random();
    let writing = async {
        for n in 1..=LAST {
            append(&fixture.store, &id, [body(n, &json!(n))]).await;
        }
    };
    let (numbers, ()) = tokio::join!(followed(other.clone(), id.clone(), LAST), writing);
    assert_eq!(numbers, (1..=LAST).collect::<Vec<_>>());
    // A second writer repeats no entry.
    append(&other, &id, [body(LAST, &json!("again")), body(LAST + 1, &json!("new"))]).await;
    assert_eq!(all(&fixture.store, &id).await.last().unwrap().value, "new");
    assert_eq!(fixture.store.last_entry(&id).await.unwrap(), LAST + 1);
}
