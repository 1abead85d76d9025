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

/// Takes batches until this mark is among them.
async fn hear(marks: &mut Marks, wanted: Revocation) {
    while !next(marks).await.contains(&wanted) {}
}

#[tokio::test]
async fn marks_are_read_at_first_and_heard_as_they_come() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    revoke(&store, "a", Revoke::IfQueued).await;
    revoke(&store, "b", Revoke::EvenRunning).await;
    let later = store_on(&server).await;
    listening(&server, &later).await;
    let mut marks = later.revocations();
    let first = next(&mut marks).await;
    assert!(first.contains(&mark("a", Revoke::IfQueued)), "{first:?}");
    assert!(!first.contains(&mark("a", Revoke::EvenRunning)), "{first:?}");
    assert!(first.contains(&mark("b", Revoke::EvenRunning)), "{first:?}");
    revoke(&store, "c", Revoke::EvenRunning).await;
    hear(&mut marks, mark("c", Revoke::EvenRunning)).await;
}

#[tokio::test]
async fn where_nothing_is_marked_an_empty_batch_says_so() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    assert_eq!(next(&mut store.revocations()).await, []);
}

#[tokio::test]
async fn what_was_marked_while_the_subscription_was_away_is_read() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    let mut marks = store.revocations();
    let _ = next(&mut marks).await;
    // Marked without a word on the channel.
    let _: u64 = server.ask(&["ZADD", "cs:revoked", "99999999999", "quiet"]).await;
    let _: u64 = server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    hear(&mut marks, mark("quiet", Revoke::IfQueued)).await;
}

#[tokio::test]
async fn garbage_on_the_channel_is_ignored() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    let mut marks = store.revocations();
    let _ = next(&mut marks).await;
    for garbage in ["", "[]", "{\"ids\": 5}", "{\"ids\": [5], \"terminate\": 1}"] {
        let _: u64 = server.ask(&["PUBLISH", "cs:revoked", garbage]).await;
    }
    revoke(&store, "d", Revoke::IfQueued).await;
    hear(&mut marks, mark("d", Revoke::IfQueued)).await;
}

#[tokio::test]
async fn old_marks_are_removed_with_the_next_one() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let _: u64 = server.ask(&["ZADD", "cs:revoked", "5", "old"]).await;
    assert_eq!(next(&mut store.revocations()).await, []);
    revoke(&store, "new", Revoke::IfQueued).await;
    let left: Vec<String> = server.ask(&["ZRANGE", "cs:revoked", "0", "-1"]).await;
    assert_eq!(left, ["new"]);
}
