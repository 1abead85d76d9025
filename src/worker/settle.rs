//! Settling: makes an outcome durable, then acks. No other module settles a delivery that ran.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::info;

use super::attempt::{copy_for_requeue, limited_again, next_attempt, requeue_unknown};
use super::dead_letter::MAX_HEADER_BYTES;
use super::outcome::Outcome;
use super::quarantine;
use super::results::{status_request, store_status};
use super::task_delivery::TaskDelivery;
use crate::approval::ApprovalId;
use crate::backend::{Crashes, Recorded};
use crate::clock;
use crate::error::Failure;
use crate::failpoints;
use crate::protocol::{Attempt, Document, Envelope, History, Message};

/// A task that only a newer worker can continue is requeued with this delay.
const OUTDATED_DELAY: Duration = Duration::from_secs(1);
/// A task without a handler here is requeued with about this delay.
const UNKNOWN_DELAY: Duration = Duration::from_secs(1);

impl TaskDelivery {
    /// Makes `outcome` durable, then acks the message; or requeues it.
    pub(super) async fn settle(self: Box<Self>, outcome: Outcome) {
        // All arms but the first are boxed, to keep the spawned future small.
        match outcome {
            Outcome::Done(json) => self.succeed(&json).await,
            Outcome::Failed(failure) => Box::pin(self.fail(&failure.bounded())).await,
            Outcome::Retry { failure, delay, first_attempt_at } => {
                Box::pin(self.retry(failure.bounded(), delay, first_attempt_at)).await;
            }
            Outcome::Postponed(delay) => Box::pin(self.postpone(delay)).await,
            Outcome::Limited(delay) => Box::pin(self.postpone_limited(delay)).await,
            Outcome::Outdated => {
                let copy = copy_for_requeue(&self.envelope);
                Box::pin(self.requeue_copy(copy, OUTDATED_DELAY)).await;
            }
            Outcome::Suspended { recorded, requests } => {
                Box::pin(self.end_suspended(recorded, requests)).await;
            }
            Outcome::Revoked(reason) => {
                let document = Document::revoked(&self.envelope, reason, clock::now());
                Box::pin(self.record(document)).await;
            }
            // The earlier run may have ended after its failure was stored and before the errbacks were
            // sent.
            Outcome::AlreadyEnded(document) => Box::pin(self.record(document)).await,
            Outcome::Repeated => self.end_repeated(),
            // Waiters for this id wait for the other task.
            Outcome::Occupied(reason) => {
                Box::pin(self.into_message().dead_letter(&reason)).await;
            }
            Outcome::Refused(failure) => {
                let reason = failure.message();
                Box::pin(self.dead_letter_task(&reason, failure)).await;
            }
            Outcome::Poisoned(crashes) => Box::pin(self.fail_poisoned(crashes)).await,
            Outcome::Quarantined => Box::pin(self.quarantine()).await,
            Outcome::Unknown => Box::pin(self.end_unknown()).await,
            Outcome::SuspensionRefused => Box::pin(self.requeue_refused()).await,
            Outcome::Redelivered => Box::pin(self.end_redelivered()).await,
            Outcome::Released => Box::pin(self.return_to_queue()).await,
        }
    }

    /// Sends the next attempt, and stores why there is one.
    async fn retry(
        self: Box<Self>,
        failure: Failure,
        delay: Duration,
        first_attempt_at: Timestamp,
    ) {
        let now = clock::now();
        self.remove_older_result().await;
        let mut next = next_attempt(&self.envelope, delay, first_attempt_at, now);
        self.add_to_history(&mut next, &failure, now);
        let document = Document::retry(&self.envelope, &failure, now);
        info!(
            task.name = %self.envelope.name, task.id = %self.envelope.id,
            "retry in {delay:?}: {failure}"
        );
        let status = status_request(&next, document, None);
        let (message, _, mut claim) = self.split();
        let copy = match claim.next_header() {
            Some(header) => header.on(next.encode()),
            None => next.encode(),
        };
        let (state, queue) = (Arc::clone(&message.state), message.queue.clone());
        let side_effect = async {
            store_status(&state, status).await;
            claim.store_next_attempt(&state, &queue, &next).await;
        };
        message.requeue_delayed(&queue, copy, delay, side_effect).await;
    }

