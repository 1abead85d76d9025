//! Where a promise is kept: data that no other promise has, and the words in which promises speak.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign::backend::{
    Backends, Broker, Deliveries, Delivery, Finish, Parcel, Queue, RunOwner, Store,
};
use countersign::protocol::{Document, Headers, Message, Properties, TaskDigest};
use countersign::{Config, TaskId};
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::land::{self, Opened};

/// Nothing here takes so long, unless it is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any promise is looked at.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A backend with nothing in it.
pub(crate) struct Ground {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) store: Arc<dyn Store>,
    /// The name of a queue that does not exist yet.
    pub(crate) queue: Queue,
    pub(crate) config: Config,
    opened: Opened,
}

/// A later run of the task with this digest.
pub(crate) fn run(digest: &str) -> RunOwner {
    RunOwner { digest: TaskDigest::from(digest.to_owned()), is_fresh: false }
}

impl Ground {
    pub(crate) async fn on(config: Config, opened: Opened) -> Self {
        let Backends { broker, store, .. } = land::open(&config, &opened).await;
        Self { broker, store, queue: Queue::new(support::queue_name()), config, opened }
    }

    /// The same data, as another process would have them.
    pub(crate) async fn open(&self) -> Backends {
        land::open(&self.config, &self.opened).await
    }

    /// With other settings. Where several processes cannot share data, these are others.
    pub(crate) async fn open_with(&self, change: impl FnOnce(&mut Config)) -> Backends {
        let mut config = self.config.clone();
        change(&mut config);
        land::open(&config, &self.opened).await
    }

    /// Puts a message with this body into the queue.
    pub(crate) async fn send(&self, body: &str) -> Message {
        let message = message(body.to_owned());
        self.publish(message.clone()).await;
        message
    }

    pub(crate) async fn publish(&self, message: Message) {
        let _ = self.broker.publish(parcel(message, &self.queue)).await.unwrap();
    }

    pub(crate) fn consume(&self, prefetch: u16) -> Deliveries {
        self.broker.consume(&self.queue, prefetch)
    }

    /// Messages that wait in the queue.
    pub(crate) async fn ready(&self) -> u64 {
        self.broker.inspect(&self.queue.name).await.unwrap().map_or(0, |state| state.ready)
    }

    /// Waits until so many do.
    pub(crate) async fn until_ready(&self, count: u64) {
        eventually(&format!("{count} messages wait"), async || self.ready().await == count).await;
    }

    pub(crate) async fn finish(&self, id: &TaskId, status: &str, result: &str) -> Document {
        finish(&self.store, id, status, result).await
    }
}

/// A task's message with this body.
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
    Message { id, headers, body: body.into(), properties }
}

/// Into this queue, at once.
pub(crate) fn parcel(message: Message, queue: &Queue) -> Parcel {
    Parcel { message, queue: queue.clone(), delay: None, timeout: PATIENCE }
}

/// The body as the text that it was made of.
pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.to_vec()).unwrap()
}

/// Acks a delivery that leaves nothing.
pub(crate) fn settle(store: &Arc<dyn Store>, delivery: Delivery) {
    let proof = store.ignore(delivery.id());
    let _ = delivery.ack(proof).unwrap();
}

/// The next delivery's body; acked.
pub(crate) async fn settle_next(store: &Arc<dyn Store>, deliveries: &mut Deliveries) -> String {
    let delivery = deliveries.next().await.unwrap();
    let body = text(&delivery);
    settle(store, delivery);
    body
}

/// A result document.
pub(crate) fn document(id: &TaskId, status: &str, result: &str) -> Document {
    let json = serde_json::json!({ "result": result, "task_id": id }).to_string();
    // Celery writes the status first.
    let json = format!(r#"{{"status": "{status}", {}"#, &json[1..]);
    Document::parse(id.clone(), Bytes::from(json)).unwrap()
}

/// Stores a result; returns what was to be stored.
pub(crate) async fn finish(
    store: &Arc<dyn Store>,
    id: &TaskId,
    status: &str,
    result: &str,
) -> Document {
    let document = document(id, status, result);
    let finish = Finish { document: document.clone(), reply_to: None, received: None };
    let _ = store.finish(finish).await.unwrap();
    document
}

/// What so many callers are told who call at the same time.
pub(crate) async fn race<T, F>(callers: usize, call: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    (0..callers).map(call).collect::<JoinSet<T>>().join_all().await
}

/// Waits until this is so.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let mut pace = interval(Duration::from_millis(10));
    let waiting = async {
        while !is_so().await {
            pace.tick().await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE / 2, waiting).await.is_ok(), "never: {what}");
}
