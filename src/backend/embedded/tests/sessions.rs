//! Sessions of several processes on one file. Each `Db` is the one of a process.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::super::broker::EmbeddedBroker;
use super::super::db::Db;
use super::super::maintenance;
use super::super::session::Session;
use super::super::session_rows;
use super::Folder;
use crate::backend::{Broker, Connection as _, PublishRequest, Queue, Recorded};
use crate::protocol::{Arguments, Envelope};

async fn publish(broker: &EmbeddedBroker, queue: &Queue, count: usize) {
    for _ in 0..count {
        let request = PublishRequest {
            message: Envelope::new("t", Arguments::default()).encode(),
            queue: queue.clone(),
            delay: None,
            timeout: Duration::from_secs(60),
        };
        let _ = broker.publish(request).await.unwrap();
    }
}

/// Ends the sessions of all others, as another process does when they are overdue.
async fn reclaim_everything(db: &Db) {
    let of = Session::default();
    db.write(move |txn| {
        txn.execute("UPDATE sessions SET until = 0", [])?;
        session_rows::maintain(txn, &of)
    })
    .await
    .unwrap();
}

/// Returns the number of messages that no process will ever settle or return.
async fn orphans(db: &Db) -> i64 {
    let count = "SELECT count(*) FROM messages \
                 WHERE holder IS NOT NULL AND holder NOT IN (SELECT id FROM sessions)";
    db.read(move |txn| Ok(txn.first(count, [], |row| row.get(0))?.unwrap_or(0))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_leased_under_an_ended_session() {
    let folder = Folder::new();
    let (here, other) = (
        Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap(),
        Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap(),
    );
    let queue = Queue::new("q");
    let (consuming, sending) =
        (EmbeddedBroker::start(here.clone()), EmbeddedBroker::start(other.clone()));
    let mut deliveries = consuming.consume(&queue, 4);
    deliveries.consuming().wait_for(|consuming| *consuming).await.unwrap();
    reclaim_everything(&other).await;
    publish(&sending, &queue, 8).await;
    let first = deliveries.next().await.unwrap();
    assert_eq!(orphans(&other).await, 0);
    drop((first, deliveries));
    consuming.close().await;
    here.close().await;
    let state = sending.inspect("q").await.unwrap().unwrap();
    assert_eq!((state.ready, state.consumers), (8, 0), "all of them are requeued");
}

/// The worker has not taken the deliveries of the lost session: its permits are in use.
#[tokio::test(flavor = "multi_thread")]
async fn messages_over_the_prefetch_are_not_leased_repeatedly_after_a_lost_session() {
    let folder = Folder::new();
    let (here, other) = (
        Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap(),
        Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap(),
    );
    let queue = Queue::new("q");
    let (consuming, sending) =
        (EmbeddedBroker::start(here.clone()), EmbeddedBroker::start(other.clone()));
    publish(&sending, &queue, 4).await;
    let mut deliveries = consuming.consume(&queue, 4);
    let lost = until_held(&other, 4).await;
    reclaim_everything(&other).await;
    while consumer(&other).await.is_none_or(|session| session == lost) {
        tokio::task::yield_now().await;
    }
    // Each of these wakes the consumer.
    publish(&sending, &queue, 50).await;
    let most = "SELECT max(handed_out) FROM messages";
    let most = other.read(move |txn| txn.first(most, [], |row| row.get::<_, i64>(0)));
    assert_eq!(most.await.unwrap(), Some(1), "the prefetch was used up");
    for _ in 0..54 {
        let delivery = deliveries.next().await.unwrap();
        let proof = Recorded::new(delivery.id().clone());
        let _ = delivery.ack(proof).unwrap();
    }
    assert!(deliveries.stop().await.is_empty());
}

async fn consumer(db: &Db) -> Option<i64> {
    let session = "SELECT session FROM consumers";
    db.read(move |txn| txn.first(session, [], |row| row.get(0))).await.unwrap()
}

/// Waits until the consumer holds this many messages; returns its session.
async fn until_held(db: &Db, count: i64) -> i64 {
    let held = "SELECT count(*) FROM messages WHERE holder IS NOT NULL";
    loop {
        let held = db.read(move |txn| txn.first(held, [], |row| row.get::<_, i64>(0)));
        if held.await.unwrap() == Some(count) {
            return consumer(db).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_held_under_an_ended_session_of_an_older_version_are_redelivered() {
    let folder = Folder::new();
    let db = Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap();
    let (broker, queue) = (EmbeddedBroker::start(db.clone()), Queue::new("q"));
    publish(&broker, &queue, 3).await;
    let hold = "UPDATE messages SET holder = 7";
    db.write(move |txn| txn.execute(hold, [])).await.unwrap();
    let of = Session::default();
    db.write(move |txn| maintenance::run(txn, &of)).await.unwrap();
    assert_eq!(broker.inspect("q").await.unwrap().unwrap().ready, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn session_numbers_are_unique_among_processes_of_all_versions() {
    let folder = Folder::new();
    let db = Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap();
    let mut numbers = BTreeSet::new();
    for _ in 0..100 {
        let of = Arc::new(Session::default());
        let begin = move |txn: &mut super::super::txn::Txn<'_>| session_rows::begin(txn, &of);
        let number = db.write(begin).await.unwrap();
        assert!(numbers.insert(number), "{number} was used before");
        // The statement of version 0.1.
        let earlier = db.write(move |txn| {
            txn.execute("INSERT INTO sessions (until) VALUES (?)", [i64::MAX])?;
            Ok(txn.inserted())
        });
        let earlier = earlier.await.unwrap();
        assert!(!numbers.contains(&earlier), "{earlier} is another process's");
        for ended in [number, earlier] {
            db.write(move |txn| session_rows::end(txn, ended)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_transaction_is_read_when_it_has_the_lock() {
    let folder = Folder::new();
    let db = Db::open(&folder.file(), crate::backend::PoolSettings::default()).unwrap();
    let other = Connection::open(folder.file()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (begin, started) = std::sync::mpsc::channel();
    let clock = Arc::clone(db.shared());
    let waiting = db.write(|txn| Ok(txn.now));
    std::thread::spawn(move || {
        // Long enough for the writer to wait for the lock.
        std::thread::sleep(Duration::from_millis(300));
        begin.send(clock.clock.now()).unwrap();
        other.execute_batch("COMMIT").unwrap();
    });
    let now = waiting.await.unwrap();
    assert!(now >= started.recv().unwrap());
}
