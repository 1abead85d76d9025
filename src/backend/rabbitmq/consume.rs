//! Consumes one queue over successive channels, and settles the deliveries.

use std::pin::pin;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, poll};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use rand::Rng;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::connection::{ConnectionHandle, OpenConnection};
use super::topology::DeclareError;
use super::{codec, delayed_delivery, topology};
use crate::backend::{Delivery, Queue, Receipt};
use crate::lifecycle::{AckLedger, Frame, Settlement};

const CANCEL_DEADLINE: Duration = Duration::from_secs(5);
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const REOPEN_DELAY: Duration = Duration::from_millis(500);
/// The longest delay before a refused consumer is retried.
const REFUSED_DELAY: Duration = Duration::from_secs(30);
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// Concurrent ack frames: awaiting them one by one costs three to five times the CPU.
const ACKS_IN_FLIGHT: usize = 64;
const ACK_BATCH: usize = 512;
/// How long an ack waits for those of earlier deliveries, so that one frame covers them all: a few round trips
/// to the store.
const ACK_DELAY: Duration = Duration::from_millis(20);
/// From this number of acks at once, the next ones are gathered for the time of [`GATHER`]: the broker handles one
/// frame for all of them, and writes what it delivers in their place at once.
const BUSY: usize = 8;
const GATHER: Duration = Duration::from_millis(1);
/// The share of the prefetch that may wait: the broker delivers nothing in its place.
const ACK_SHARE: usize = 2;

/// The request to stop; the reply is sent once the broker has confirmed that it delivers no more.
pub(super) type Stop = oneshot::Receiver<oneshot::Sender<()>>;

pub(super) struct QueueConsumer {
    pub(super) handle: ConnectionHandle,
    pub(super) queue: Queue,
    pub(super) prefetch: u16,
    /// The longest silence of the broker: a shorter pause causes no redelivery.
    pub(super) silence_limit: Duration,
    pub(super) deliver: mpsc::Sender<Delivery>,
    pub(super) consuming: watch::Sender<bool>,
    pub(super) acks: TaskTracker,
}

enum ConsumeEnd {
    Stopped,
    Lost(String),
    /// The broker's user may not consume the queue.
    Refused,
    Abandoned,
}

impl QueueConsumer {
    /// Delivers until it is stopped. Reopens a lost channel; its deliveries are then stale, and the
    /// broker redelivers them.
    pub(super) async fn run(self, mut stop: Stop) {
        let mut delay = REOPEN_DELAY;
        loop {
            let live = tokio::select! {
                biased;
                stopped = &mut stop => return confirm_stop(stopped),
                live = self.handle.live() => match live {
                    Some(live) => live,
                    None => return,
                },
            };
            match self.consume_once(&live, &mut stop).await {
                ConsumeEnd::Stopped | ConsumeEnd::Abandoned => return,
                ConsumeEnd::Lost(why) => {
                    delay = REOPEN_DELAY;
                    warn!("lost the consumer of {}: {why}", self.queue.name);
                }
                // The refusal is logged once, where it is noted.
                ConsumeEnd::Refused => delay = (delay * 2).min(REFUSED_DELAY),
            }
            let delay = rand::rng().random_range(delay / 4..delay);
            tokio::select! {
                biased;
                stopped = &mut stop => return confirm_stop(stopped),
                () = sleep(delay) => {}
            }
        }
    }

