//! Copies of messages: they replace a delivery that cannot stay where it is, and are marked to
//! distinguish them from a message that was never delivered before.

use std::time::Duration;

use tokio::time::timeout;

use super::message_delivery::MessageDelivery;
use super::publish::publish;
use crate::backend::{Delivery, Queue, Recorded};
use crate::error::Error;
use crate::failpoints;
use crate::protocol::Message;

/// How long the publish of a copy may take when the copy replaces a requeue.
const COPY_TIMEOUT: Duration = Duration::from_secs(5);

impl MessageDelivery {
    /// Requeues a message that has not started, by a copy when it is near the delivery limit, so that
    /// repeated requeues never make the broker drop it. `source` is the queue it came from.
    pub(super) async fn requeue_unstarted(self, source: &Queue) {
        if !is_near_delivery_limit(source, &self.delivery) {
            return self.requeue();
        }
        let copy = fresh_copy(&self.delivery);
        let publishing = timeout(COPY_TIMEOUT, publish(&self.state, copy, source.clone(), None));
        match self.state.end_waits.run_until_cancelled(publishing).await {
            Some(Ok(Ok(recorded))) => self.ack(recorded),
            _ => self.requeue(),
        }
    }

    /// Replaces a message that has not started by a copy at the end of `queue`: the broker then counts its
    /// deliveries, and the time that it is held, from the start. Retries until the copy is confirmed or
    /// the worker ends all waits.
    pub(super) async fn replace(self, queue: &Queue) {
        let copy = fresh_copy(&self.delivery);
        let publishing = publish(&self.state, copy.clone(), queue.clone(), None);
        match self.state.end_waits.run_until_cancelled(publishing).await {
            Some(published) => self.settle_by_copy(published, copy, queue, None).await,
            None => self.requeue(),
        }
    }

    /// Publishes `copy` to `queue` by delayed delivery, runs `side_effect`, then acks the message: the next
    /// attempt is confirmed before this delivery is settled.
    pub(super) async fn requeue_delayed(
        self,
        queue: &Queue,
        copy: Message,
        delay: Duration,
        side_effect: impl Future<Output = ()>,
    ) {
        let effects = async {
            let published = publish(&self.state, copy.clone(), queue.clone(), Some(delay)).await;
            if published.is_ok() {
                failpoints::point("copy sent");
                side_effect.await;
            }
            published
        };
        match self.state.end_waits.run_until_cancelled(effects).await {
            Some(published) => self.settle_by_copy(published, copy, queue, Some(delay)).await,
            None => self.abandon(),
        }
    }

    /// Acks the message if its copy was published. A refused copy is published again later, or the message
    /// is dead-lettered.
    async fn settle_by_copy(
        self,
        published: Result<Recorded, Error>,
        copy: Message,
        queue: &Queue,
        delay: Option<Duration>,
    ) {
        match published {
            Ok(recorded) => self.ack(recorded),
            Err(error) if error.is_access_refused() => {
                self.keep_until_published(copy, queue.clone(), delay);
            }
            Err(error) => {
                let reason = format!("the message cannot be published again: {error}");
                Box::pin(self.dead_letter(&reason)).await;
            }
        }
    }
}

/// Returns whether the broker has delivered this message so often that its queue may soon drop it.
pub(super) fn is_near_delivery_limit(queue: &Queue, delivery: &Delivery) -> bool {
    let returns = delivery.message.delivery_count();
    returns.is_some_and(|returns| returns >= queue.worn_at())
}

/// Returns the same message without the broker's history. It is marked because the original may be
/// redelivered before its ack arrives: the worker that receives the copy reads the stored result first.
fn fresh_copy(delivery: &Delivery) -> Message {
    let mut copy = delivery.message.clone();
    copy.strip_history();
    copy.mark_returned();
    copy
}
