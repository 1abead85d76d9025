//! Marks on revoked tasks.

use tokio::sync::mpsc;

use super::*;
use crate::backend::Revocation;
use crate::task::{Revoke, TaskId};

async fn revoke(store: &RedisStore, id: &str, revoke: Revoke) {
    timeout(SOON, store.revoke(&[TaskId::from(id)], revoke)).await.unwrap().unwrap();
}

type Marks = mpsc::Receiver<Vec<Revocation>>;

async fn next(marks: &mut Marks) -> Vec<Revocation> {
    timeout(SOON, marks.recv()).await.expect("stuck").expect("ended")
}

fn mark(id: &str, revoke: Revoke) -> Revocation {
    Revocation { id: id.into(), revoke }
}

/// Receives batches until one contains this mark.
async fn receive(marks: &mut Marks, wanted: Revocation) {
    while !next(marks).await.contains(&wanted) {}
}

#[tokio::test]
async fn marks_are_read_first_and_then_received() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    revoke(&store, "a", Revoke::IfQueued).await;
    revoke(&store, "b", Revoke::Terminate).await;
    let later = store_on(&server).await;
    listening(&server, &later).await;
    let mut marks = later.watch_revocations();
    let first = next(&mut marks).await;
    assert!(first.contains(&mark("a", Revoke::IfQueued)), "{first:?}");
    assert!(!first.contains(&mark("a", Revoke::Terminate)), "{first:?}");
    assert!(first.contains(&mark("b", Revoke::Terminate)), "{first:?}");
    revoke(&store, "c", Revoke::Terminate).await;
    receive(&mut marks, mark("c", Revoke::Terminate)).await;
}

#[tokio::test]
async fn an_empty_batch_reports_that_nothing_is_marked() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    assert_eq!(next(&mut store.watch_revocations()).await, []);
}

#[tokio::test]
async fn marks_written_without_a_subscription_are_read_later() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    let mut marks = store.watch_revocations();
    let _ = next(&mut marks).await;
    // Marked without a notification on the channel.
    let _: u64 = server.command(&["ZADD", "cs:revoked", "99999999999", "quiet"]).await;
    let _: u64 = server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    receive(&mut marks, mark("quiet", Revoke::IfQueued)).await;
}

#[tokio::test]
async fn garbage_on_the_channel_is_ignored() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    let mut marks = store.watch_revocations();
    let _ = next(&mut marks).await;
    for garbage in ["", "[]", "{\"ids\": 5}", "{\"ids\": [5], \"terminate\": 1}"] {
        let _: u64 = server.command(&["PUBLISH", "cs:revoked", garbage]).await;
    }
    revoke(&store, "d", Revoke::IfQueued).await;
    receive(&mut marks, mark("d", Revoke::IfQueued)).await;
}

#[tokio::test]
async fn old_marks_are_removed_with_the_next_one() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let _: u64 = server.command(&["ZADD", "cs:revoked", "5", "old"]).await;
    assert_eq!(next(&mut store.watch_revocations()).await, []);
    revoke(&store, "new", Revoke::IfQueued).await;
    let left: Vec<String> = server.command(&["ZRANGE", "cs:revoked", "0", "-1"]).await;
    assert_eq!(left, ["new"]);
}
