//! The size of a file.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::super::db::Db;
use super::super::maintenance;
use super::super::session::Session;
use super::Folder;
use crate::backend::PoolSettings;
use crate::error::Error;

async fn number(db: &Db, pragma: &'static str) -> i64 {
    db.read(move |txn| Ok(txn.first(pragma, [], |row| row.get(0))?.unwrap_or(0))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_shrinks_when_much_has_expired() {
    let folder = Folder::new();
    let db = Db::open(&folder.file(), PoolSettings::default()).unwrap();
    db.write(|txn| {
        for id in 0..200 {
            let result = "INSERT INTO results (id, state, json, expires) \
                          VALUES (?, 'SUCCESS', zeroblob(65536), 1)";
            txn.execute(result, [id.to_string()])?;
        }
        Ok(())
    })
    .await
    .unwrap();
    let before = number(&db, "PRAGMA page_count").await;
    assert!(before > 200 * 16, "{before}");
    let of = Arc::new(Session::default());
    loop {
        let of = Arc::clone(&of);
        if !db.write(move |txn| maintenance::run(txn, &of)).await.unwrap() {
            break;
        }
    }
    let (pages, free) =
        (number(&db, "PRAGMA page_count").await, number(&db, "PRAGMA freelist_count").await);
    assert!(pages < before / 2 && free < 1024, "{before} pages, then {pages}, {free} of them free");
}

/// Opens a file with a pool of this size, and starts a read that ends when the sender is dropped.
async fn blocked_read(
    folder: &Folder,
    size: usize,
) -> (Db, std::sync::mpsc::Sender<()>, JoinHandle<Result<(), Error>>) {
    let pool = PoolSettings { size, wait: Duration::from_millis(50), ..PoolSettings::default() };
    let db = Db::open(&folder.file(), pool).unwrap();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let (begin, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let reader = db.clone();
    let read = tokio::spawn(async move {
        let blocked = reader.read(move |_| {
            let _ = begin.send(());
            let _ = ended.recv();
            Ok(())
        });
        blocked.await
    });
    begun.recv().await.unwrap();
    (db, end, read)
}

/// A read of a file waits neither for the writer nor for another read.
#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_file_run_at_the_same_time() {
    let folder = Folder::new();
    let (db, end, read) = blocked_read(&folder, 2).await;
    db.read(|_| Ok(())).await.unwrap();
    db.write(|_| Ok(())).await.unwrap();
    assert_eq!((db.pools()[0].size, db.pools()[0].idle), (2, 1));
    drop(end);
    read.await.unwrap().unwrap();
    db.close().await;
}

/// The error names the setting.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_a_file_fails_when_no_connection_becomes_free() {
    let folder = Folder::new();
    let (db, end, read) = blocked_read(&folder, 1).await;
    let error = db.read(|_| Ok(())).await.unwrap_err();
    assert!(error.to_string().contains("store.pool_size"), "{error}");
    drop(end);
    read.await.unwrap().unwrap();
    db.close().await;
}
