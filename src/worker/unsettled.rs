//! Messages that cannot be settled for now, because the broker refuses their copies.
//!
//! Returned to its queue, such a message would come back at once, and a quorum queue would drop it at its
//! delivery limit. It is kept unsettled instead, without a slot, and its copy is published again after a
//! growing delay. When the prefetch is full of such messages, that queue is not consumed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info};

use super::{Crew, settle};
use crate::backend::{Delivery, Parcel, Queue};
use crate::protocol::Message;

const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// Keeps `delivery`, and publishes `copy` to `queue` until the broker confirms it; then acks. Gives the
/// delivery back when the worker drains, or before the broker's consumer timeout.
pub(super) fn keep(
    crew: &Crew,
    delivery: Delivery,
    copy: Message,
    queue: Queue,
    delay: Option<Duration>,
) {
    let broker = Arc::clone(&crew.backends.broker);
    let (timeout, abort) = (crew.config.publish_timeout, crew.abort.clone());
    let release_at = delivery.received + crew.longest_hold;
    tokio::spawn(async move {
        let publishing = async {
            let mut pause = FIRST_DELAY;
            while !delivery.is_stale() {
                sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                pause = (pause * 2).min(LONGEST_DELAY);
                let (message, queue) = (copy.clone(), queue.clone());
                match broker.publish(Parcel { message, queue, delay, timeout }).await {
                    Ok(recorded) => return Some(recorded),
                    Err(error) => debug!(task.id = %copy.id, "its copy is still refused: {error}"),
                }
            }
            None
        };
        let recorded = tokio::select! {
            biased;
            () = abort.cancelled() => None,
            () = sleep_until(release_at) => None,
            recorded = publishing => recorded,
        };
        match recorded {
            Some(recorded) => {
                info!(task.id = %delivery.id(), "its copy was sent to {}", queue.name);
                settle::ack(delivery, recorded);
            }
            None => drop(delivery.release()),
        }
    });
}

/// Keeps `delivery` for a minute, and then gives it back: it is to run again, and not at once.
pub(super) fn withhold(crew: &Crew, delivery: Delivery) {
    let abort = crew.abort.clone();
    let release_at = (delivery.received + crew.longest_hold).min(Instant::now() + LONGEST_DELAY);
    tokio::spawn(async move {
        tokio::select! {
            () = abort.cancelled() => {}
            () = sleep_until(release_at) => {}
        }
        drop(delivery.release());
    });
}
