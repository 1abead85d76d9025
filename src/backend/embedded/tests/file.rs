//! The size of a file.

use std::sync::Arc;

use super::super::db::Db;
use super::super::session::Session;
use super::super::upkeep;
use super::Folder;

async fn number(db: &Db, pragma: &'static str) -> i64 {
    db.read(move |txn| Ok(txn.first(pragma, [], |row| row.get(0))?.unwrap_or(0))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_shrinks_when_much_has_expired() {
    let folder = Folder::new();
    let db = Db::open(&folder.file()).unwrap();
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
        if !db.write(move |txn| upkeep::keep_up(txn, &of)).await.unwrap() {
            break;
        }
    }
    let (pages, free) =
        (number(&db, "PRAGMA page_count").await, number(&db, "PRAGMA freelist_count").await);
    assert!(pages < before / 2 && free < 1024, "{before} pages, then {pages}, {free} of them free");
}
