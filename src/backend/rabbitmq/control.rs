//! Celery's remote control: a mailbox of our own on its fanout exchange, and replies to callers.
//!
//! The mailbox has its own channel, and so has each reply: an error here affects no task. The mailbox
//! name is unique. So two workers with the same node name do not lock each other out, and a
//! reconnecting worker does not wait until the broker deletes the mailbox of its lost connection.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer, ExchangeKind};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::codec;
use super::connection::{ConnectionHandle, OpenConnection};
use crate::protocol::control::{ControlReply, REPLY_EXCHANGE};
use crate::protocol::{Message, Properties};
use crate::task::TaskId;

const EXCHANGE: &str = "celery.pidbox";
/// As Celery declares it: it expires 10 s after its worker, and requests wait for 5 minutes at most.
const EXPIRES_MS: i32 = 10_000;
const MESSAGE_TTL_MS: i32 = 300_000;
/// Requests that the worker has not taken yet; the others wait in the mailbox.
const PREFETCH: u16 = 64;
const DEADLINE: Duration = Duration::from_secs(5);
const REOPEN_DELAY: Duration = Duration::from_secs(1);
const REFUSED_DELAY: Duration = Duration::from_secs(30);

/// The mailbox of one worker.
pub(super) struct Mailbox {
    pub(super) node: String,
    pub(super) consuming: ConnectionHandle,
    pub(super) publishing: ConnectionHandle,
    pub(super) deliver: mpsc::Sender<Message>,
    pub(super) replies: mpsc::Receiver<ControlReply>,
}

impl Mailbox {
    /// Serves until the connection handle is closed, or the receiver is dropped.
    pub(super) async fn run(self) {
        let handle = self.consuming.clone();
        tokio::select! {
            () = handle.closed() => {}
            () = self.keep_open() => {}
        }
    }

    async fn keep_open(mut self) {
        let mut last_error = None;
        while let Some(live) = self.consuming.live().await {
            let opened = timeout(DEADLINE, open(&live, &self.node)).await;
            match opened {
                Ok(Ok((_channel, consumer))) => {
                    info!("listening to Celery's remote control as {}", self.node);
                    if self.serve(consumer).await.is_none() {
                        return;
                    }
                    sleep(REOPEN_DELAY).await;
                }
                Ok(Err(why)) => {
                    if last_error.as_ref() != Some(&why) {
                        warn!("cannot listen to remote control by Celery; retrying: {why}");
                        last_error = Some(why);
                    }
                    sleep(REFUSED_DELAY).await;
                }
                Err(_) => sleep(REOPEN_DELAY).await,
            }
        }
    }

    /// Forwards requests and sends replies until the channel is lost. Returns `None` when the receiver
    /// is dropped.
    async fn serve(&mut self, mut consumer: Consumer) -> Option<()> {
        let mut next = None;
        loop {
            tokio::select! {
                delivery = consumer.next(), if next.is_none() => match delivery {
                    Some(Ok(delivery)) => next = Some(delivery),
                    Some(Err(_)) | None => return Some(()),
                },
                permit = self.deliver.reserve(), if next.is_some() => {
                    let permit = permit.ok()?;
                    if let Some(delivery) = next.take() {
                        permit.send(codec::decode(&delivery.properties, delivery.data));
                        if delivery.acker.ack(BasicAckOptions::default()).await.is_err() {
                            return Some(());
                        }
                    }
                }
                reply = self.replies.recv() => self.send_reply(reply?).await,
            }
        }
    }

    /// Sends a reply, or drops it if it cannot be sent at once: a late reply is useless to the caller.
    async fn send_reply(&self, reply: ControlReply) {
        let Some(live) = self.publishing.current() else { return };
        if live.blocked.borrow().is_some() {
            return;
        }
        match timeout(DEADLINE, send(&live, reply)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => debug!("cannot send a reply of remote control: {why}"),
            Err(_) => debug!("cannot send a reply of remote control: timed out"),
        }
    }
}

async fn open(live: &OpenConnection, node: &str) -> Result<(Channel, Consumer), String> {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let queue = codec::short(&format!("{node}.{}.{EXCHANGE}", &unique[..8]))?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(EXPIRES_MS));
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(MESSAGE_TTL_MS));
    let mailbox = QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    };
    let acked = BasicConsumeOptions::default();
    let none = FieldTable::default;
    let open = async {
        let channel = live.connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let fanout = ExchangeDeclareOptions::default();
        channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Fanout, fanout, none()).await?;
        channel.queue_declare(queue.clone(), mailbox, arguments).await?;
        let bind = QueueBindOptions::default();
        channel.queue_bind(queue.clone(), EXCHANGE.into(), "".into(), bind, none()).await?;
        let consumer = channel.basic_consume(queue, "".into(), acked, none()).await?;
        Ok::<_, lapin::Error>((channel, consumer))
    };
    open.await.map_err(|error| error.to_string())
}

async fn send(live: &OpenConnection, reply: ControlReply) -> Result<(), String> {
    let message = Message {
        id: TaskId::random(),
        headers: reply.headers.into(),
        body: reply.body,
        properties: Properties {
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            ..Properties::default()
        },
    };
    let properties = codec::encode(&message)?;
    let key = codec::short(&reply.routing_key)?;
    let send = async {
        let channel = live.connection.create_channel().await?;
        let options = BasicPublishOptions::default();
        let body = &message.body;
        channel.basic_publish(REPLY_EXCHANGE.into(), key, options, body, properties).await?.await?;
        channel.close(200, "OK".into()).await
    };
    send.await.map_err(|error| error.to_string())
}
