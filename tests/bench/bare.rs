//! The program to compare with: a good engineer's hand-written client and worker on lapin and redis for this
//! one task. It loses nothing in a crash and pipelines everything, but does not handle network faults.

use std::collections::HashMap;
use std::env;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redis::aio::MultiplexedConnection;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};
use uuid::Uuid;

use crate::role::{Numbers, Result, Role, print};
use crate::work::{self, Work};
use crate::{batches, load};

const PERSISTENT: u8 = 2;
pub(crate) const RESULT_SECONDS: u64 = 24 * 60 * 60;
const REPLY_PREFIX: &str = "cs:reply:";

pub(crate) async fn connect() -> Result<(Connection, Channel)> {
    let url = env::var("COUNTERSIGN_BROKER_URL")?;
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

pub(crate) fn redis_client() -> Result<redis::Client> {
    Ok(redis::Client::open(env::var("COUNTERSIGN_STORE_URL")?)?)
}

/// `is_improved`: with what a good engineer would add.
pub(crate) async fn play(role: Role, payload: String, is_improved: bool) -> Result<()> {
    let numbers = match role {
        Role::Worker { queue, concurrency } => return work(&queue, concurrency, is_improved).await,
        Role::Enqueue { queue, count, in_flight } => {
            let producer = Producer::connect(queue, is_improved).await?;
            let send = || async { producer.send(&task_id(), &payload, 0, "").await };
            load::enqueue(count, in_flight, send).await?
        }
        Role::Calls { queue, count, callers } => {
            let caller = Arc::new(Caller::connect(queue, is_improved).await?);
            let call = move || {
                let (caller, payload) = (Arc::clone(&caller), payload.clone());
                async move {
                    caller.enqueue(&payload).await?.await?;
                    Ok(())
                }
            };
            load::calls(count, callers, call).await?
        }
        Role::Streams { .. }
        | Role::Suspend { .. }
        | Role::Decide { .. }
        | Role::Cycle { .. }
        | Role::Limited { .. }
        | Role::Pools { .. }
        | Role::Race { .. }
        | Role::Suspended { .. }
        | Role::Across { .. }
        | Role::Finish { .. }
        | Role::Pruned
        | Role::Embedded { .. } => {
            return Err("a bare loop has neither streams nor approvals nor limits".into());
        }
        Role::Waiters { queue, count } => {
            let caller = Caller::connect(queue, is_improved).await?;
            let mut waits = Vec::with_capacity(count);
            let mut sent = futures_util::stream::iter(0..count)
                .map(|_| caller.enqueue(""))
                .buffer_unordered(64);
            while let Some(wait) = sent.next().await {
                waits.push(wait?);
            }
            print(&Numbers::from([("waiting".to_owned(), count as f64)]));
            futures_util::future::join_all(waits).await;
            return Ok(());
        }
    };
    print(&numbers);
    Ok(())
}

async fn work(queue: &str, concurrency: usize, is_improved: bool) -> Result<()> {
    let (_connection, channel) = connect().await?;
    let store = redis_client()?.get_multiplexed_async_connection().await?;
    let prefetch = u16::try_from(concurrency * 2)?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(queue.into(), "bare".into(), options, FieldTable::default()).await?;
    let (ran, settling) = mpsc::unbounded_channel();
    tokio::spawn(batches::settle(settling, channel.clone(), store.clone()));
    let slots = Arc::new(Semaphore::new(concurrency));
    while let Some(delivery) = consumer.next().await {
        let (delivery, store, ran) = (delivery?, store.clone(), ran.clone());
        let slot = Arc::clone(&slots).acquire_owned().await?;
        tokio::spawn(async move {
            let settled = match run(&delivery).await {
                Ok(task) if is_improved => ran.send(task).map_err(Into::into),
                Ok(task) => settle(delivery, task, store).await,
                Err(error) => Err(error),
            };
            if let Err(error) = settled {
                eprintln!("bare: {error}");
            }
            drop(slot);
        });
    }
    Ok(())
}

/// A task that has run.
pub(crate) struct Ran {
    pub(crate) tag: u64,
    pub(crate) key: String,
    pub(crate) document: String,
    pub(crate) reply: Option<String>,
}

async fn run(delivery: &Delivery) -> Result<Ran> {
    let headers = delivery.properties.headers().as_ref().ok_or("no headers")?.inner();
    let Some(AMQPValue::LongString(id)) = headers.get("id") else {
        return Err("no id".into());
    };
    let id = std::str::from_utf8(id.as_bytes())?;
    let (_, work, _): (IgnoredAny, Work, IgnoredAny) = serde_json::from_slice(&delivery.data)?;
    let answer = work.perform().await;
    let document = format!(
        r#"{{"status": "SUCCESS", "result": {answer}, "traceback": null, "children": [], "task_id": "{id}"}}"#
    );
    let key = format!("celery-task-meta-{id}");
    let reply = delivery.properties.reply_to().as_ref().map(ShortString::as_str);
    let reply = reply.filter(|reply| reply.starts_with(REPLY_PREFIX)).map(str::to_owned);
    Ok(Ran { tag: delivery.delivery_tag, key, document, reply })
}

async fn settle(delivery: Delivery, ran: Ran, mut store: MultiplexedConnection) -> Result<()> {
    let Ran { key, document, reply, .. } = ran;
    redis::pipe()
        .cmd("SET")
        .arg(&key)
        .arg(&document)
        .arg("EX")
        .arg(RESULT_SECONDS)
        .ignore()
        .cmd("PUBLISH")
        .arg(reply.as_ref().unwrap_or(&key))
        .arg(&document)
        .ignore()
        .query_async::<()>(&mut store)
        .await?;
    delivery.ack(BasicAckOptions::default()).await?;
    Ok(())
}

pub(crate) fn task_id() -> String {
    Uuid::new_v4().to_string()
}

/// Publishes tasks in the format of a Celery client, and waits for each confirm.
pub(crate) struct Producer {
    _connection: Connection,
    channel: Channel,
    queue: String,
    /// Whether it leaves out the headers that no worker needs.
    is_lean: bool,
}

impl Producer {
    pub(crate) async fn connect(queue: String, is_lean: bool) -> Result<Self> {
        let (connection, channel) = connect().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel, queue, is_lean })
    }

    pub(crate) async fn send(
        &self,
        id: &str,
        payload: &str,
        pause_ms: u64,
        reply_to: &str,
    ) -> Result<()> {
        let work = Work { payload: payload.to_owned(), pause_ms };
        let kwargs = format!("{{'payload': '{payload}', 'pause_ms': {pause_ms}}}");
        let body = serde_json::to_vec(&([(); 0], work, Embed::default()))?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm = self
            .channel
            .basic_publish(
                "".into(),
                self.queue.as_str().into(),
                options,
                &body,
                properties(id, &kwargs, reply_to, self.is_lean),
            )
            .await?;
        if confirm.await?.is_ack() { Ok(()) } else { Err("not taken".into()) }
    }
}

