//! Who is woken, by what, and by what not.

use super::super::REPLY_PREFIX;
use super::*;

#[tokio::test]
async fn a_waiter_is_woken_by_the_reply_channel_and_by_the_tasks_own() {
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
            let finish = Finish { document, reply_to: reply_to.clone(), received: None };
            let _ = store.finish(finish).await.unwrap();
        }
    }
    for wait in waits {
        assert!(is_success(&resolved(wait).await));
    }
    subscribers(&server, &key("a"), 0).await;
}

#[tokio::test]
async fn a_result_that_was_there_before_is_found() {
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
async fn a_wait_ends_with_its_timeout_and_the_others_go_on() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let long = watch(&store, "a", Origin::Foreign);
    let short = store.watch("a".into(), Origin::Foreign, Some(Duration::from_millis(50)));
    let alone = store.watch("b".into(), Origin::Own, Some(Duration::from_millis(60)));
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
async fn forged_pushes_wake_nobody() {
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
        assert_eq!(server.ask::<usize>(&["PUBLISH", channel, forged]).await, 1, "{forged}");
    }
    for id in ["a", "b"] {
        let document = document(id, "SUCCESS", "true");
        let reply_to = Some(store.reply_channel().to_owned());
        let _ = store.finish(Finish { document, reply_to, received: None }).await.unwrap();
    }
    for (wait, id) in waits.into_iter().zip(["a", "b"]) {
        assert_eq!(resolved(wait).await, document(id, "SUCCESS", "true"));
    }
}

#[tokio::test]
async fn only_reply_channels_are_published_to_on_a_messages_word() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    for (reply_to, published) in [(key("theirs"), 1), (format!("{REPLY_PREFIX}theirs"), 2)] {
        let _: () = server.ask(&["CONFIG", "RESETSTAT"]).await;
        let document = document(&reply_to, "SUCCESS", "");
        let _ = store
            .finish(Finish { document, reply_to: Some(reply_to), received: None })
            .await
            .unwrap();
        let stats: String = server.ask(&["INFO", "commandstats"]).await;
        assert!(stats.contains(&format!("cmdstat_publish:calls={published},")), "{stats}");
    }
}

#[tokio::test]
async fn closing_ends_every_wait_and_is_the_end() {
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
    assert!(timeout(SOON, store.finish(success("d"))).await.unwrap().is_err());
    eventually("no connection is left", async || {
        let clients: String = server.ask(&["CLIENT", "LIST"]).await;
        clients.lines().count() == 1
    })
    .await;
}

#[tokio::test]
async fn closing_flushes_what_was_handed_over() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let storing = tokio::spawn({
        let store = store.clone();
        let all = (0..500).map(|n| success(&n.to_string())).collect::<Vec<_>>();
        async move {
            let all = all.into_iter().map(|finish| store.finish(finish));
            futures_util::future::join_all(all).await.iter().filter(|done| done.is_ok()).count()
        }
    });
    tokio::task::yield_now().await;
    timeout(SOON, store.close()).await.unwrap();
    let recorded = storing.await.unwrap();
    assert_eq!(server.ask::<usize>(&["DBSIZE"]).await, recorded);
}
