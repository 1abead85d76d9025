//! Consuming one queue over as many channels as it takes, and settling what was delivered.

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
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::link::{Link, Live};
use super::topology::Undeclared;
use super::{codec, ladder, topology};
use crate::backend::{Delivery, Queue, Receipt};
use crate::lifecycle::{AckLedger, Frame, Settlement};

const CANCEL_DEADLINE: Duration = Duration::from_secs(5);
const PROBE_PAUSE: Duration = Duration::from_secs(15);
const REOPEN_PAUSE: Duration = Duration::from_millis(500);
/// How long a refused consumer may wait before it is tried again.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// Ack frames waited for at once: awaiting each one alone costs three to five times the CPU.
const ACKS_IN_FLIGHT: usize = 64;
const ACK_BATCH: usize = 512;

/// The answer to a stop: sent once the broker has promised to deliver no more.
pub(super) type Stop = oneshot::Receiver<oneshot::Sender<()>>;

pub(super) struct Intake {
    pub(super) link: Link,
    pub(super) queue: Queue,
    pub(super) prefetch: u16,
    /// How long the broker may be silent: a shorter pause of it redelivers nothing.
    pub(super) silence_limit: Duration,
    pub(super) deliver: mpsc::Sender<Delivery>,
    pub(super) consuming: watch::Sender<bool>,
    pub(super) acks: TaskTracker,
}

enum Ended {
    Stopped,
    Lost(String),
    /// The broker's user may not consume the queue.
    Refused,
    Abandoned,
}

impl Intake {
    /// Delivers until it is stopped. A lost channel is opened again; what it had delivered is
    /// stale then, and comes again.
    pub(super) async fn run(self, mut stop: Stop) {
        let mut pause = REOPEN_PAUSE;
        loop {
            let live = tokio::select! {
                biased;
                stopped = &mut stop => return answer(stopped),
                live = self.link.live() => match live {
                    Some(live) => live,
                    None => return,
                },
            };
            match self.session(&live, &mut stop).await {
                Ended::Stopped | Ended::Abandoned => return,
                Ended::Lost(why) => {
                    pause = REOPEN_PAUSE;
                    warn!("lost the consumer of {}: {why}", self.queue.name);
                }
                // Logged once, where it is noted.
                Ended::Refused => pause = (pause * 2).min(REFUSED_PAUSE),
            }
            let pause = rand::rng().random_range(pause / 4..pause);
            tokio::select! {
                biased;
                stopped = &mut stop => return answer(stopped),
                () = sleep(pause) => {}
            }
        }
    }