    /// Adds the failure of this attempt to the headers of the next one, if there is room.
    fn add_to_history(&self, next: &mut Envelope, failure: &Failure, now: Timestamp) {
        if self.delivery.message.header_bytes() < MAX_HEADER_BYTES {
            let number = next.attempt.saturating_sub(1);
            let failed = Attempt::failed(number, failure, now, Some(&self.state.name));
            History::add(&mut next.headers, failed);
        }
    }

    async fn postpone(self: Box<Self>, delay: Duration) {
        self.remove_older_result().await;
        let copy = copy_for_requeue(&self.envelope);
        self.requeue_copy(copy, delay).await;
    }

    async fn postpone_limited(self: Box<Self>, delay: Duration) {
        self.remove_older_result().await;
        let copy = copy_for_requeue(&limited_again(&self.envelope));
        self.requeue_copy(copy, delay).await;
    }

    /// Requeues the same attempt with a delay and with the suspend header of its message.
    async fn requeue_copy(self: Box<Self>, copy: Message, delay: Duration) {
        let (message, envelope, mut claim) = self.split();
        let (copy, source) = (claim.with_header(copy), claim.source_queue(&message.queue));
        let state = Arc::clone(&message.state);
        let side_effect = claim.release(&state, &envelope.id);
        message.requeue_delayed(&source, copy, delay, side_effect).await;
    }

    /// Stores that the task waits for decisions, then acks: its suspension is already stored.
    async fn end_suspended(self: Box<Self>, recorded: Recorded, requests: Vec<ApprovalId>) {
        let document = Document::suspended(&self.envelope, &requests, clock::now());
        let status = status_request(&self.envelope, document, None);
        let storing = store_status(&self.state, status);
        match self.state.end_waits.run_until_cancelled(storing).await {
            Some(()) => {
                failpoints::point("suspended status stored");
                self.into_message().ack(recorded);
            }
            None => self.into_message().abandon(),
        }
    }

    fn end_repeated(self: Box<Self>) {
        let id = &self.envelope.id;
        info!(task.id = %id, "another copy of the message runs the task, or has run it");
        let recorded = self.state.backends.store.ignore_result(id);
        self.into_message().ack(recorded);
    }

    async fn requeue_refused(mut self: Box<Self>) {
        self.release_claim().await;
        self.into_message().requeue_later();
    }

    async fn end_redelivered(mut self: Box<Self>) {
        info!(task.id = %self.envelope.id, "not started: the broker has redelivered the message");
        self.release_claim().await;
    }

    async fn return_to_queue(mut self: Box<Self>) {
        self.remove_older_result().await;
        self.state.report_abandoned(&self.envelope.id);
        self.release_claim().await;
        let source = self.claim.source_queue(&self.queue);
        self.into_message().requeue_unstarted(&source).await;
    }

    /// Moves the task to the queue that the process for quarantined tasks consumes.
    async fn quarantine(mut self: Box<Self>) {
        self.release_claim().await;
        let (state, queue) = (Arc::clone(&self.state), self.queue.quarantine());
        self.into_message().replace(&queue).await;
        if let Some(child) = &state.child_process {
            child.notify();
        }
    }

    /// Dead-letters a poison task and stores its failure.
    async fn fail_poisoned(mut self: Box<Self>, Crashes { runs, alone }: Crashes) {
        let failure = Failure::worker_lost(runs, alone);
        quarantine::clear_crashes(&self.state, &self.delivery).await;
        let lost = Attempt::failed(self.envelope.attempt, &failure, clock::now(), None);
        History::add(&mut self.delivery.message.headers, lost);
        let reason = failure.message();
        self.dead_letter_task(&reason, failure).await;
    }

    /// Requeues a task without a handler here while another worker may have one; otherwise dead-letters
    /// it.
    async fn end_unknown(self: Box<Self>) {
        let grace = self.state.unknown_grace;
        if let Some(envelope) = requeue_unknown(&self.envelope, grace, clock::now()) {
            let delay = UNKNOWN_DELAY.mul_f64(0.5 + rand::random::<f64>());
            self.remove_older_result().await;
            return self.requeue_copy(copy_for_requeue(&envelope), delay).await;
        }
        let failure = Failure::not_registered(&self.envelope.name);
        let reason = format!("no handler for {}", self.envelope.name);
        self.dead_letter_task(&reason, failure).await;
    }
}
