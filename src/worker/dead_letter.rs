//! Dead letters: what no worker can run goes to `<queue>.dead` with its reason, and its waiter gets a failure.

use serde_json::Value;
use tracing::{error, warn};

use super::canvas::Broken;
use super::claim::Claim;
use super::copies::first_received;
use super::settle::{ack, finish, publish, release, tell};
use super::{Crew, canvas, unsettled};
use crate::backend::{Delivery, Finish, Queue};
use crate::clock;
use crate::error::Failure;
use crate::protocol::{
    DIED_AT, Document, Envelope, HEADER_LIMIT, Message, RAW_HEADERS, REASON, SOURCE, UNREADABLE,
    Unreadable,
};

/// The headers of a dead letter are held under this; and only within it does a message say how its
/// attempts failed.
pub(super) const HEADER_ROOM: usize = HEADER_LIMIT / 2;

/// A message that is no task: into the dead letters; a waiter for its id gets a failure.
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
            document: Document::failure_of(&message.id, &failure, clock::now()),
            reply_to: message.properties.reply_to.clone(),
            received: None,
        }
    });
    bury(crew, queue, delivery, &unreadable.reason, tell(crew, told)).await;
}

/// A task that cannot be run here: into the dead letters, and it has failed.
pub(super) async fn bury_task(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    reason: &str,
    failure: &Failure,
    claim: &Claim,
) {
    warn!(
        task.id = %envelope.id, task.name = %envelope.name, attempt = envelope.attempt,
        error = %failure, "task failed and is dead-lettered"
    );
    let document = Document::failed(envelope, failure, clock::now());
    let received = first_received(&delivery, envelope, claim);
    let told = (!envelope.ignore_result).then(|| finish(envelope, document, received));
    let effects = async {
        tell(crew, told).await;
        let broken = Broken::Failed(failure.clone());
        canvas::after_failure(crew, queue, envelope, &broken, received.is_none()).await;
        claim.end(crew, envelope).await;
    };
    bury(crew, queue, delivery, reason, Box::pin(effects)).await;
}

/// Copies a message to the dead-letter queue, runs `beside`, then acks.
pub(super) async fn bury(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    reason: &str,
    beside: impl Future<Output = ()>,
) {
    warn!(task.id = %delivery.id(), "to {}: {reason}", queue.dead().name);
    let copy = epitaph(&delivery.message, queue, reason);
    let effects = async {
        let recorded = publish(crew, copy, queue.dead(), None).await;
        beside.await;
        recorded
    };
    match crew.give_up.run_until_cancelled(effects).await {
        Some(Ok(recorded)) => ack(delivery, recorded),
        Some(Err(error)) => {
            error!(task.id = %delivery.id(), "cannot publish its dead letter, trying again: {error}");
            let copy = epitaph(&delivery.message, queue, reason);
            unsettled::keep(crew, delivery, copy, queue.dead(), None);
        }
        None => release(crew, delivery),
    }
}

/// The dead letter: the message as it came, and why it is here.
fn epitaph(message: &Message, queue: &Queue, reason: &str) -> Message {
    let mut copy = message.clone();
    copy.strip_history();
    copy.headers.remove(UNREADABLE);
    let raw = copy.headers.remove(RAW_HEADERS);
    let dropped = copy.fit_headers(HEADER_ROOM);
    if !dropped.is_empty() {
        warn!(task.id = %copy.id, "headers too large for a dead letter were dropped: {dropped:.200?}");
    }
    copy.properties.expiration = None;
    let told: String = reason.chars().take(1024).collect();
    copy.headers.insert(REASON.into(), Value::String(told));
    copy.headers.insert(SOURCE.into(), Value::String(queue.name.clone()));
    copy.headers.insert(DIED_AT.into(), Value::String(clock::now().to_string()));
    if let Some(raw) = raw {
        copy.headers.insert(RAW_HEADERS.into(), raw);
        copy.fit_headers(HEADER_LIMIT);
    }
    copy
}
