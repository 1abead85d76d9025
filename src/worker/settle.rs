//! From an outcome to a durable effect, and then the ack. The only place that settles.

use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::{Crew, suspects};
use crate::backend::{Delivery, Finish, Parcel, Queue, Recorded};
use crate::error::Failure;
use crate::lifecycle::Outcome;
use crate::protocol::{
    DIED_AT, Document, Envelope, HEADER_LIMIT, Message, REASON, SOURCE, UNKNOWN_SINCE, Unreadable,
};
use crate::task::TaskId;

const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);
/// A quorum queue of RabbitMQ 4 drops or buries a message after 20 returns: from half of that on
/// it is sent again instead, which counts afresh.
const MANY_RETURNS: u64 = 10;
const RETRY_CEILING: Duration = Duration::from_secs(5);

/// Makes `outcome` durable, then acks; or gives the delivery back.
pub(super) async fn settle(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    outcome: Outcome,
) {
    let now = Timestamp::now();
    let document = match outcome {
        Outcome::Done(json) => Document::success(envelope, &json, &[], now),
        Outcome::Failed(failure) => {
            info!(task.name = %envelope.name, task.id = %envelope.id, "failed: {failure}");
            Document::failed(envelope, &failure, now)
        }
        Outcome::Retry(failure, pause) => {
            return retry(crew, queue, delivery, envelope, &failure, pause).await;
        }
        Outcome::Postponed(pause) => {
            return send_on(crew, queue, delivery, envelope.encode(), pause, None).await;
        }
        Outcome::Revoked(reason) => Document::revoked(envelope, reason, now),
        Outcome::Known(document) => document,
        Outcome::Repeated => {
            info!(task.id = %envelope.id, "another copy of it runs, or has run: not run again");
            return ack(delivery, crew.backends.store.ignore(&envelope.id));
        }
        Outcome::Convicted(times) => {
            let failure = Failure::worker_lost(times);
            let document = Document::failed(envelope, &failure, now);
            let told = (!envelope.ignore_result).then(|| finish(envelope, document));
            suspects::acquit(crew, &delivery).await;
            return bury(crew, queue, delivery, &failure.message(), told).await;
        }
        Outcome::Unknown => {
            if let Some(later) = grace(crew, envelope, now) {
                let pause = UNKNOWN_PAUSE.mul_f64(0.5 + rand::random::<f64>());
                return send_on(crew, queue, delivery, later.encode(), pause, None).await;
            }
            let failure = Failure::not_registered(&envelope.name);
            let reason = format!("no handler for {}", envelope.name);
            let document = Document::failed(envelope, &failure, now);
            let told = (!envelope.ignore_result).then(|| finish(envelope, document));
            return bury(crew, queue, delivery, &reason, told).await;
        }
        Outcome::Released => {
            abandon(crew, &envelope.id);
            return give_back(crew, queue, delivery).await;
        }
    };
    let recorded = if envelope.ignore_result {
        Ok(crew.backends.store.ignore(&envelope.id))
    } else {
        let finished = crew.backends.store.finish(finish(envelope, document));
        match crew.give_up.run_until_cancelled(finished).await {
            Some(finished) => finished,
            None => return release(crew, delivery),
        }
    };
    match recorded {
        Ok(recorded) => ack(delivery, recorded),
        Err(error) => {
            error!(task.id = %envelope.id, "the result cannot be stored: {error}");
            let reason = format!("result cannot be stored: {error}");
            bury(crew, queue, delivery, &reason, None).await;
        }
    }
}

/// An unknown task within its grace, to be looked at again: another worker may know it by then.
fn grace(crew: &Crew, envelope: &Envelope, now: Timestamp) -> Option<Envelope> {
    let since = envelope.headers.get(UNKNOWN_SINCE).and_then(Value::as_str);
    let since = since.and_then(|text| text.parse::<Timestamp>().ok()).unwrap_or(now);
    let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if waited >= crew.unknown_grace {
        return None;
    }
    let mut later = envelope.clone();
    later.headers.insert(UNKNOWN_SINCE.into(), Value::String(since.to_string()));
    Some(later)
}

/// The next attempt is confirmed before this one is acked, and the waiters are told in between.
async fn retry(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    failure: &Failure,
    pause: Duration,
) {
    let now = Timestamp::now();
    info!(task.name = %envelope.name, task.id = %envelope.id, "retry in {pause:?}: {failure}");
    let mut next = envelope.clone();
    next.attempt = envelope.attempt.saturating_add(1);
    next.eta = now.saturating_add(pause).ok();
    next.lineage.parent_id = Some(envelope.id.clone());
    let told = (!envelope.ignore_result)
        .then(|| finish(envelope, Document::retry(envelope, failure, now)));
    send_on(crew, queue, delivery, next.encode(), pause, told).await;
}