    async fn session(&self, live: &Live, stop: &mut Stop) -> Ended {
        let what = format!("consuming {}", self.queue.name);
        let opened = timeout(self.silence_limit.max(OPEN_DEADLINE), self.open(live)).await;
        let (channel, consumer) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(Undeclared::Unknown(why))) => return Ended::Lost(why),
            Ok(Err(Undeclared::Refused(why))) => {
                live.refusals.note(&what, &why);
                return Ended::Refused;
            }
            Err(_) => {
                self.link.broken(live.generation);
                return Ended::Lost("no answer".into());
            }
        };
        live.refusals.clear(&what);
        info!(prefetch = self.prefetch, "consuming {}", self.queue.name);
        self.consuming.send_replace(true);
        let (settlements, settled) = mpsc::unbounded_channel();
        let lost = CancellationToken::new();
        self.acks.spawn(write_acks(channel.clone(), settled, lost.clone()));
        let ended = self.deliver(live, &channel, consumer, settlements, stop).await;
        self.consuming.send_replace(false);
        if matches!(ended, Ended::Lost(_)) {
            lost.cancel();
        }
        ended
    }

    /// Makes sure that the queue exists and that delayed messages arrive in it, then consumes it.
    async fn open(&self, live: &Live) -> Result<(Channel, Consumer), Undeclared> {
        let connection = &live.connection;
        topology::declare(connection, &self.queue).await?;
        let delays = format!("delayed delivery to {}", self.queue.name);
        match ladder::bind(connection, &self.queue).await {
            Ok(()) => live.refusals.clear(&delays),
            // Tasks without a delay need none of it.
            Err(Undeclared::Refused(why)) => live.refusals.note(&delays, &why),
            Err(unknown) => return Err(unknown),
        }
        let levels = live.clone();
        tokio::spawn(async move {
            if let Err(Undeclared::Unknown(why)) = levels.declare_levels().await {
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
        live: &Live,
        channel: &Channel,
        mut consumer: Consumer,
        settlements: mpsc::UnboundedSender<Settlement>,
        stop: &mut Stop,
    ) -> Ended {
        let mut wedged = pin!(self.wedged(live, channel));
        loop {
            let next = tokio::select! {
                biased;
                stopped = &mut *stop => {
                    self.cancel(channel, consumer, &settlements).await;
                    answer(stopped);
                    return Ended::Stopped;
                }
                next = consumer.next() => next,
                why = &mut wedged => return Ended::Lost(why),
            };
            let delivery = match next {
                Some(Ok(delivery)) => receive(delivery, &settlements),
                Some(Err(error)) => return Ended::Lost(error.to_string()),
                // The broker ended the subscription: the queue was deleted, or its leader moved.
                None => return Ended::Lost("the broker cancelled it".into()),
            };
            // There is room for every unsettled delivery of a channel, so this waits only while
            // stale ones of the channel before are still being taken out.
            tokio::select! {
                biased;
                sent = self.deliver.send(delivery) => if sent.is_err() {
                    return Ended::Abandoned;
                },
                stopped = &mut *stop => {
                    self.cancel(channel, consumer, &settlements).await;
                    answer(stopped);
                    return Ended::Stopped;
                }
                why = &mut wedged => return Ended::Lost(why),
            }
        }
    }

    /// Completes when the channel does not answer any more. A channel can be dead while its
    /// connection looks healthy, and its consumer says nothing then. The connection is replaced: a new
    /// channel on it would not answer either.
    async fn wedged(&self, live: &Live, channel: &Channel) -> String {
        let queue = codec::short(&self.queue.name).unwrap_or_default();
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        loop {
            sleep(PROBE_PAUSE).await;
            let probe = channel.queue_declare(queue.clone(), look, FieldTable::default());
            match timeout(self.silence_limit, probe).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => {
                    self.link.broken(live.generation);
                    return "its channel does not answer".into();
                }
            }
        }
    }

    /// Stops the flow: once this returns, no delivery comes any more, and those that were on
    /// their way have been given back.
    async fn cancel(
        &self,
        channel: &Channel,
        mut consumer: Consumer,
        settlements: &mpsc::UnboundedSender<Settlement>,
    ) {
        let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        if !matches!(timeout(CANCEL_DEADLINE, cancel).await, Ok(Ok(()))) {
            debug!("no answer to the cancellation of {}", self.queue.name);
            return;
        }
        while let Some(Ok(delivery)) = consumer.next().await {
            let _ = self.deliver.try_send(receive(delivery, settlements));
        }
    }
}

fn answer(stopped: Result<oneshot::Sender<()>, oneshot::error::RecvError>) {
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

/// Writes acks until every delivery of the channel is settled, or the channel is lost; then closes
/// it. An ack that never leaves here costs a redelivery, nothing else.
pub(super) async fn write_acks(
    channel: Channel,
    mut settled: mpsc::UnboundedReceiver<Settlement>,
    lost: CancellationToken,
) {
    let mut ledger = AckLedger::default();
    let mut batch = Vec::with_capacity(ACK_BATCH);
    let mut writes = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = lost.cancelled() => return,
            Some(written) = writes.next() => if let Err(error) = written {
                debug!("acks are lost with their channel: {error}");
                return;
            },
            count = settled.recv_many(&mut batch, ACK_BATCH), if writes.len() < ACKS_IN_FLIGHT => {
                if count == 0 {
                    break;
                }
                for frame in ledger.settle(&mut batch) {
                    let mut write = Box::pin(write(channel.clone(), frame));
                    // Polled once here, each frame is queued in the ledger's order.
                    if poll!(&mut write).is_pending() {
                        writes.push(write);
                    }
                }
            }
        }
    }
    while writes.next().await.is_some() {}
    let _ = timeout(CANCEL_DEADLINE, channel.close(200, "OK".into())).await;
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
