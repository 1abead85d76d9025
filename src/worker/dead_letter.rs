//! Dead-lettering: a message that no worker can run goes to `<queue>.dead` with its reason, and its
//! waiter gets a failure.

use serde_json::Value;
use tracing::{error, warn};

use super::message_delivery::MessageDelivery;
use super::publish::publish;
use super::results::store_status;
use crate::backend::{Queue, StoreResult};
use crate::clock;
use crate::error::Failure;
use crate::protocol::{
    DIED_AT, DecodeError, Document, HEADER_LIMIT, Message, RAW_HEADERS, REASON, SOURCE, UNREADABLE,
};

/// The headers of a dead-lettered message are kept below this size, and a message lists the failures of
/// its attempts only within it.
pub(super) const MAX_HEADER_BYTES: usize = HEADER_LIMIT / 2;

impl MessageDelivery {
    /// Copies the message to the dead-letter queue, then acks it.
    pub(super) async fn dead_letter(self, reason: &str) {
        self.dead_letter_with(reason, async {}).await;
    }

    /// Copies the message to the dead-letter queue, runs `side_effect`, then acks the message.
    pub(super) async fn dead_letter_with(
        self,
        reason: &str,
        side_effect: impl Future<Output = ()>,
    ) {
        let Self { state, queue, delivery } = &self;
        warn!(task.id = %delivery.id(), "to {}: {reason}", queue.dead().name);
        let copy = dead_letter_headers(&delivery.message, queue, reason);
        let effects = async {
            let recorded = publish(state, copy, queue.dead(), None).await;
            side_effect.await;
            recorded
        };
        match state.end_waits.run_until_cancelled(effects).await {
            Some(Ok(recorded)) => self.ack(recorded),
            Some(Err(error)) => {
                error!(
                    task.id = %delivery.id(),
                    "cannot publish to the dead-letter queue, trying again: {error}"
                );
                let copy = dead_letter_headers(&delivery.message, queue, reason);
                let dead = queue.dead();
                self.keep_until_published(copy, dead, None);
            }
            None => self.abandon(),
        }
    }

    /// Dead-letters a message that cannot be decoded as a task; a waiter for its id gets a failure.
    pub(super) async fn dead_letter_unreadable(self, unreadable: DecodeError) {
        let message = &self.delivery.message;
        let status = message.names_its_task().then(|| {
            let failure =
                Failure::new("countersign.errors", "Unreadable", unreadable.reason.clone());
            StoreResult {
                document: Document::failure_of(&message.id, &failure, clock::now()),
                reply_to: message.properties.reply_to.clone(),
                received: None,
            }
        });
        let state = std::sync::Arc::clone(&self.state);
        self.dead_letter_with(&unreadable.reason, store_status(&state, status)).await;
    }
}

/// Returns the message for the dead-letter queue: the original plus the headers that state why it was
/// dead-lettered.
fn dead_letter_headers(message: &Message, queue: &Queue, reason: &str) -> Message {
    let mut copy = message.clone();
    copy.strip_history();
    copy.headers.remove(UNREADABLE);
    let raw = copy.headers.remove(RAW_HEADERS);
    let dropped = copy.fit_headers(MAX_HEADER_BYTES);
    if !dropped.is_empty() {
        warn!(task.id = %copy.id, "headers too large for a dead letter were dropped: {dropped:.200?}");
    }
    copy.properties.expiration = None;
    let shown: String = reason.chars().take(1024).collect();
    copy.headers.insert(REASON.into(), Value::String(shown));
    copy.headers.insert(SOURCE.into(), Value::String(queue.name.clone()));
    copy.headers.insert(DIED_AT.into(), Value::String(clock::now().to_string()));
    if let Some(raw) = raw {
        copy.headers.insert(RAW_HEADERS.into(), raw);
        copy.fit_headers(HEADER_LIMIT);
    }
    copy
}
