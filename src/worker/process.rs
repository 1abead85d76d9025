//! The way of one delivery through the worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::claim::Claim;
use super::claim_delivery::claim_delivery;
use super::concurrency_limit::Permit;
use super::execute::execute;
use super::message_delivery::MessageDelivery;
use super::task_delivery::TaskDelivery;
use crate::protocol::{Envelope, SuspendHeader};

/// Processes one delivery until it is settled.
pub(super) async fn process_delivery(mut message: MessageDelivery, permit: Permit) {
    message.delivery.redelivered |= message.delivery.message.is_returned();
    let state = Arc::clone(&message.state);
    if let Some((message, claim)) = claim_delivery(message).await {
        // Boxed, because the spawned future is moved several times.
        Box::pin(process_claimed(message, claim, permit)).await;
    }
    state.finished.fetch_add(1, Ordering::Relaxed);
}

async fn process_claimed(message: MessageDelivery, claim: Claim, mut permit: Permit) {
    match Envelope::decode(&message.delivery.message, message.state.config.max_arguments) {
        Ok(mut envelope) => {
            SuspendHeader::remove(&mut envelope.headers);
            // Boxed, so that the futures which settle it stay small.
            let mut task = Box::new(TaskDelivery::new(message, envelope, claim));
            let began = task.state.observer.begin();
            let outcome = execute(&mut task, &mut permit).await;
            task.state.observer.end(began, &task.envelope, &outcome);
            task.settle(outcome).await;
        }
        Err(unreadable) => Box::pin(message.dead_letter_unreadable(unreadable)).await,
    }
}
