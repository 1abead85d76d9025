//! Servers that crash, freeze, lose data and cut connections.

use super::*;

#[tokio::test]
async fn a_thousand_waiters_survive_a_restart_of_the_server() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    let ids: Vec<String> = (0..1000).map(|n| format!("task-{n}")).collect();
    let origin = |n| {
        if n % 2 == 0 { Origin::Own } else { Origin::Foreign }
    };
    let waits: Vec<Wait> =
        ids.iter().enumerate().map(|(n, id)| watch(&store, id, origin(n))).collect();
    subscribers(&server, &key("task-999"), 1).await;

    server.kill();
    server.start_again().await;
    // Some of these are published before the waiters have subscribed again.
    let writer = store_on(&server).await;
    let documents: Vec<Document> = ids.iter().map(|id| document(id, "SUCCESS", id)).collect();
    for document in documents.clone() {
        let reply_to = Some(store.reply_channel().to_owned());
        let _ =
            writer.store_result(StoreResult { document, reply_to, received: None }).await.unwrap();
    }
    for (wait, document) in waits.into_iter().zip(documents) {
        assert_eq!(resolved(wait).await, document);
    }
}

#[tokio::test]
async fn a_result_is_stored_when_the_server_returns() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    server.kill();
    let (recorded, ()) = tokio::join!(timeout(SOON, store.store_result(success("a"))), async {
        server.start_again().await;
    });
    assert!(recorded.unwrap().is_ok());
    assert!(stored(&store, "a").await.is_some());
}

#[tokio::test]
async fn a_store_connects_when_its_server_starts_later() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    server.kill();
    let command_timeout = Duration::from_millis(100);
    let settings = RedisSettings { command_timeout, ..RedisSettings::new(server.url()) };
    let store = RedisStore::connect(settings).unwrap();
    let wait = watch(&store, "a", Origin::Own);
    let read = store.read_result(&"a".into());
    assert!(timeout(SOON, read).await.unwrap().unwrap_err().is_connection());
    server.start_again().await;
    let reply_to = Some(store.reply_channel().to_owned());
    let _ = store.store_result(StoreResult { reply_to, ..success("a") }).await.unwrap();
    assert!(is_success(&resolved(wait).await));
}

#[tokio::test]
async fn results_of_the_last_minute_are_stored_again_on_a_server_that_lost_them() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    finish(&store, "a", "SUCCESS", "kept").await;
    server.kill();
    server.start_again().await;
    eventually("the result is back", async || {
        server.command::<Option<String>>(&["GET", &key("a")]).await.is_some()
    })
    .await;
    assert_eq!(stored(&store, "a").await, Some(document("a", "SUCCESS", "kept")));
}

#[tokio::test]
async fn killed_subscriptions_are_restored() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    let wait = watch(&store, "a", Origin::Foreign);
    for _ in 0..3 {
        subscribers(&server, &key("a"), 1).await;
        let _: usize = server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    }
    finish(&store, "a", "SUCCESS", "").await;
    assert!(is_success(&resolved(wait).await));
}

#[tokio::test]
async fn cut_connections_lose_no_result() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    for n in 0..50 {
        let id = n.to_string();
        let (recorded, _) = tokio::join!(
            timeout(SOON, store.store_result(success(&id))),
            server.command::<usize>(&["CLIENT", "KILL", "TYPE", "normal"]),
        );
        assert!(recorded.unwrap().is_ok());
        assert!(stored(&store, &id).await.is_some());
    }
}

#[tokio::test]
async fn a_frozen_server_is_detected_and_reconnected() {
    let Some(server) = Server::start().await else {
        return;
    };
    let command_timeout = Duration::from_millis(200);
    let settings =
        RedisSettings { command_timeout, reread: NEVER, ..RedisSettings::new(server.url()) };
    let store = store_with(settings).await;
    listening(&server, &store).await;
    let wait = watch(&store, "a", Origin::Own);
    server.freeze();
    // The supervisor drops the frozen connection: only a new one can become ready again.
    let read = timeout(SOON, store.read_result(&"a".into())).await.unwrap();
    assert!(read.unwrap_err().is_connection());
    let mut storing = Box::pin(store.store_result(success("a")));
    assert!(timeout(command_timeout, &mut storing).await.is_err());
    server.thaw();
    assert!(timeout(SOON, storing).await.unwrap().is_ok());
    // Without a reply channel, only a re-read can find it.
    let foreign = watch(&store, "a", Origin::Foreign);
    assert!(is_success(&resolved(foreign).await));
    assert!(is_success(&resolved(wait).await));
}

#[tokio::test]
async fn a_replica_is_not_written_to() {
    let Some(server) = Server::start().await else {
        return;
    };
    let Some(master) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let port = master.port.to_string();
    let _: () = server.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    let mut storing = Box::pin(store.store_result(success("a")));
    assert!(timeout(Duration::from_millis(300), &mut storing).await.is_err());
    let _: () = server.command(&["REPLICAOF", "NO", "ONE"]).await;
    assert!(timeout(SOON, storing).await.unwrap().is_ok());
}