/// The third part of a body, the callbacks. This task has none.
#[derive(Default, Serialize)]
struct Embed {
    callbacks: Option<()>,
    errbacks: Option<()>,
    chain: Option<()>,
    chord: Option<()>,
}

/// Enqueues tasks and receives their results on its own pub/sub channel.
struct Caller {
    producer: Producer,
    reply_to: String,
    waiting: Arc<Mutex<HashMap<String, oneshot::Sender<Vec<u8>>>>>,
}

impl Caller {
    async fn connect(queue: String, is_lean: bool) -> Result<Self> {
        let reply_to = format!("{REPLY_PREFIX}{}", task_id());
        let mut replies = redis_client()?.get_async_pubsub().await?;
        replies.subscribe(&reply_to).await?;
        let waiting = Arc::<Mutex<HashMap<String, oneshot::Sender<Vec<u8>>>>>::default();
        let waiters = Arc::clone(&waiting);
        tokio::spawn(async move {
            let mut replies = replies.into_on_message();
            while let Some(reply) = replies.next().await {
                let document = reply.get_payload_bytes();
                let Ok(Head { task_id }) = serde_json::from_slice(document) else { continue };
                let waiter = waiters.lock().unwrap_or_else(PoisonError::into_inner).remove(task_id);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(document.to_vec());
                }
            }
        });
        Ok(Self { producer: Producer::connect(queue, is_lean).await?, reply_to, waiting })
    }

    async fn enqueue(&self, payload: &str) -> Result<oneshot::Receiver<Vec<u8>>> {
        let id = task_id();
        let (waiter, wait) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), waiter);
        self.producer.send(&id, payload, 0, &self.reply_to).await?;
        Ok(wait)
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    task_id: &'a str,
}

/// The headers that a Celery client sets.
fn properties(id: &str, kwargs: &str, reply_to: &str, is_lean: bool) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("lang", text("py")),
        ("task", text(work::NAME)),
        ("id", text(id)),
        ("shadow", AMQPValue::Void),
        ("eta", AMQPValue::Void),
        ("expires", AMQPValue::Void),
        ("group", AMQPValue::Void),
        ("group_index", AMQPValue::Void),
        ("retries", AMQPValue::LongInt(0)),
        ("timelimit", AMQPValue::FieldArray(vec![AMQPValue::Void, AMQPValue::Void].into())),
        ("root_id", text(id)),
        ("parent_id", AMQPValue::Void),
        ("argsrepr", text("()")),
        ("kwargsrepr", text(kwargs)),
        ("origin", text("gen1@bench")),
        ("ignore_result", AMQPValue::Boolean(false)),
        ("replaced_task_nesting", AMQPValue::LongInt(0)),
        ("stamped_headers", AMQPValue::Void),
        ("stamps", AMQPValue::FieldTable(FieldTable::default())),
    ] {
        if !is_lean || matches!(name, "lang" | "task" | "id" | "root_id" | "origin") {
            headers.insert(name.into(), value);
        }
    }
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_correlation_id(id.into())
        .with_reply_to(reply_to.into())
        .with_priority(0)
        .with_headers(headers)
}
