//! Stored results, and which result wins.

use super::*;

#[tokio::test]
async fn the_first_terminal_result_wins() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    for (first, second) in [
        ("SUCCESS", "FAILURE"),
        ("FAILURE", "SUCCESS"),
        ("REVOKED", "SUCCESS"),
        ("SUCCESS", "RETRY"),
    ] {
        let id = format!("{first}-{second}");
        finish(&store, &id, first, "first").await;
        finish(&store, &id, second, "second").await;
        assert_eq!(stored(&store, &id).await, Some(document(&id, first, "first")));
    }
}

#[tokio::test]
async fn a_retry_is_visible_until_the_result_replaces_it() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    finish(&store, "a", "RETRY", "").await;
    assert_eq!(stored(&store, "a").await.unwrap().state, State::Retry);
    finish(&store, "a", "SUCCESS", "done").await;
    assert_eq!(stored(&store, "a").await, Some(document("a", "SUCCESS", "done")));
}

#[tokio::test]
async fn undecodable_values_are_replaced_and_terminal_results_are_not() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    for junk in ["not JSON", "[1]", "null", r#"{"status": 7}"#] {
        let _: () = server.command(&["SET", &key("a"), junk]).await;
        finish(&store, "a", "SUCCESS", "").await;
        assert!(is_success(&stored(&store, "a").await.unwrap()), "{junk}");
    }
    let deep =
        format!(r#"{{"status": "SUCCESS", "result": {}1{}}}"#, "[".repeat(2000), "]".repeat(2000));
    for theirs in [r#"{"result": 1, "status": "FAILURE"}"#, &deep] {
        let _: () = server.command(&["SET", &key("b"), theirs]).await;
        finish(&store, "b", "SUCCESS", "").await;
        assert_eq!(server.command::<String>(&["GET", &key("b")]).await, theirs);
    }
    let _: () = server.command(&["RPUSH", &key("c"), "a list"]).await;
    finish(&store, "c", "SUCCESS", "").await;
    assert!(stored(&store, "c").await.is_some());
}

#[tokio::test]
async fn results_expire_as_configured() {
    let Some(server) = Server::start().await else {
        return;
    };
    for (expires, least, most) in [(0, -1, -1), (100, 90, 100)] {
        let result_expires = Duration::from_secs(expires);
        let settings = RedisSettings { result_expires, ..RedisSettings::new(server.url()) };
        let store = store_with(settings).await;
        let id = format!("kept-{expires}");
        finish(&store, &id, "SUCCESS", "").await;
        let ttl: i64 = server.command(&["TTL", &key(&id)]).await;
        assert!((least..=most).contains(&ttl), "{ttl}");
    }
}

#[tokio::test]
async fn keys_have_the_prefix_that_celery_gives_them() {
    let Some(server) = Server::start().await else {
        return;
    };
    for (given, key) in [("shop", "shop_celery-task-meta-a"), ("shop:", "shop:celery-task-meta-a")]
    {
        let key_prefix = given.to_owned();
        let store =
            store_with(RedisSettings { key_prefix, ..RedisSettings::new(server.url()) }).await;
        let wait = watch(&store, "a", Origin::Foreign);
        finish(&store, "a", "SUCCESS", given).await;
        assert!(server.command::<bool>(&["EXISTS", key]).await);
        assert_eq!(resolved(wait).await, document("a", "SUCCESS", given));
    }
}

#[tokio::test]
async fn the_script_is_reloaded_after_a_flush() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let _: () = server.command(&["SCRIPT", "FLUSH"]).await;
    finish(&store, "a", "SUCCESS", "").await;
    assert!(stored(&store, "a").await.is_some());
}

#[tokio::test]
async fn many_concurrent_results_are_stored() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let ids: Vec<String> = (0..2000).map(|n| format!("task-{n}")).collect();
    let all = ids.iter().map(|id| store.store_result(success(id)));
    let recorded = timeout(SOON, futures_util::future::join_all(all)).await.unwrap();
    assert!(recorded.iter().all(Result::is_ok));
    assert_eq!(server.command::<usize>(&["DBSIZE"]).await, ids.len());
    let calls: String = server.command(&["INFO", "commandstats"]).await;
    // One call of the script for each batch.
    let scripts = calls.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    let scripts = scripts.and_then(|line| line.split(',').next()?.parse::<usize>().ok()).unwrap();
    assert!(scripts <= ids.len() / 8, "{scripts} calls");
}

#[tokio::test]
async fn a_result_over_the_server_limit_is_an_error_and_others_are_stored() {
    let Some(server) = Server::start_with(&["--proto-max-bulk-len", "1mb"]).await else {
        return;
    };
    let store = store_on(&server).await;
    let large = StoreResult {
        document: document("large", "SUCCESS", &"x".repeat(2 << 20)),
        reply_to: None,
        received: None,
    };
    let (before, large, after) = tokio::join!(
        store.store_result(success("before")),
        timeout(SOON, store.store_result(large)),
        timeout(SOON, store.store_result(success("after"))),
    );
    assert!(before.is_ok());
    assert!(large.unwrap().is_err());
    assert!(after.unwrap().is_ok());
}

#[tokio::test]
async fn a_result_is_stored_when_memory_is_available_again() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store_on(&server).await;
    let _: () = server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let mut storing = Box::pin(store.store_result(success("a")));
    assert!(timeout(Duration::from_millis(300), &mut storing).await.is_err());
    let _: () = server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert!(timeout(SOON, storing).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_wrong_url_is_a_configuration_error_that_shows_no_password() {
    let settings = RedisSettings::new("redis://u:hush@ok;http://u:hush@no;redis://u:hush@h/x");
    let error = RedisStore::connect(settings).unwrap_err();
    assert!(error.is_config());
    assert_eq!(error.to_string().lines().count(), 2);
    assert!(!error.to_string().contains("hush"), "{error}");
}
