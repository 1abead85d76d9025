//! Copies of messages: what is sent in place of a delivery that cannot stay where it is, and how a copy
//! is distinguished from a message that was never delivered before.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::time::timeout;
use tracing::warn;

use super::claim::Claim;
use super::dead_letter::bury;
use super::settle::{ack, publish};
use super::{Crew, unsettled};
use crate::backend::{Deed, Delivery, Queue};
use crate::clock;
use crate::error::Error;
use crate::protocol::{Document, Envelope, Message, State};

/// How long a copy may take in place of a return.
const COPY_DEADLINE: Duration = Duration::from_secs(5);

/// When a message was received that had never been delivered before and is the first of its task.
pub(super) fn first_received(
    delivery: &Delivery,
    envelope: &Envelope,
    claim: &Claim,
) -> Option<Timestamp> {
    let is_first = !delivery.redelivered && envelope.attempt == 1 && !claim.came_with_ticket();
    let ago = SignedDuration::try_from(delivery.received.elapsed()).ok()?;
    is_first.then(|| clock::now().saturating_sub(ago).ok()).flatten()
}

/// Takes back the failure or revocation of an earlier task with this id, before the task goes on by
/// another message: that one reads the stored result, and would take the old one for its own.
pub(super) async fn supersede(
    crew: &Crew,
    queue: &Queue,
    delivery: &Delivery,
    envelope: &Envelope,
    claim: &Claim,
) {
    let Some(received) = first_received(delivery, envelope, claim) else { return };
    let superseding = take_back_older(crew, queue, envelope, received);
    if let Some(Err(error)) = crew.give_up.run_until_cancelled(superseding).await {
        warn!(task.id = %envelope.id, "cannot look for an older result of this id: {error}");
    }
}

/// The same, of a message that was received then.
pub(super) async fn take_back_older(
    crew: &Crew,
    queue: &Queue,
    envelope: &Envelope,
    received: Timestamp,
) -> Result<(), Error> {
    let stored = crew.backends.store.read(&envelope.id).await?;
    let is_older = |stored: Document| {
        matches!(stored.state, State::Failure | State::Revoked)
            && stored.date_done().is_some_and(|done| done < received)
    };
    if stored.is_some_and(is_older) {
        let (id, queue, by) = (envelope.id.clone(), queue.name.clone(), crew.name.clone());
        let deed = Deed { what: Deed::SUPERSEDE, id, queue, by };
        crew.backends.store.reopen(deed, 1).await?;
    }
    Ok(())
}

/// Whether the broker has delivered this message so often that its queue may soon drop it.
pub(super) fn is_worn(queue: &Queue, delivery: &Delivery) -> bool {
    let returns = delivery.message.headers.get("x-delivery-count").and_then(Value::as_u64);
    returns.is_some_and(|returns| returns >= queue.worn_at())
}

/// Returns a message that has not started to its queue. Repeated returns never let a delivery limit
/// drop it.
pub(super) async fn give_back(crew: &Crew, queue: &Queue, delivery: Delivery) {
    if !is_worn(queue, &delivery) {
        let _ = delivery.release();
        return;
    }
    let copy = fresh_copy(&delivery);
    let sent = timeout(COPY_DEADLINE, publish(crew, copy, queue.clone(), None));
    match crew.give_up.run_until_cancelled(sent).await {
        Some(Ok(Ok(recorded))) => ack(delivery, recorded),
        _ => drop(delivery.release()),
    }
}

/// Replaces a message that has not started by a copy at the end of `source`, where it came from: the
/// broker counts its deliveries, and the time that it is held, from the start. Tries until the copy is
/// confirmed or the worker gives up.
pub(super) async fn replace(crew: &Crew, queue: &Queue, source: &Queue, delivery: Delivery) {
    let copy = fresh_copy(&delivery);
    let kept = copy.clone();
    let sent = publish(crew, copy, source.clone(), None);
    match crew.give_up.run_until_cancelled(sent).await {
        Some(Ok(recorded)) => ack(delivery, recorded),
        Some(Err(error)) if error.is_access_refused() => {
            unsettled::keep(crew, delivery, kept, source.clone(), None);
        }
        Some(Err(error)) => {
            let reason = format!("it cannot be sent again: {error}");
            bury(crew, queue, delivery, &reason, async {}).await;
        }
        None => drop(delivery.release()),
    }
}

/// The same message without the broker's history. Marked, since the original may be delivered again
/// before its ack arrives: the worker that takes the copy reads the stored result first.
fn fresh_copy(delivery: &Delivery) -> Message {
    let mut copy = delivery.message.clone();
    copy.strip_history();
    copy.mark_returned();
    copy
}