/// Sends a copy on its way through the delay ladder, tells the waiters, then acks.
async fn send_on(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    message: Message,
    pause: Duration,
    told: Option<Finish>,
) {
    let effects = async {
        let recorded = publish(crew, message, queue.clone(), Some(pause)).await;
        if let Some(finish) = told
            && let Err(error) = crew.backends.store.finish(finish).await
        {
            error!("a retry cannot be told: {error}");
        }
        recorded
    };
    match crew.give_up.run_until_cancelled(effects).await {
        Some(recorded) => ack(delivery, recorded),
        None => release(crew, delivery),
    }
}

/// A message that is no task: into the dead letters, and whoever waits for its id is told.
pub(super) async fn bury_unreadable(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    unreadable: Unreadable,
) {
    let message = &delivery.message;
    let told = message.names_its_task().then(|| {
        let failure = Failure::new("countersign.errors", "Unreadable", unreadable.reason.clone());
        Finish {
            document: Document::failure_of(&message.id, &failure, Timestamp::now()),
            reply_to: message.properties.reply_to.clone(),
        }
    });
    bury(crew, queue, delivery, &unreadable.reason, told).await;
}

/// Copies a message to the dead-letter queue, stores its failure if there is one, then acks.
async fn bury(crew: &Crew, queue: &Queue, delivery: Delivery, reason: &str, told: Option<Finish>) {
    warn!(task.id = %delivery.id(), "to {}: {reason}", queue.dead().name);
    let copy = epitaph(&delivery.message, queue, reason);
    let effects = async {
        let recorded = publish(crew, copy, queue.dead(), None).await;
        if let Some(finish) = told
            && let Err(error) = crew.backends.store.finish(finish).await
        {
            error!("a failure cannot be stored: {error}");
        }
        recorded
    };
    match crew.give_up.run_until_cancelled(effects).await {
        Some(recorded) => ack(delivery, recorded),
        None => release(crew, delivery),
    }
}

/// The dead letter: the message as it came, and why it is here.
fn epitaph(message: &Message, queue: &Queue, reason: &str) -> Message {
    let mut copy = message.clone();
    copy.strip_history();
    let dropped = copy.fit_headers(HEADER_LIMIT / 2);
    if !dropped.is_empty() {
        warn!(task.id = %copy.id, "headers too large for a dead letter were dropped: {dropped:.200?}");
    }
    copy.properties.expiration = None;
    let told: String = reason.chars().take(1024).collect();
    copy.headers.insert(REASON.into(), Value::String(told));
    copy.headers.insert(SOURCE.into(), Value::String(queue.name.clone()));
    copy.headers.insert(DIED_AT.into(), Value::String(Timestamp::now().to_string()));
    copy
}

/// Publishes until the broker has confirmed.
async fn publish(crew: &Crew, message: Message, queue: Queue, delay: Option<Duration>) -> Recorded {
    let mut backoff = Duration::from_millis(100);
    loop {
        let parcel = Parcel {
            message: message.clone(),
            queue: queue.clone(),
            delay,
            timeout: crew.config.publish_timeout,
        };
        match crew.backends.broker.publish(parcel).await {
            Ok(recorded) => return recorded,
            Err(error) => warn!(task.id = %message.id, "{error}; trying again"),
        }
        sleep(backoff.mul_f64(rand::random())).await;
        backoff = (backoff * 2).min(RETRY_CEILING);
    }
}

fn finish(envelope: &Envelope, document: Document) -> Finish {
    Finish { document, reply_to: envelope.reply_to.clone() }
}

fn ack(delivery: Delivery, recorded: Recorded) {
    match delivery.ack(recorded) {
        Ok(_settled) => {}
        Err(delivery) => {
            error!(task.id = %delivery.id(), "a proof of another task was offered for this one");
            let _ = delivery.release();
        }
    }
}

/// It was started, and will be again.
fn release(crew: &Crew, delivery: Delivery) {
    abandon(crew, delivery.id());
    let _ = delivery.release();
}

fn abandon(crew: &Crew, id: &TaskId) {
    debug!(task.id = %id, "given back");
    crew.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
}

/// Returns a message to its queue, as often as it takes: no delivery limit drops it.
pub(super) async fn give_back(crew: &Crew, queue: &Queue, delivery: Delivery) {
    let returns = delivery.message.headers.get("x-delivery-count").and_then(Value::as_u64);
    if returns.is_none_or(|returns| returns < MANY_RETURNS) {
        let _ = delivery.release();
        return;
    }
    let mut copy = delivery.message.clone();
    copy.strip_history();
    copy.mark_returned();
    let sent = timeout(RETRY_CEILING, publish(crew, copy, queue.clone(), None));
    match crew.give_up.run_until_cancelled(sent).await {
        Some(Ok(recorded)) => ack(delivery, recorded),
        _ => drop(delivery.release()),
    }
}
