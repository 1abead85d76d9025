//! The ends of a task: its final result is stored, and the tasks that follow it are sent.

use std::sync::Arc;

use serde_json::value::RawValue;
use tracing::{error, warn};

use super::canvas::{ChainBreak, FollowUpSender};
use super::results::{failed_task, status_request, store_failed_task, store_status};
use super::task_delivery::TaskDelivery;
use crate::clock;
use crate::error::Failure;
use crate::failpoints;
use crate::protocol::{Canvas, Document};

impl TaskDelivery {
    /// Sends the callbacks, then stores the result, then acks.
    pub(super) async fn succeed(self: Box<Self>, result: &RawValue) {
        let mut children = Vec::new();
        if let Ok(Some(canvas)) = Canvas::read(&self.envelope.embed) {
            let sender = self.follow_ups();
            let sending = Box::pin(sender.after_success(&canvas, result));
            match self.state.end_waits.run_until_cancelled(sending).await {
                Some(Ok(sent)) => children = sent,
                Some(Err(failure)) => return Box::pin(self.fail(&failure)).await,
                None => return self.into_message().abandon(),
            }
        }
        let document = Document::success(&self.envelope, result, &children, clock::now());
        self.record(document).await;
    }

    pub(super) async fn fail(self: Box<Self>, failure: &Failure) {
        warn!(
            task.id = %self.envelope.id, task.name = %self.envelope.name,
            attempt = self.envelope.attempt, error = %failure, "task failed"
        );
        let document = Document::failed(&self.envelope, failure, clock::now());
        self.record(document).await;
    }

    /// Stores the final state of the task, sends its errbacks if it has not succeeded, then acks.
    pub(super) async fn record(self: Box<Self>, document: Document) {
        let Self { state, queue, envelope, claim, .. } = &*self;
        let received = self.first_received();
        let broken = ChainBreak::by(&document);
        let failed = failed_task(state, queue, envelope, &document).map(Box::new);
        let effects = async {
            failpoints::point("handler ran");
            let request = status_request(envelope, document, received);
            // The errbacks of a failure are sent before the end is recorded.
            let finished = match &request {
                Some(request) if broken.is_none() && claim.has_record() => {
                    Box::pin(claim.finish(state, envelope, request.clone())).await
                }
                _ => None,
            };
            let is_end_recorded = finished.is_some();
            let recorded = match (finished, request) {
                (Some(recorded), _) => Ok(recorded),
                (None, Some(request)) => state.backends.store.store_result(request).await,
                (None, None) => Ok(state.backends.store.ignore_result(&envelope.id)),
            };
            failpoints::point("result stored");
            if let Some(failed) = failed {
                Box::pin(store_failed_task(state, *failed)).await;
            }
            if let Some(broken) = &broken {
                Box::pin(self.follow_ups().after_failure(broken)).await;
            }
            if claim.has_record() && !is_end_recorded {
                Box::pin(claim.record_end(state, envelope)).await;
            }
            failpoints::point("suspension ended");
            recorded
        };
        match state.end_waits.run_until_cancelled(effects).await {
            Some(Ok(recorded)) => self.into_message().ack(recorded),
            Some(Err(error)) => {
                error!(task.id = %envelope.id, "cannot store the task's result: {error}");
                let reason = format!("result cannot be stored: {error}");
                Box::pin(self.into_message().dead_letter(&reason)).await;
            }
            None => self.into_message().abandon(),
        }
    }

    /// Dead-letters a task that cannot run here, and stores its failure.
    pub(super) async fn dead_letter_task(self: Box<Self>, reason: &str, failure: Failure) {
        warn!(
            task.id = %self.envelope.id, task.name = %self.envelope.name,
            attempt = self.envelope.attempt, error = %failure, "task failed and is dead-lettered"
        );
        let document = Document::failed(&self.envelope, &failure, clock::now());
        let received = self.first_received();
        let failed = failed_task(&self.state, &self.queue, &self.envelope, &document);
        let status = status_request(&self.envelope, document, received);
        let (message, envelope, claim) = self.split();
        let (state, queue) = (Arc::clone(&message.state), message.queue.clone());
        let side_effect = async {
            store_status(&state, status).await;
            if let Some(failed) = failed {
                store_failed_task(&state, failed).await;
            }
            let is_rerun = received.is_none();
            let sender =
                FollowUpSender { state: &state, queue: &queue, envelope: &envelope, is_rerun };
            sender.after_failure(&ChainBreak::Failed(failure)).await;
            claim.record_end(&state, &envelope).await;
        };
        message.dead_letter_with(reason, Box::pin(side_effect)).await;
    }

    fn follow_ups(&self) -> FollowUpSender<'_> {
        FollowUpSender {
            state: &self.state,
            queue: &self.queue,
            envelope: &self.envelope,
            is_rerun: self.first_received().is_none(),
        }
    }
}
