//! Journals and streams: what is written once, whoever writes it again.

use super::*;
use crate::backend::{Approvals, Line, RunOwner, Said, Scope, Taken};
use crate::protocol::{TaskDigest, Ticket, TicketKind};
use crate::task::TaskId;

/// A later run of the task with this digest.
fn run(digest: &str) -> RunOwner {
    RunOwner { digest: TaskDigest::from(digest.to_owned()), is_fresh: false }
}

fn body(number: u64, json: &'static str) -> Line {
    let json = Bytes::from_static(json.as_bytes());
    Line { scope: Scope::Body, number, said: Said::Output, json }
}

fn step(execution: u64, number: u64, json: &'static str) -> Line {
    Line { scope: Scope::Step { name: "s".into(), execution }, ..body(number, json) }
}

async fn append(store: &RedisStore, id: &TaskId, lines: &[Line]) {
    for line in lines {
        timeout(SOON, store.append(id, &run("one"), line.clone())).await.unwrap().unwrap();
    }
}

/// The entries in short: number, run, what was said.
async fn entries(store: &RedisStore, id: &TaskId) -> Vec<String> {
    let entries = timeout(SOON, store.entries(id, 0)).await.unwrap().unwrap();
    let short = entries.into_iter().map(|entry| match entry.said {
        Said::Restarted => format!("{} {} restarted", entry.number, entry.run),
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
    assert_eq!(store.record(&id, &run("one"), "s", first.clone()).await.unwrap(), None);
    assert_eq!(
        store.record(&id, &run("one"), "s", second.clone()).await.unwrap(),
        Some(first.clone())
    );
    assert_eq!(store.record(&id, &run("one"), "t", second.clone()).await.unwrap(), None);
    append(&store, &id, &[body(1, "1"), step(7, 1, "1")]).await;
    let kept = store.kept(&id, None).await.unwrap();
    assert_eq!((&kept.steps["s"], &kept.steps["t"]), (&first, &second));
    assert_eq!(kept.streamed.into_iter().collect::<Vec<_>>(), ["s"]);
}

/// What the version before has written: it says nothing of whose it is.
#[tokio::test]
async fn what_an_older_worker_has_left_belongs_to_every_task() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    let (journal, heads) = (format!("cs:journal:{id}"), format!("cs:stream:{{{id}}}:heads"));
    let _: u8 = server.ask(&["HSET", &journal, "s", "1"]).await;
    let _: u8 = server.ask(&["HSET", &heads, "last", "4", "step s", "1 7 1"]).await;
    let fresh = RunOwner { is_fresh: true, ..run("one") };
    let recorded = store.record(&id, &fresh, "s", Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(recorded, Some(Bytes::from_static(b"1")));
    store.append(&id, &fresh, step(7, 1, "1")).await.unwrap();
    assert_eq!(entries(&store, &id).await, [""; 0], "it was written before");
    store.ended(&id, &fresh.digest).await.unwrap();
    let kept = store.kept(&id, Some(&fresh.digest)).await.unwrap();
    assert_eq!((kept.steps.len(), kept.streamed.len()), (1, 1));

    let park = format!("cs:park:{{cs}}:{id}");
    let _: u8 = server.ask(&["HSET", &park, "v", "1", "number", "2", "ended", "0"]).await;
    let wake = Ticket { kind: TicketKind::Wake, number: 2 };
    let taken = store.take_parked(&id, wake, Some(&fresh.digest), "a", SOON).await.unwrap();
    assert!(matches!(taken, Taken::Claimed { number: 2, .. }), "{taken:?}");
    store.end_parked(&id, Some(&fresh.digest)).await.unwrap();
    let begun = store.begin_park(&id, &fresh.digest, true, "a", SOON).await.unwrap();
    assert!(matches!(begun, Taken::Over(_)), "{begun:?}");
}

#[tokio::test]
async fn a_wake_keeps_what_a_parked_task_has_left() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    store.record(&id, &run("one"), "s", Bytes::from_static(b"1")).await.unwrap();
    let key = format!("cs:journal:{id}");
    let _: i64 = server.ask(&["EXPIRE", &key, "60"]).await;
    let wake = Ticket { kind: TicketKind::Wake, number: 1 };
    store.take_parked(&id, wake, None, "a", SOON).await.unwrap();
    eventually("it is kept longer", async || server.ask::<i64>(&["TTL", &key]).await > 3600).await;
}

#[tokio::test]
async fn a_line_that_is_written_again_is_passed_over() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    let lines = [body(1, "1"), body(2, "2"), step(7, 1, "3"), step(7, 2, "4")];
    append(&store, &id, &lines).await;
    append(&store, &id, &lines).await;
    append(&store, &id, &[body(3, "5")]).await;
    assert_eq!(entries(&store, &id).await, ["1 1 1", "2 1 2", "3 1 3", "4 1 4", "5 1 5"]);
}

#[tokio::test]
async fn an_execution_that_another_has_replaced_writes_no_more() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    append(&store, &id, &[step(7, 1, "1"), step(8, 1, "2"), step(7, 2, "3")]).await;
    append(&store, &id, &[step(8, 2, "4")]).await;
    assert_eq!(entries(&store, &id).await, ["1 1 1", "2 2 restarted", "3 2 2", "4 2 4"]);
}

#[tokio::test]
async fn a_stream_that_has_lost_its_heads_goes_on_after_its_last_entry() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    append(&store, &id, &[body(1, "1"), body(2, "2")]).await;
    let _: u8 = server.ask(&["DEL", &format!("cs:stream:{{{id}}}:heads")]).await;
    append(&store, &id, &[body(3, "3")]).await;
    assert_eq!(entries(&store, &id).await, ["1 1 1", "2 1 2", "3 1 3"]);
}

#[tokio::test]
async fn what_a_task_leaves_outlives_its_result_while_it_runs_and_not_after() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let id = TaskId::random();
    store.record(&id, &run("one"), "s", Bytes::from_static(b"1")).await.unwrap();
    append(&store, &id, &[body(1, "1")]).await;
    let keys = [format!("cs:journal:{id}"), format!("cs:stream:{{{id}}}")];
    let result = RedisSettings::new("").result_expires.as_secs();
    for key in &keys {
        let left: u64 = server.ask(&["TTL", key]).await;
        assert!(left > result, "{key}: {left} s");
    }
    store.ended(&id, &run("one").digest).await.unwrap();
    for key in &keys {
        let left: u64 = server.ask(&["TTL", key]).await;
        assert!(left <= result, "{key}: {left} s");
    }
}
