//! Sessions of several processes on one file. Each `Db` is what one process has open.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::super::broker::EmbeddedBroker;
use super::super::db::Db;
use super::super::session::{self, Session};
use super::super::upkeep;
use super::Folder;
use crate::backend::{Broker, Parcel, Queue, Recorded};
use crate::protocol::{Arguments, Envelope};

async fn publish(broker: &EmbeddedBroker, queue: &Queue, count: usize) {
    for _ in 0..count {
        let parcel = Parcel {
            message: Envelope::new("t", Arguments::default()).encode(),
            queue: queue.clone(),
            delay: None,
            timeout: Duration::from_secs(60),
        };
        let _ = broker.publish(parcel).await.unwrap();
    }
}

/// What another process does when the sessions of all others are overdue.
async fn take_back_everything(db: &Db) {
    let of = Session::default();
    db.write(move |txn| {
        txn.execute("UPDATE sessions SET until = 0", [])?;
        session::maintain(txn, &of)
    })
    .await
    .unwrap();
}

/// How many messages no process will ever settle or return.
async fn orphans(db: &Db) -> i64 {
    let count = "SELECT count(*) FROM messages \
                 WHERE holder IS NOT NULL AND holder NOT IN (SELECT id FROM sessions)";
    db.read(move |txn| Ok(txn.first(count, [], |row| row.get(0))?.unwrap_or(0))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_leased_under_a_session_that_another_process_has_ended() {
    let folder = Folder::new();
    let (here, other) = (Db::open(&folder.file()).unwrap(), Db::open(&folder.file()).unwrap());
    let queue = Queue::new("q");
    let (consuming, sending) =
        (EmbeddedBroker::start(here.clone()), EmbeddedBroker::start(other.clone()));
    let mut deliveries = consuming.consume(&queue, 4);
    deliveries.consuming().wait_for(|consuming| *consuming).await.unwrap();
    take_back_everything(&other).await;
    publish(&sending, &queue, 8).await;
    let first = deliveries.next().await.unwrap();
    assert_eq!(orphans(&other).await, 0);
    drop((first, deliveries));
    consuming.close().await;
    here.close().await;
    let state = sending.inspect("q").await.unwrap().unwrap();
    assert_eq!((state.ready, state.consumers), (8, 0), "all of them are delivered again");
}

/// The worker has not taken what was delivered under the session that is lost: its slots are busy.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_after_a_lost_session_is_not_leased_again_and_again() {
    let folder = Folder::new();
    let (here, other) = (Db::open(&folder.file()).unwrap(), Db::open(&folder.file()).unwrap());
    let queue = Queue::new("q");
    let (consuming, sending) =
        (EmbeddedBroker::start(here.clone()), EmbeddedBroker::start(other.clone()));
    publish(&sending, &queue, 4).await;
    let mut deliveries = consuming.consume(&queue, 4);
    let lost = until_held(&other, 4).await;
    take_back_everything(&other).await;
    while consumer(&other).await.is_none_or(|session| session == lost) {
        tokio::task::yield_now().await;
    }
    // Each of these wakes the consumer.
    publish(&sending, &queue, 50).await;
    let most = "SELECT max(handed_out) FROM messages";
    let most = other.read(move |txn| txn.first(most, [], |row| row.get::<_, i64>(0)));
    assert_eq!(most.await.unwrap(), Some(1), "there was no room for any of them");
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
async fn messages_that_an_earlier_version_holds_under_an_ended_session_are_delivered_again() {
    let folder = Folder::new();
    let db = Db::open(&folder.file()).unwrap();
    let (broker, queue) = (EmbeddedBroker::start(db.clone()), Queue::new("q"));
    publish(&broker, &queue, 3).await;
    let hold = "UPDATE messages SET holder = 7";
    db.write(move |txn| txn.execute(hold, [])).await.unwrap();
    let of = Session::default();
    db.write(move |txn| upkeep::keep_up(txn, &of)).await.unwrap();
    assert_eq!(broker.inspect("q").await.unwrap().unwrap().ready, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_number_is_used_twice_beside_processes_of_an_earlier_version() {
    let folder = Folder::new();
    let db = Db::open(&folder.file()).unwrap();
    let mut numbers = BTreeSet::new();
    for _ in 0..100 {
        let of = Arc::new(Session::default());
        let begin = move |txn: &mut super::super::txn::Txn<'_>| session::begin(txn, &of);
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
            db.write(move |txn| session::end(txn, ended)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_transaction_is_read_when_it_has_the_lock() {
    let folder = Folder::new();
    let db = Db::open(&folder.file()).unwrap();
    let other = Connection::open(folder.file()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (begin, begun) = std::sync::mpsc::channel();
    let clock = Arc::clone(db.shared());
    let waiting = db.write(|txn| Ok(txn.now));
    std::thread::spawn(move || {
        // Long enough for the writer to wait for the lock.
        std::thread::sleep(Duration::from_millis(300));
        begin.send(clock.clock.now()).unwrap();
        other.execute_batch("COMMIT").unwrap();
    });
    let now = waiting.await.unwrap();
    assert!(now >= begun.recv().unwrap());
}
