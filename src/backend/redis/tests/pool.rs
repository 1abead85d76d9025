//! The pool of connections for large reads, and scripts that the server has lost.

use super::*;
use crate::backend::Approvals;
use crate::backend::PoolSettings;
use crate::task::TaskId;

#[tokio::test]
async fn scripts_are_loaded_again_after_a_flush() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    let _: () = server.command(&["SCRIPT", "FLUSH"]).await;
    assert!(!store.renew_claim(&"a".into(), "holder", SOON).await.unwrap());
    let _: () = server.command(&["SCRIPT", "FLUSH"]).await;
    assert!(store.approvals(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_read_makes_a_new_connection_when_the_pooled_one_is_lost() {
    let Some(server) = Server::start().await else { return };
    let store = store_on(&server).await;
    finish(&store, "a", "SUCCESS", "").await;
    for _ in 0..5 {
        assert!(stored(&store, "a").await.is_some());
        assert_eq!(store.pools()[0].size, 1);
        let _: usize = server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    }
}

#[tokio::test]
async fn a_read_fails_when_no_connection_becomes_free() {
    let Some(server) = Server::start().await else { return };
    let pool = PoolSettings { size: 1, wait: Duration::from_millis(50), recycle: SOON };
    // The first read holds the only connection until the server is thawed.
    let settings = RedisSettings {
        command_timeout: SOON,
        reread: NEVER,
        pool,
        ..RedisSettings::new(server.url())
    };
    let store = store_with(settings).await;
    finish(&store, "a", "SUCCESS", "").await;
    assert!(stored(&store, "a").await.is_some());
    server.freeze();
    let mut first = Box::pin(store.read_result(&"a".into()));
    tokio::select! {
        _ = &mut first => panic!("a frozen server has answered"),
        () = eventually("the connection is used", async || store.pools()[0].idle == 0) => {}
    }
    let error = timeout(SOON, store.read_result(&"a".into())).await.unwrap().unwrap_err();
    assert!(error.is_connection() && error.to_string().contains("store.pool_size"), "{error}");
    server.thaw();
    assert!(timeout(SOON, first).await.unwrap().unwrap().is_some());
}

/// A task that resumes does not wait for large reads.
#[tokio::test]
async fn a_small_journal_is_read_while_all_pooled_connections_are_in_use() {
    let Some(server) = Server::start().await else { return };
    let pool = PoolSettings { size: 1, wait: SOON, recycle: SOON };
    let settings = RedisSettings { reread: NEVER, pool, ..RedisSettings::new(server.url()) };
    let store = store_with(settings).await;
    let (small, large) = (TaskId::random(), TaskId::random());
    let _: u8 = server.command(&["HSET", &format!("cs:journal:{small}"), "s", "1"]).await;
    let _: u8 =
        server.command(&["HSET", &format!("cs:journal:{large}"), "s", &"x".repeat(20_000)]).await;
    let blocking = |_: &_| {
        let mut wait = redis::Pipeline::with_capacity(1);
        wait.cmd("BLPOP").arg("list").arg(0);
        wait
    };
    let mut blocked = Box::pin(store.pool.read(blocking));
    tokio::select! {
        _ = &mut blocked => panic!("the list has no element"),
        () = eventually("the connection is used", async || {
            store.pools()[0].size == 1 && store.pools()[0].idle == 0
        }) => {}
    }
    let history = timeout(SOON, store.task_history(&small, None)).await.unwrap().unwrap();
    assert_eq!(history.steps["s"], Bytes::from_static(b"1"));
    let mut waiting = store.task_history(&large, None);
    tokio::select! {
        _ = &mut waiting => panic!("a large journal was not read on a pooled connection"),
        () = eventually("it waits", async || store.pools()[0].waiting == 1) => {}
    }
    let _: u8 = server.command(&["RPUSH", "list", "x"]).await;
    timeout(SOON, blocked).await.unwrap().unwrap();
    let history = timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(history.steps["s"].len(), 20_000);
}
