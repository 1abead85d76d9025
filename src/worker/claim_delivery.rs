//! Decides for a message of a task that may be suspended whether its delivery runs the task.

use std::sync::Once;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::claim::{Claim, StoredResult, occupied_reason};
use super::message_delivery::MessageDelivery;
use super::outcome::Outcome;
use super::results::prior_result;
use super::state::{STORE_RETRY_DELAY, WorkerState};
use super::suspension::wake_queue;
use super::task_delivery::TaskDelivery;
use crate::backend::{AuditAction, ClaimResult, Queue};
use crate::error::Failure;
use crate::failpoints;
use crate::lifecycle::suspension;
use crate::protocol::{Envelope, SuspendHeader, SuspendKind, TaskDigest};

/// A task that only a newer worker can continue is requeued with this delay.
const NEWER_DELAY: Duration = Duration::from_secs(5);
/// The reason for a wake message whose task may have ended, although the store has no record of it.
const OUTLIVED: &str = "this wake message is over 7 days old, and the store knows nothing of its task any \
    more: the task has probably ended, and its result is left as it is. If it has not, replay this message";

/// Returns the delivery and its claim if the delivery is to run; otherwise settles it. Only a message
/// with a suspend header, or one that may have run before, costs a request to the store.
pub(super) async fn claim_delivery(message: MessageDelivery) -> Option<(MessageDelivery, Claim)> {
    match SuspendHeader::read(&message.delivery.message) {
        Ok(None) if !message.delivery.redelivered => Some((message, Claim::new(None))),
        // Boxed, to keep the future small for a task that was never suspended.
        Ok(header) => Box::pin(claim(message, header)).await,
        Err(unreadable) => {
            // The task that it names may be waiting for its real message, so no failure is stored for the
            // waiters.
            Box::pin(message.dead_letter(&unreadable.reason)).await;
            None
        }
    }
}

async fn claim(
    mut message: MessageDelivery,
    header: Option<SuspendHeader>,
) -> Option<(MessageDelivery, Claim)> {
    let mut claim = Claim::new(header);
    let carried = header.unwrap_or(SuspendHeader { kind: SuspendKind::Original, number: 0 });
    // A resume message runs the stored message. An undecodable message is dead-lettered later.
    let envelope = match carried.kind {
        SuspendKind::Resume => None,
        _ => {
            let max_arguments = message.state.config.max_arguments;
            Envelope::decode(&message.delivery.message, max_arguments).ok()
        }
    };
    let digest = envelope.as_ref().map(Envelope::digest);
    failpoints::point("message received");
    let claimed = request_claim(&message, carried, digest.as_ref(), &mut claim).await;
    let Some(result) = claimed else {
        message.requeue();
        return None;
    };
    match result {
        ClaimResult::Unclaimed => Some((message, claim)),
        ClaimResult::Claimed { number, message: stored, result, outcomes } => {
            claim.set_granted(&message.state, message.id(), number);
            failpoints::point("claimed");
            claim.outcomes = outcomes;
            claim.result = StoredResult::Read(result);
            match (stored, header) {
                (Some(stored), _) => message.delivery.message = claim.with_header(*stored),
                (None, Some(SuspendHeader { kind: SuspendKind::Resume, .. })) => {
                    // It has no arguments; another message of the task has them.
                    claim.release(&message.state, message.id()).await;
                    let ignored = message.state.backends.store.ignore_result(message.id());
                    message.ack(ignored);
                    return None;
                }
                (None, _) => {}
            }
            Some((message, claim))
        }
        // Where results are stored, the stored result, or its absence, decides about this message.
        ClaimResult::Ended(_) if !envelope.is_some_and(|task| task.ignore_result) => {
            Some((message, claim))
        }
        ClaimResult::Ended(recorded) | ClaimResult::Over(recorded) => {
            message.ack(recorded);
            None
        }
        ClaimResult::Postpone(delay) => {
            Box::pin(postpone_claim(message, &claim, delay + Duration::from_millis(1))).await;
            None
        }
        ClaimResult::Newer => {
            Box::pin(leave_to_newer(message, &claim)).await;
            None
        }
        ClaimResult::StateLost => {
            Box::pin(end_lost(message, claim)).await;
            None
        }
        ClaimResult::Occupied(suspended) => {
            let reason = occupied_reason(message.id(), suspended.as_deref());
            Box::pin(message.dead_letter(&reason)).await;
            None
        }
    }
}

