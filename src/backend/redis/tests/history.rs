//! Journals and streams: each entry is written once, even if several runs write it.

use super::*;
use crate::backend::{ClaimResult, EntryKind, RunOwner, Scope, StreamAppend};
use crate::protocol::{SuspendHeader, SuspendKind, TaskDigest};
use crate::task::TaskId;

/// A later run of the task with this digest.
fn run(digest: &str) -> RunOwner {
    RunOwner { digest: TaskDigest::from(digest.to_owned()), is_fresh: false }
}

fn body(number: u64, json: &'static str) -> StreamAppend {
    let json = Bytes::from_static(json.as_bytes());
    StreamAppend { scope: Scope::Body, number, kind: EntryKind::Output, json }
}

fn step(execution: u64, number: u64, json: &'static str) -> StreamAppend {
    StreamAppend { scope: Scope::Step { name: "s".into(), execution }, ..body(number, json) }
}

async fn append(store: &RedisStore, id: &TaskId, appends: &[StreamAppend]) {
    for entry in appends {
        timeout(SOON, store.append_entry(id, &run("one"), entry.clone())).await.unwrap().unwrap();
    }
}

/// The entries in short: number, run, kind.
async fn entries(store: &RedisStore, id: &TaskId) -> Vec<String> {
    let entries = timeout(SOON, store.read_entries(id, 0)).await.unwrap().unwrap();
    let short = entries.into_iter().map(|entry| match entry.kind {
        EntryKind::Restarted => format!("{} {} restarted", entry.number, entry.run),
        _ => format!("{} {} {}", entry.number, entry.run, entry.value),
    });
    short.collect()
}

#[tokio::test]
async fn the_first_record_of_a_step_wins() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    let (first, second) = (Bytes::from_static(b"1"), Bytes::from_static(b"2"));
    assert_eq!(store.record_step(&id, &run("one"), "s", first.clone()).await.unwrap(), None);
    assert_eq!(
        store.record_step(&id, &run("one"), "s", second.clone()).await.unwrap(),
        Some(first.clone())
    );
    assert_eq!(store.record_step(&id, &run("one"), "t", second.clone()).await.unwrap(), None);
    append(&store, &id, &[body(1, "1"), step(7, 1, "1")]).await;
    let history = store.task_history(&id, None).await.unwrap();
    assert_eq!((&history.steps["s"], &history.steps["t"]), (&first, &second));
    assert_eq!(history.streamed.into_iter().collect::<Vec<_>>(), ["s"]);
}

/// Data of the previous version, which does not name its owner.
#[tokio::test]
async fn data_of_an_older_worker_belongs_to_every_task() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    let (journal, heads) = (format!("cs:journal:{id}"), format!("cs:stream:{{{id}}}:heads"));
    let _: u8 = server.command(&["HSET", &journal, "s", "1"]).await;
    let _: u8 = server.command(&["HSET", &heads, "last", "4", "step s", "1 7 1"]).await;
    let fresh = RunOwner { is_fresh: true, ..run("one") };
    let recorded = store.record_step(&id, &fresh, "s", Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(recorded, Some(Bytes::from_static(b"1")));
    store.append_entry(&id, &fresh, step(7, 1, "1")).await.unwrap();
    assert_eq!(entries(&store, &id).await, [""; 0], "it was written before");
    store.end_history(&id, &fresh.digest).await.unwrap();
    let history = store.task_history(&id, Some(&fresh.digest)).await.unwrap();
    assert_eq!((history.steps.len(), history.streamed.len()), (1, 1));

    let suspension = format!("cs:park:{{cs}}:{id}");
    let _: u8 = server.command(&["HSET", &suspension, "v", "1", "number", "2", "ended", "0"]).await;
    let wake = SuspendHeader { kind: SuspendKind::Wake, number: 2 };
    let outcome = store.claim_suspended(&id, wake, Some(&fresh.digest), "a", SOON).await.unwrap();
    assert!(matches!(outcome, ClaimResult::Claimed { number: 2, .. }), "{outcome:?}");
    store.end_suspended(&id, Some(&fresh.digest)).await.unwrap();
    let outcome = store.claim_first(&id, &fresh.digest, true, "a", SOON).await.unwrap();
    assert!(matches!(outcome, ClaimResult::Over(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_wake_message_extends_the_retention_of_a_suspended_tasks_data() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    store.record_step(&id, &run("one"), "s", Bytes::from_static(b"1")).await.unwrap();
    let key = format!("cs:journal:{id}");
    let _: i64 = server.command(&["EXPIRE", &key, "60"]).await;
    let wake = SuspendHeader { kind: SuspendKind::Wake, number: 1 };
    store.claim_suspended(&id, wake, None, "a", SOON).await.unwrap();
    eventually("it is kept longer", async || server.command::<i64>(&["TTL", &key]).await > 3600)
        .await;
}

#[tokio::test]
async fn an_entry_that_is_appended_again_is_ignored() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    let appends = [body(1, "1"), body(2, "2"), step(7, 1, "3"), step(7, 2, "4")];
    append(&store, &id, &appends).await;
    append(&store, &id, &appends).await;
    append(&store, &id, &[body(3, "5")]).await;
    assert_eq!(entries(&store, &id).await, ["1 1 1", "2 1 2", "3 1 3", "4 1 4", "5 1 5"]);
}

#[tokio::test]
async fn a_replaced_execution_appends_nothing() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    append(&store, &id, &[step(7, 1, "1"), step(8, 1, "2"), step(7, 2, "3")]).await;
    append(&store, &id, &[step(8, 2, "4")]).await;
    assert_eq!(entries(&store, &id).await, ["1 1 1", "2 2 restarted", "3 2 2", "4 2 4"]);
}

#[tokio::test]
async fn a_stream_without_heads_continues_after_its_last_entry() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    append(&store, &id, &[body(1, "1"), body(2, "2")]).await;
    let _: u8 = server.command(&["DEL", &format!("cs:stream:{{{id}}}:heads")]).await;
    append(&store, &id, &[body(3, "3")]).await;
    assert_eq!(entries(&store, &id).await, ["1 1 1", "2 1 2", "3 1 3"]);
}

#[tokio::test]
async fn task_data_outlives_the_result_only_while_the_task_runs() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    store.record_step(&id, &run("one"), "s", Bytes::from_static(b"1")).await.unwrap();
    append(&store, &id, &[body(1, "1")]).await;
    let keys = [format!("cs:journal:{id}"), format!("cs:stream:{{{id}}}")];
    let result = RedisSettings::new("").result_expires.as_secs();
    for key in &keys {
        let left: u64 = server.command(&["TTL", key]).await;
        assert!(left > result, "{key}: {left} s");
    }
    store.end_history(&id, &run("one").digest).await.unwrap();
    for key in &keys {
        let left: u64 = server.command(&["TTL", key]).await;
        assert!(left <= result, "{key}: {left} s");
    }
}
