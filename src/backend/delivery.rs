//! Messages as they are handed to us, and the right to settle each of them.

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Recorded;
use crate::lifecycle::Settlement;
use crate::protocol::Message;
use crate::protocol::control::Answer;
use crate::task::TaskId;

/// Proof that a delivery has left our hands. The ack itself is queued, not yet written; a drain
/// waits for the flush.
#[derive(Debug)]
#[must_use]
pub struct Settled(());

/// A message in our hands, not yet settled. Dropped unsettled, it goes back to its queue.
#[derive(Debug)]
pub struct Delivery {
    /// What was delivered.
    pub message: Message,
    /// The broker has handed this message out before.
    pub redelivered: bool,
    /// When it was delivered: the broker's consumer timeout counts from here.
    pub received: Instant,
    receipt: Option<Receipt>,
}

/// The right to settle one delivery, good only on the channel that delivered it.
#[derive(Debug)]
pub(in crate::backend) struct Receipt {
    pub(in crate::backend) tag: u64,
    pub(in crate::backend) settlements: mpsc::UnboundedSender<Settlement>,
}

impl Delivery {
    pub(in crate::backend) fn new(message: Message, redelivered: bool, receipt: Receipt) -> Self {
        Self { message, redelivered, received: Instant::now(), receipt: Some(receipt) }
    }

    /// Whose delivery it is.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.message.id
    }

    /// The channel that delivered it is gone, so the broker delivers it again.
    pub(crate) fn is_stale(&self) -> bool {
        self.receipt.as_ref().is_some_and(|receipt| receipt.settlements.is_closed())
    }

    /// Completes when the channel that delivered it is gone; never once it is settled. The future
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

    /// Tells the broker that this message is done with.
    ///
    /// # Errors
    /// Gives the delivery back when `recorded` is another task's.
    pub fn ack(mut self, recorded: Recorded) -> Result<Settled, Box<Self>> {
        let Recorded { id } = recorded;
        if id != self.message.id {
            return Err(Box::new(self));
        }
        Ok(self.settle(Settlement::Ack))
    }

    /// The same, of a message that is still needed: settling it later does nothing. Says whether
    /// `recorded` is of its task.
    pub fn ack_early(&mut self, recorded: &Recorded) -> bool {
        let is_own = recorded.id == self.message.id;
        if is_own {
            let _ = self.settle(Settlement::Ack);
        }
        is_own
    }

    /// Gives the message back to its queue.
    pub fn release(mut self) -> Settled {
        self.settle(Settlement::Requeue)
    }

    fn settle(&mut self, how: fn(u64) -> Settlement) -> Settled {
        if let Some(receipt) = self.receipt.take() {
            // A closed ack task means a dead channel: the broker has taken the message back.
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
pub type Fetched = (Vec<Delivery>, Flushed);

/// Completes when all that came together is settled, and the broker knows it: what went back is in
/// its queue again.
#[derive(Debug)]
pub struct Flushed(pub(in crate::backend) JoinHandle<()>);

impl Flushed {
    /// Waits for that. Settle or drop every delivery first.
    pub async fn wait(self) {
        // A client that was closed meanwhile has given everything back.
        let _ = self.0.await;
    }
}

/// The messages of one queue as they come, over as many connections as it takes.
#[derive(Debug)]
pub struct Deliveries {
    pub(in crate::backend) incoming: mpsc::Receiver<Delivery>,
    pub(in crate::backend) consuming: watch::Receiver<bool>,
    pub(in crate::backend) stop: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

impl Deliveries {
    /// Whether the broker delivers right now: false until the queue is there and a consumer on it,
    /// and while a connection is away.
    #[must_use]
    pub fn consuming(&self) -> watch::Receiver<bool> {
        self.consuming.clone()
    }

    /// The next message. Waits through reconnects; `None` only when the broker was closed.
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

    /// Stops consuming, waits until the broker has said that it will deliver no more, and returns
    /// every message that was prefetched and not taken.
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

/// What is broadcast to Celery's workers, and the way to answer it.
#[derive(Debug)]
pub struct Control {
    pub(in crate::backend) incoming: mpsc::Receiver<Message>,
    pub(in crate::backend) answers: mpsc::Sender<Answer>,
}

impl Control {
    /// The next control message, whatever is in it. Waits through reconnects, in which those that
    /// are broadcast meanwhile are lost, as in Celery; `None` only when the broker was closed.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Message> {
        self.incoming.recv().await
    }

    /// A control message that has come already.
    pub fn ready(&mut self) -> Option<Message> {
        self.incoming.try_recv().ok()
    }

    /// Sends an answer, if there is one, and if it can be sent now: a late one is of no use.
    pub fn answers(&self, answer: Option<Answer>) {
        if let Some(answer) = answer {
            let _ = self.answers.try_send(answer);
        }
    }
}
