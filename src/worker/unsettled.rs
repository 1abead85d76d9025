//! Messages that cannot be settled for now, because the broker refuses their copies.
//!
//! If such a message were requeued, it would be redelivered at once, and a quorum queue would drop it at
//! its delivery limit. It is kept unsettled instead, without a permit, and its copy is published again
//! after a growing delay. When the prefetch is full of such messages, that queue is not consumed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info};

use super::message_delivery::{MessageDelivery, ack};
use crate::backend::{PublishRequest, Queue};
use crate::protocol::Message;

const FIRST_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

impl MessageDelivery {
    /// Keeps the message unsettled, and publishes `copy` to `queue` until the broker confirms it; then
    /// acks. Requeues the message when the worker drains, or before the broker's consumer timeout.
    pub(super) fn keep_until_published(self, copy: Message, queue: Queue, delay: Option<Duration>) {
        let Self { state, delivery, .. } = self;
        let (broker, drop_runs) = (Arc::clone(&state.backends.broker), state.drop_runs.clone());
        let timeout = state.config.publish_timeout;
        let requeue_at = delivery.received + state.max_unsettled;
        tokio::spawn(async move {
            let publishing = async {
                let mut retry_delay = FIRST_RETRY_DELAY;
                while !delivery.is_stale() {
                    sleep(retry_delay.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                    retry_delay = (retry_delay * 2).min(MAX_RETRY_DELAY);
                    let (message, queue) = (copy.clone(), queue.clone());
                    match broker.publish(PublishRequest { message, queue, delay, timeout }).await {
                        Ok(recorded) => return Some(recorded),
                        Err(error) => {
                            debug!(task.id = %copy.id, "the copy is refused again: {error}");
                        }
                    }
                }
                None
            };
            let recorded = tokio::select! {
                biased;
                () = drop_runs.cancelled() => None,
                () = sleep_until(requeue_at) => None,
                recorded = publishing => recorded,
            };
            match recorded {
                Some(recorded) => {
                    info!(task.id = %delivery.id(), "the copy was published to {}", queue.name);
                    ack(delivery, recorded);
                }
                None => drop(delivery.release()),
            }
        });
    }

    /// Keeps the message unsettled for a minute, and then requeues it, so that its task does not run again
    /// at once.
    pub(super) fn requeue_later(self) {
        let Self { state, delivery, .. } = self;
        let drop_runs = state.drop_runs.clone();
        let requeue_at =
            (delivery.received + state.max_unsettled).min(Instant::now() + MAX_RETRY_DELAY);
        tokio::spawn(async move {
            tokio::select! {
                () = drop_runs.cancelled() => {}
                () = sleep_until(requeue_at) => {}
            }
            drop(delivery.release());
        });
    }
}
