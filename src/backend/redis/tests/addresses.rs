//! Forms of a Redis URL, against a server.

use super::*;

/// Returns why the first attempt to connect failed.
async fn refused(url: &str) -> String {
    let store = RedisStore::connect(RedisSettings::new(url)).unwrap();
    eventually("an attempt has failed", async || store.connect_error().is_some()).await;
    assert!(!store.is_connected());
    store.connect_error().unwrap()
}

async fn database_of(server: &Server, url: String, id: &str) -> Vec<i64> {
    let store = store_with(RedisSettings::new(url)).await;
    let _ = store.store_result(success(id)).await.unwrap();
    let mut found = Vec::new();
    for database in [0, 3] {
        let client = redis::Client::open(format!("{}/{database}", server.url())).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let key = format!("celery-task-meta-{id}");
        let exists = redis::cmd("EXISTS").arg(key).query_async::<bool>(&mut connection).await;
        found.extend(exists.unwrap().then_some(database));
    }
    found
}

#[tokio::test]
async fn the_database_of_the_url_is_used() {
    let folder = std::env::temp_dir().join(format!("countersign-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let socket = folder.join("r.sock").display().to_string();
    let Some(server) = Server::start_with(&["--unixsocket", &socket]).await else { return };
    let url = server.url();
    for (url, id, database) in [
        (url.clone(), "none", 0),
        (format!("{url}/3"), "path", 3),
        (format!("{url}?db=3"), "query", 3),
        (format!("unix://{socket}?db=3"), "unix", 3),
        (format!("redis+socket://{socket}?virtual_host=3"), "kombu", 3),
        (format!("socket://{socket}?virtual_host=3"), "celery", 3),
    ] {
        assert_eq!(database_of(&server, url, id).await, [database], "{id}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_node_of_a_cluster_is_refused_at_connect() {
    let Some(server) = Server::start_with(&["--cluster-enabled", "yes"]).await else { return };
    let why = refused(&server.url()).await;
    assert!(why.contains("node of a Redis Cluster, which is not supported"), "{why}");
}

#[tokio::test]
async fn a_wrong_password_is_named() {
    let Some(server) = Server::start().await else { return };
    let _: () = server.command(&["CONFIG", "SET", "requirepass", "right"]).await;
    for login in [":wrong@", "ana:wrong@", ""] {
        let url = format!("redis://{login}127.0.0.1:{}", server.port);
        let why = refused(&url).await;
        assert!(why.contains("password"), "{login}: {why}");
        assert!(!why.contains("wrong@"), "{why}");
    }
    let url = format!("redis://127.0.0.1:{}?password=right", server.port);
    store_with(RedisSettings::new(url)).await;
}
