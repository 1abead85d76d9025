//! Which events wake a waiter, and which do not.

use super::super::keys::REPLY_PREFIX;
use super::*;

#[tokio::test]
async fn results_arrive_on_the_reply_channel_and_on_the_tasks_channel() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    let waits = [
        watch(&store, "a", Origin::Own),
        watch(&store, "a", Origin::Own),
        watch(&store, "a", Origin::Foreign),
        watch(&store, "b", Origin::Foreign),
        watch(&store, "c", Origin::Own),
    ];
    for id in ["a", "b"] {
        subscribers(&server, &key(id), 1).await;
    }
    let reply_to = Some(store.reply_channel().to_owned());
    for id in ["a", "b", "c"] {
        // A non-terminal state ends no wait.
        for document in [document(id, "RETRY", ""), document(id, "SUCCESS", id)] {
            let finish = StoreResult { document, reply_to: reply_to.clone(), received: None };
            let _ = store.store_result(finish).await.unwrap();
        }
    }
    for wait in waits {
        assert!(is_success(&resolved(wait).await));
    }
    subscribers(&server, &key("a"), 0).await;
}

#[tokio::test]
async fn an_existing_result_resolves_a_wait() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    finish(&store, "a", "SUCCESS", "").await;
    for origin in [Origin::Own, Origin::Foreign] {
        assert!(is_success(&resolved(watch(&store, "a", origin)).await));
    }
}

#[tokio::test]
async fn a_wait_ends_at_its_timeout_and_others_continue() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let long = watch(&store, "a", Origin::Foreign);
    let short = store.watch_result("a".into(), Origin::Foreign, Some(Duration::from_millis(50)));
    let alone = store.watch_result("b".into(), Origin::Own, Some(Duration::from_millis(60)));
    for wait in [short, alone] {
        let error = timeout(SOON, wait).await.unwrap().unwrap().unwrap_err();
        assert!(error.is_timeout(), "{error}");
    }
    finish(&store, "a", "SUCCESS", "").await;
    assert!(is_success(&resolved(long).await));
}

#[tokio::test]
async fn a_dropped_receiver_is_forgotten() {
    let Some(server) = Server::start().await else {
        return;
    };
    let reread = Duration::from_millis(50);
    let store = store_with(RedisSettings { reread, ..RedisSettings::new(server.url()) }).await;
    let wait = watch(&store, "a", Origin::Foreign);
    subscribers(&server, &key("a"), 1).await;
    drop(wait);
    subscribers(&server, &key("a"), 0).await;
}

#[tokio::test]
async fn forged_pushes_resolve_no_wait() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    listening(&server, &store).await;
    let waits = [watch(&store, "a", Origin::Own), watch(&store, "b", Origin::Foreign)];
    subscribers(&server, &key("b"), 1).await;
    for (channel, forged) in [
        (store.reply_channel(), "junk"),
        (store.reply_channel(), "[]"),
        (store.reply_channel(), r#"{"status": "SUCCESS", "result": 1}"#),
        (store.reply_channel(), r#"{"status": "SUCCESS", "task_id": 7}"#),
        (store.reply_channel(), r#"{"status": "SUCCESS", "task_id": "b"}"#),
        (store.reply_channel(), r#"{"task_id": "a"}"#),
        (&key("b"), "junk"),
        (&key("b"), r#"{"status": "SUCCESS", "task_id": "a"}"#),
        (&key("b"), r#"{"status": "SUCCESS", "task_id": "b", "result": "forged"}"#),
    ] {
        assert_eq!(server.command::<usize>(&["PUBLISH", channel, forged]).await, 1, "{forged}");
    }
    for id in ["a", "b"] {
        let document = document(id, "SUCCESS", "true");
        let reply_to = Some(store.reply_channel().to_owned());
        let _ =
            store.store_result(StoreResult { document, reply_to, received: None }).await.unwrap();
    }
    for (wait, id) in waits.into_iter().zip(["a", "b"]) {
        assert_eq!(resolved(wait).await, document(id, "SUCCESS", "true"));
    }
}

#[tokio::test]
async fn a_message_can_name_only_reply_channels() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    for (reply_to, published) in [(key("theirs"), 1), (format!("{REPLY_PREFIX}theirs"), 2)] {
        let _: () = server.command(&["CONFIG", "RESETSTAT"]).await;
        let document = document(&reply_to, "SUCCESS", "");
        let _ = store
            .store_result(StoreResult { document, reply_to: Some(reply_to), received: None })
            .await
            .unwrap();
        let stats: String = server.command(&["INFO", "commandstats"]).await;
        assert!(stats.contains(&format!("cmdstat_publish:calls={published},")), "{stats}");
    }
}

#[tokio::test]
async fn closing_ends_every_wait_and_connection() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let waits = [watch(&store, "a", Origin::Own), watch(&store, "b", Origin::Foreign)];
    timeout(SOON, store.close()).await.unwrap();
    let late = watch(&store, "c", Origin::Own);
    for wait in waits.into_iter().chain([late]) {
        assert!(timeout(SOON, wait).await.unwrap().unwrap().is_err());
    }
    assert!(timeout(SOON, store.store_result(success("d"))).await.unwrap().is_err());
    eventually("no connection is left", async || {
        let clients: String = server.command(&["CLIENT", "LIST"]).await;
        clients.lines().count() == 1
    })
    .await;
}

#[tokio::test]
async fn closing_flushes_queued_results() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let storing = tokio::spawn({
        let store = store.clone();
        let all = (0..500).map(|n| success(&n.to_string())).collect::<Vec<_>>();
        async move {
            let all = all.into_iter().map(|finish| store.store_result(finish));
            futures_util::future::join_all(all).await.iter().filter(|done| done.is_ok()).count()
        }
    });
    tokio::task::yield_now().await;
    timeout(SOON, store.close()).await.unwrap();
    let recorded = storing.await.unwrap();
    assert_eq!(server.command::<usize>(&["DBSIZE"]).await, recorded);
}