async fn leave_to_newer(message: MessageDelivery, claim: &Claim) {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| {
        warn!(
            task.id = %message.id(),
            "a newer version of Countersign has suspended the task: requeueing it for newer workers"
        );
    });
    postpone_claim(message, claim, NEWER_DELAY).await;
}

/// Claims the task in the store, with retries; returns `None` when the worker ends all waits.
async fn request_claim(
    message: &MessageDelivery,
    header: SuspendHeader,
    digest: Option<&TaskDigest>,
    claim: &mut Claim,
) -> Option<ClaimResult> {
    let (state, id, holder) = (&message.state, message.id(), claim.holder());
    let requesting = async {
        loop {
            let store = &state.backends.store;
            match store.claim_suspended(id, header, digest, &holder, state.config.lease).await {
                Ok(result) => return result,
                Err(error) => {
                    warn!(task.id = %id, "cannot claim the task: {error}; trying again");
                }
            }
            sleep(STORE_RETRY_DELAY).await;
        }
    };
    state.end_waits.run_until_cancelled(requesting).await
}

/// Requeues the same message with a delay.
async fn postpone_claim(message: MessageDelivery, claim: &Claim, delay: Duration) {
    let mut copy = message.delivery.message.clone();
    copy.strip_history();
    if message.delivery.redelivered {
        copy.mark_returned();
    }
    let mut source = claim.source_queue(&message.queue);
    if let Ok(Some(SuspendHeader { kind: SuspendKind::Wake, .. })) = SuspendHeader::read(&copy) {
        // The task has a record now, so the copy of its wake message gets a new send time.
        let WorkerState { store_clock, backends, end_waits, .. } = &*message.state;
        let reading = end_waits.run_until_cancelled(store_clock.now(&*backends.store)).await;
        if let Some(Ok(now)) = reading {
            copy = SuspendHeader::sent(copy, now);
        }
        // No sweep finds a run whose lease ends, so the delay of a lease is not exceeded.
        if delay > message.state.config.lease {
            source = wake_queue(&message.queue, delay);
        }
    }
    message.requeue_delayed(&source, copy, delay, async {}).await;
}

/// Fails a task whose suspension the store has lost, because it can no longer be decided. If the wake
/// message is so old that the task may have ended and the record of that expired, dead-letters the
/// message instead.
async fn end_lost(message: MessageDelivery, claim: Claim) {
    let sent_at = SuspendHeader::sent_at(&message.delivery.message);
    let reading = message.state.backends.store.clock();
    match message.state.end_waits.run_until_cancelled(reading).await {
        Some(Ok(now)) if suspension::is_lost(sent_at, now) => {}
        Some(Ok(_)) => return message.dead_letter(OUTLIVED).await,
        Some(Err(_)) | None => return message.requeue(),
    }
    match Envelope::decode(&message.delivery.message, message.state.config.max_arguments) {
        Ok(mut envelope) => {
            SuspendHeader::remove(&mut envelope.headers);
            let task = Box::new(TaskDelivery::new(message, envelope, claim));
            let outcome = lost(&task.state, &task.queue, &task.envelope).await;
            task.settle(outcome).await;
        }
        Err(unreadable) => message.dead_letter_unreadable(unreadable).await,
    }
}

/// Returns the outcome of a task whose suspension is lost: a stored result if the run ended without its
/// suspension.
async fn lost(state: &WorkerState, queue: &Queue, envelope: &Envelope) -> Outcome {
    if let Some(document) = prior_result(state, envelope).await {
        return Outcome::AlreadyEnded(document);
    }
    let id = envelope.id.clone();
    warn!(task.id = %id, "the store has lost the suspension of the task");
    let action =
        AuditAction { what: "state lost", id, queue: queue.name.clone(), by: state.name.clone() };
    if let Err(error) = state.backends.store.record_action(action).await {
        warn!("cannot write the audit entry of a lost suspension: {error}");
    }
    Outcome::Failed(Failure::state_lost())
}