    async fn consume_once(&self, live: &OpenConnection, stop: &mut Stop) -> ConsumeEnd {
        let what = format!("consuming {}", self.queue.name);
        let opened = timeout(self.silence_limit.max(OPEN_DEADLINE), self.open(live)).await;
        let (channel, consumer) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(DeclareError::Unknown(why))) => return ConsumeEnd::Lost(why),
            Ok(Err(DeclareError::Refused(why))) => {
                live.refusals.note(&what, &why);
                return ConsumeEnd::Refused;
            }
            Err(_) => {
                self.handle.broken(live.generation);
                return ConsumeEnd::Lost("no reply".into());
            }
        };
        live.refusals.clear(&what);
        info!(prefetch = self.prefetch, "consuming {}", self.queue.name);
        self.consuming.send_replace(true);
        let (settlements, settled) = mpsc::unbounded_channel();
        let lost = CancellationToken::new();
        let (acking, is_lost) = (channel.clone(), lost.clone());
        let max_held = usize::from(self.prefetch) / ACK_SHARE;
        self.acks.spawn(async move {
            if write_acks(&acking, settled, max_held, is_lost).await {
                let _ = timeout(CANCEL_DEADLINE, acking.close(200, "OK".into())).await;
            }
        });
        let ended = self.deliver(live, &channel, consumer, settlements, stop).await;
        self.consuming.send_replace(false);
        if matches!(ended, ConsumeEnd::Lost(_)) {
            lost.cancel();
        }
        ended
    }

    /// Ensures that the queue exists and that delayed messages reach it, then consumes it.
    async fn open(&self, live: &OpenConnection) -> Result<(Channel, Consumer), DeclareError> {
        let connection = &live.connection;
        topology::declare(&live.channels, &self.queue).await?;
        let delays = format!("delayed delivery to {}", self.queue.name);
        match delayed_delivery::bind(&live.channels, &self.queue).await {
            Ok(()) => live.refusals.clear(&delays),
            // Tasks without a delay do not need the delay exchanges.
            Err(DeclareError::Refused(why)) => live.refusals.note(&delays, &why),
            Err(unknown) => return Err(unknown),
        }
        let levels = live.clone();
        tokio::spawn(async move {
            if let Err(DeclareError::Unknown(why)) = levels.declare_levels().await {
                debug!("cannot declare the delayed-delivery exchanges: {why}");
            }
        });
        let open = async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(self.prefetch, BasicQosOptions::default()).await?;
            let tag = format!("countersign-{}", uuid::Uuid::new_v4());
            let consumer = channel
                .basic_consume(
                    codec::short(&self.queue.name).unwrap_or_default(),
                    codec::short(&tag).unwrap_or_default(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                )
                .await?;
            Ok::<_, lapin::Error>((channel, consumer))
        };
        open.await.map_err(topology::access_refused("read"))
    }

    async fn deliver(
        &self,
        live: &OpenConnection,
        channel: &Channel,
        mut consumer: Consumer,
        settlements: mpsc::UnboundedSender<Settlement>,
        stop: &mut Stop,
    ) -> ConsumeEnd {
        let mut detect_stall = pin!(self.detect_stall(live, channel));
        loop {
            let next = tokio::select! {
                biased;
                stopped = &mut *stop => {
                    self.cancel(channel, consumer, &settlements).await;
                    confirm_stop(stopped);
                    return ConsumeEnd::Stopped;
                }
                next = consumer.next() => next,
                why = &mut detect_stall => return ConsumeEnd::Lost(why),
            };
            let delivery = match next {
                Some(Ok(delivery)) => receive(delivery, &settlements),
                Some(Err(error)) => return ConsumeEnd::Lost(error.to_string()),
                // The broker ended the subscription: the queue was deleted, or its leader moved.
                None => return ConsumeEnd::Lost("the broker cancelled it".into()),
            };
            // The worker's channel has capacity for every unsettled delivery. So this waits only while stale
            // deliveries of the previous channel are being taken out.
            tokio::select! {
                biased;
                sent = self.deliver.send(delivery) => if sent.is_err() {
                    return ConsumeEnd::Abandoned;
                },
                stopped = &mut *stop => {
                    self.cancel(channel, consumer, &settlements).await;
                    confirm_stop(stopped);
                    return ConsumeEnd::Stopped;
                }
                why = &mut detect_stall => return ConsumeEnd::Lost(why),
            }
        }
    }

    /// Completes when the channel no longer responds. A channel can be dead while its connection looks
    /// healthy, and its consumer then reports nothing. Replaces the connection, because a new channel
    /// on it would not respond either.
    async fn detect_stall(&self, live: &OpenConnection, channel: &Channel) -> String {
        let queue = codec::short(&self.queue.name).unwrap_or_default();
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        loop {
            sleep(PROBE_INTERVAL).await;
            let probe = channel.queue_declare(queue.clone(), passive, FieldTable::default());
            match timeout(self.silence_limit, probe).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => {
                    self.handle.broken(live.generation);
                    return "its channel does not respond".into();
                }
            }
        }
    }

    /// Cancels the consumer. After it returns, no more deliveries arrive. Those that were in flight are
    /// in the worker's channel, or requeued if it had no capacity.
    async fn cancel(
        &self,
        channel: &Channel,
        mut consumer: Consumer,
        settlements: &mpsc::UnboundedSender<Settlement>,
    ) {
        let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if !matches!(timeout(CANCEL_DEADLINE, cancel).await, Ok(Ok(()))) {
            debug!("no reply to the cancellation of {}", self.queue.name);
            return;
        }
        while let Some(Ok(delivery)) = consumer.next().await {
            let _ = self.deliver.try_send(receive(delivery, settlements));
        }
    }
}

