//! Deliveries, and the right to settle each of them.

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Recorded;
use crate::lifecycle::Settlement;
use crate::protocol::Message;
use crate::protocol::control::ControlReply;
use crate::task::TaskId;

/// Proof that a delivery is settled. The ack is queued but not yet written; a drain waits for the flush.
#[derive(Debug)]
#[must_use]
pub struct Settled(());

/// A delivered message that is not settled yet. If dropped unsettled, it returns to its queue.
#[derive(Debug)]
pub struct Delivery {
    /// The delivered message.
    pub message: Message,
    /// Whether the broker has delivered this message before.
    pub redelivered: bool,
    /// When it was delivered: the broker's consumer timeout starts here.
    pub received: Instant,
    receipt: Option<Receipt>,
}

/// The right to settle one delivery, valid only on the channel that delivered it.
#[derive(Debug)]
pub(in crate::backend) struct Receipt {
    pub(in crate::backend) tag: u64,
    pub(in crate::backend) settlements: mpsc::UnboundedSender<Settlement>,
}

impl Delivery {
    pub(in crate::backend) fn new(message: Message, redelivered: bool, receipt: Receipt) -> Self {
        Self { message, redelivered, received: Instant::now(), receipt: Some(receipt) }
    }

    /// Returns the id of its task.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.message.id
    }

    /// Returns whether the channel that delivered it is closed: the broker then redelivers it.
    pub(crate) fn is_stale(&self) -> bool {
        self.receipt.as_ref().is_some_and(|receipt| receipt.settlements.is_closed())
    }

    /// Completes when the channel that delivered it is closed; never after it is settled. The future
    /// does not borrow the delivery. Cancel safe.
    pub(crate) fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let settlements = self.receipt.as_ref().map(|receipt| receipt.settlements.downgrade());
        async move {
            match settlements.and_then(|settlements| settlements.upgrade()) {
                Some(settlements) => settlements.closed().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Acks the message.
    ///
    /// # Errors
    /// Returns the delivery when `recorded` belongs to another task.
    pub fn ack(mut self, recorded: Recorded) -> Result<Settled, Box<Self>> {
        let Recorded { id } = recorded;
        if id != self.message.id {
            return Err(Box::new(self));
        }
        Ok(self.settle(Settlement::Ack))
    }

    /// Acks a message that is still needed: settling it later has no effect. Returns whether `recorded`
    /// belongs to its task.
    pub fn ack_early(&mut self, recorded: &Recorded) -> bool {
        let is_own = recorded.id == self.message.id;
        if is_own {
            let _ = self.settle(Settlement::Ack);
        }
        is_own
    }

    /// Requeues the message.
    pub fn release(mut self) -> Settled {
        self.settle(Settlement::Requeue)
    }

    fn settle(&mut self, how: fn(u64) -> Settlement) -> Settled {
        if let Some(receipt) = self.receipt.take() {
            // A closed ack task means a closed channel: the broker has requeued the message.
            let _ = receipt.settlements.send(how(receipt.tag));
        }
        Settled(())
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let _ = self.settle(Settlement::Requeue);
    }
}

/// Messages that were taken off the head of a queue, in their order.
pub type Fetched = (Vec<Delivery>, SettleBarrier);

/// Completes when all deliveries of a fetch are settled and the broker has processed that: released
/// messages are in their queue again.
#[derive(Debug)]
pub struct SettleBarrier(pub(in crate::backend) JoinHandle<()>);

impl SettleBarrier {
    /// Waits for that. Settle or drop every delivery first.
    pub async fn wait(self) {
        // If the client was closed, all deliveries are already requeued.
        let _ = self.0.await;
    }
}

/// The messages of one queue as they arrive, over any number of connections.
#[derive(Debug)]
pub struct Deliveries {
    pub(in crate::backend) incoming: mpsc::Receiver<Delivery>,
    pub(in crate::backend) consuming: watch::Receiver<bool>,
    pub(in crate::backend) stop: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

impl Deliveries {
    /// Returns whether the broker delivers now: false until the queue exists and has our consumer, and
    /// while there is no connection.
    #[must_use]
    pub fn consuming(&self) -> watch::Receiver<bool> {
        self.consuming.clone()
    }

    /// Returns the next message. Waits through reconnects; returns `None` only after the broker was closed.
    ///
    /// Cancel safe: a message is either returned or still queued.
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            let delivery = self.incoming.recv().await?;
            if !delivery.is_stale() {
                return Some(delivery);
            }
        }
    }

    /// Stops consuming, waits until the broker has confirmed that it will deliver no more, and returns
    /// every message that was prefetched but not returned by [`Deliveries::next`].
    pub async fn stop(mut self) -> Vec<Delivery> {
        let (stopped, wait) = oneshot::channel();
        if let Some(stop) = self.stop.take()
            && stop.send(stopped).is_ok()
        {
            let _ = wait.await;
        }
        self.incoming.close();
        let mut left = Vec::new();
        while let Some(delivery) = self.next().await {
            left.push(delivery);
        }
        left
    }
}

/// Messages that are broadcast to Celery's workers, and the channel for replies.
#[derive(Debug)]
pub struct Control {
    pub(in crate::backend) incoming: mpsc::Receiver<Message>,
    pub(in crate::backend) replies: mpsc::Sender<ControlReply>,
}

impl Control {
    /// Returns the next control message, whatever its content. Waits through reconnects; messages that are
    /// broadcast during a reconnect are lost, as in Celery. Returns `None` only after the broker was closed.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Message> {
        self.incoming.recv().await
    }

    /// Returns a control message that has already arrived.
    pub fn ready(&mut self) -> Option<Message> {
        self.incoming.try_recv().ok()
    }

    /// Sends a reply, if there is one and the channel has capacity: a late reply is useless.
    pub fn reply(&self, reply: Option<ControlReply>) {
        if let Some(reply) = reply {
            let _ = self.replies.try_send(reply);
        }
    }
}
