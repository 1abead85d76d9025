//! A fixture: data of its own for each case, and helpers for the cases.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign::backend::{
    Backends, Broker, Deliveries, Delivery, PublishRequest, Queue, RunOwner, Store, StoreResult,
};
use countersign::protocol::{Document, Headers, Message, Properties, TaskDigest};
use countersign::{Config, TaskId};
use support::TIMEOUT;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::backend::{self, Opened};

/// Longer than any case runs.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// An empty backend.
pub(crate) struct Fixture {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) store: Arc<dyn Store>,
    /// The name of a queue that does not exist yet.
    pub(crate) queue: Queue,
    pub(crate) config: Config,
    opened: Opened,
}

/// Returns the owner of a later run of the task with this digest.
pub(crate) fn run(digest: &str) -> RunOwner {
    RunOwner { digest: TaskDigest::from(digest.to_owned()), is_fresh: false }
}

impl Fixture {
    pub(crate) async fn on(config: Config, opened: Opened) -> Self {
        let Backends { broker, store, .. } = backend::open(&config, &opened).await;
        Self { broker, store, queue: Queue::new(support::queue_name()), config, opened }
    }

    /// Opens the same data, as another process would.
    pub(crate) async fn open(&self) -> Backends {
        backend::open(&self.config, &self.opened).await
    }

    /// Opens it with other settings. On a backend that processes cannot share, the data are new ones.
    pub(crate) async fn open_with(&self, change: impl FnOnce(&mut Config)) -> Backends {
        let mut config = self.config.clone();
        change(&mut config);
        backend::open(&config, &self.opened).await
    }

    /// Puts a message with this body into the queue.
    pub(crate) async fn send(&self, body: &str) -> Message {
        let message = message(body.to_owned());
        self.publish(message.clone()).await;
        message
    }

    pub(crate) async fn publish(&self, message: Message) {
        let _ = self.broker.publish(publish_request(message, &self.queue)).await.unwrap();
    }

    pub(crate) fn consume(&self, prefetch: u16) -> Deliveries {
        self.broker.consume(&self.queue, prefetch)
    }

    /// Returns the number of messages that wait in the queue.
    pub(crate) async fn ready(&self) -> u64 {
        self.broker.inspect(&self.queue.name).await.unwrap().map_or(0, |state| state.ready)
    }

    /// Waits until `count` messages wait in the queue.
    pub(crate) async fn until_ready(&self, count: u64) {
        eventually(&format!("{count} messages wait"), async || self.ready().await == count).await;
    }

    pub(crate) async fn finish(&self, id: &TaskId, status: &str, result: &str) -> Document {
        finish(&self.store, id, status, result).await
    }
}

/// Returns a task's message with this body.
pub(crate) fn message(body: impl Into<Bytes>) -> Message {
    let id = TaskId::random();
    let headers = [("id", id.as_str()), ("task", "test.conformance")];
    let headers: Headers =
        headers.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let properties = Properties {
        content_type: Some("application/json".into()),
        content_encoding: Some("utf-8".into()),
        correlation_id: Some(id.to_string()),
        message_id: Some(id.to_string()),
        priority: Some(0),
        ..Properties::default()
    };
    Message { id, headers: headers.into(), body: body.into(), properties }
}

/// Returns a request to publish to this queue without a delay.
pub(crate) fn publish_request(message: Message, queue: &Queue) -> PublishRequest {
    PublishRequest { message, queue: queue.clone(), delay: None, timeout: TIMEOUT }
}

/// Returns the body as text.
pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.to_vec()).unwrap()
}

/// Acks a delivery without storing anything.
pub(crate) fn settle(store: &Arc<dyn Store>, delivery: Delivery) {
    let proof = store.ignore_result(delivery.id());
    let _ = delivery.ack(proof).unwrap();
}

/// Acks the next delivery and returns its body.
pub(crate) async fn settle_next(store: &Arc<dyn Store>, deliveries: &mut Deliveries) -> String {
    let delivery = deliveries.next().await.unwrap();
    let body = text(&delivery);
    settle(store, delivery);
    body
}

/// Returns a result document.
pub(crate) fn document(id: &TaskId, status: &str, result: &str) -> Document {
    let json = serde_json::json!({ "result": result, "task_id": id }).to_string();
    // Celery writes the status first.
    let json = format!(r#"{{"status": "{status}", {}"#, &json[1..]);
    Document::parse(id.clone(), Bytes::from(json)).unwrap()
}

/// Passes a result to the store; returns the document of this result.
pub(crate) async fn finish(
    store: &Arc<dyn Store>,
    id: &TaskId,
    status: &str,
    result: &str,
) -> Document {
    let document = document(id, status, result);
    let finish = StoreResult { document: document.clone(), reply_to: None, received: None };
    let _ = store.store_result(finish).await.unwrap();
    document
}

/// Calls `call` concurrently this number of times; returns the results.
pub(crate) async fn race<T, F>(callers: usize, call: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    (0..callers).map(call).collect::<JoinSet<T>>().join_all().await
}

/// Waits until the condition holds.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let mut pace = interval(Duration::from_millis(10));
    let waiting = async {
        while !is_so().await {
            pace.tick().await;
        }
    };
    assert!(tokio::time::timeout(TIMEOUT / 2, waiting).await.is_ok(), "never: {what}");
}