fn confirm_stop(stopped: Result<oneshot::Sender<()>, oneshot::error::RecvError>) {
    if let Ok(stopped) = stopped {
        let _ = stopped.send(());
    }
}

pub(super) fn receive(
    delivery: lapin::message::Delivery,
    settlements: &mpsc::UnboundedSender<Settlement>,
) -> Delivery {
    let receipt = Receipt { tag: delivery.delivery_tag, settlements: settlements.clone() };
    let message = codec::decode(&delivery.properties, delivery.data);
    Delivery::new(message, delivery.redelivered, receipt)
}

/// Writes acks until every delivery of the channel is settled; then returns true. Returns false when the
/// channel is lost. A lost ack only causes a redelivery. At most `max_held` acks wait for earlier ones, for
/// at most [`ACK_DELAY`].
pub(super) async fn write_acks(
    channel: &Channel,
    mut settled: mpsc::UnboundedReceiver<Settlement>,
    max_held: usize,
    lost: CancellationToken,
) -> bool {
    let mut ledger = AckLedger::default();
    let mut batch = Vec::with_capacity(ACK_BATCH);
    let mut writes = FuturesUnordered::new();
    let mut delay = pin!(sleep(ACK_DELAY));
    let (mut is_open, mut is_busy) = (true, false);
    while is_open {
        let mut frames = Vec::new();
        tokio::select! {
            biased;
            () = lost.cancelled() => return false,
            Some(written) = writes.next() => if let Err(error) = written {
                debug!("acks are lost with their channel: {error}");
                return false;
            },
            count = settled.recv_many(&mut batch, ACK_BATCH), if writes.len() < ACKS_IN_FLIGHT => {
                // Lets other tasks whose results were stored at the same time add their acks.
                if is_busy {
                    sleep(GATHER).await;
                } else {
                    tokio::task::yield_now().await;
                }
                while let Ok(settlement) = settled.try_recv() {
                    batch.push(settlement);
                }
                is_busy = batch.len() >= BUSY;
                let were_held = ledger.held();
                frames = ledger.settle(&mut batch);
                is_open = count > 0;
                if !is_open || ledger.held() > max_held {
                    frames.extend(ledger.flush());
                } else if were_held == 0 {
                    delay.as_mut().reset(Instant::now() + ACK_DELAY);
                }
            }
            () = &mut delay, if ledger.held() > 0 => frames = ledger.flush(),
        }
        for frame in frames {
            let mut write = Box::pin(write(channel.clone(), frame));
            // Polling once queues the frame, in the ledger's order.
            if poll!(&mut write).is_pending() {
                writes.push(write);
            }
        }
    }
    is_open = true;
    while let Some(written) = writes.next().await {
        is_open &= written.is_ok();
    }
    is_open
}

async fn write(channel: Channel, frame: Frame) -> Result<(), lapin::Error> {
    match frame {
        Frame::Ack { tag, multiple } => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
        Frame::Requeue { tag } => {
            let options = BasicNackOptions { multiple: false, requeue: true };
            channel.basic_nack(tag, options).await
        }
    }
}
