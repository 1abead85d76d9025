//! The store against real servers; each test has its own.

mod addresses;
mod approvals;
mod faults;
mod history;
mod pool;
mod results;
mod revoked;
mod server;
mod tls;
mod waits;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::server::{Server, eventually};
use super::{RedisSettings, RedisStore};
use crate::backend::{
    Connection as _, Journals as _, Origin, Outbox as _, Results as _, Revocations as _,
    StoreInfo as _, StoreResult, Streams as _, Suspensions as _,
};
use crate::error::Error;
use crate::protocol::{Document, State};

const SOON: Duration = Duration::from_secs(20);
/// A re-read interval that never elapses in tests of other behavior.
const NEVER: Duration = Duration::from_secs(3600);

async fn store_on(server: &Server) -> Arc<RedisStore> {
    store_with(RedisSettings { reread: NEVER, ..RedisSettings::new(server.url()) }).await
}

async fn store_with(settings: RedisSettings) -> Arc<RedisStore> {
    let store = RedisStore::connect(settings).unwrap();
    timeout(SOON, store.connected()).await.unwrap();
    store
}

/// Waits until the server has confirmed the subscription to the store's reply channel.
async fn listening(server: &Server, store: &RedisStore) {
    subscribers(server, store.reply_channel(), 1).await;
}

async fn subscribers(server: &Server, channel: &str, count: usize) {
    eventually("the channel is subscribed to", async || {
        let found: (String, usize) = server.command(&["PUBSUB", "NUMSUB", channel]).await;
        found.1 == count
    })
    .await;
}

fn key(id: &str) -> String {
    format!("celery-task-meta-{id}")
}

fn document(id: &str, status: &str, result: &str) -> Document {
    let json = format!(r#"{{"status": "{status}", "result": "{result}", "task_id": "{id}"}}"#);
    Document::parse(id.into(), Bytes::from(json)).unwrap()
}

fn success(id: &str) -> StoreResult {
    StoreResult { document: document(id, "SUCCESS", id), reply_to: None, received: None }
}

async fn finish(store: &RedisStore, id: &str, status: &str, result: &str) {
    let finish =
        StoreResult { document: document(id, status, result), reply_to: None, received: None };
    let _ = timeout(SOON, store.store_result(finish)).await.unwrap().unwrap();
}

async fn stored(store: &RedisStore, id: &str) -> Option<Document> {
    timeout(SOON, store.read_result(&id.into())).await.unwrap().unwrap()
}

type Wait = oneshot::Receiver<Result<Box<Document>, Error>>;

fn watch(store: &RedisStore, id: &str, origin: Origin) -> Wait {
    store.watch_result(id.into(), origin, Some(SOON))
}

async fn resolved(wait: Wait) -> Document {
    *timeout(SOON, wait).await.expect("stuck").expect("dropped").expect("an error")
}

fn is_success(document: &Document) -> bool {
    document.state == State::Success
}
