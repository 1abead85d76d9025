//! One attempt to publish a message, and the caller that waits for its outcome.

use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::ShortString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::codec;
use super::delayed_delivery::{self, DelayRoute};
use crate::backend::{PublishRequest, Queue};
use crate::error::{Error, Kind};
use crate::task::TaskId;

/// An attempt that is about to start. The caller keeps the message, and sends it again when the outcome
/// of this attempt is unknown.
pub(super) struct PublishJob {
    /// Boxed, because the job is moved often.
    pub(super) encoded: Box<EncodedMessage>,
    pub(super) pending: PendingConfirm,
}

/// The values that lapin takes by ownership.
pub(super) struct EncodedMessage {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

/// The waiting caller, and the values needed to answer it.
pub(super) struct PendingConfirm {
    pub(super) id: TaskId,
    /// The id with which the broker returns the message.
    pub(super) message_id: TaskId,
    pub(super) queue: Queue,
    pub(super) is_delayed: bool,
    pub(super) deadline: Instant,
    timeout: Duration,
    done: oneshot::Sender<PublishResult>,
}

/// The answer to the caller.
pub(super) enum PublishResult {
    Confirmed,
    Failed(Error),
    /// The connection or the channel broke: the message may or may not have arrived.
    Unknown(String),
}

impl PublishJob {
    /// Fails when the message, or the name of its queue, cannot be encoded in AMQP.
    pub(super) fn new(
        request: &PublishRequest,
        deadline: Instant,
        done: oneshot::Sender<PublishResult>,
    ) -> Result<Self, Error> {
        let message = &request.message;
        let pending = PendingConfirm {
            id: message.id.clone(),
            message_id: TaskId::from(codec::message_id_of(message)),
            queue: request.queue.clone(),
            is_delayed: level_delay(request).is_some(),
            deadline,
            timeout: request.timeout,
            done,
        };
        Ok(Self { encoded: Box::new(EncodedMessage::new(request)?), pending })
    }
}

impl EncodedMessage {
    fn new(request: &PublishRequest) -> Result<Self, Error> {
        let message = &request.message;
        let properties = codec::encode(message).map_err(|cause| {
            let what = format!("task {}", message.id);
            Error::new(Kind::Codec { what, cause })
        })?;
        let route = match level_delay(request) {
            Some(delay) => {
                request.queue.check_name().map_err(|why| refused(&request.queue, why))?;
                delayed_delivery::route(&request.queue, delay)
            }
            None => DelayRoute { exchange: String::new(), routing_key: request.queue.name.clone() },
        };
        let key = codec::short(&route.routing_key).map_err(|why| refused(&request.queue, why))?;
        Ok(Self { exchange: route.exchange.into(), key, properties, body: message.body.clone() })
    }
}

/// Returns the delay by the levels of delayed delivery. A queue with an expiry delays its messages itself.
fn level_delay(request: &PublishRequest) -> Option<Duration> {
    request.delay.filter(|_| request.queue.expiry.is_none())
}

impl PendingConfirm {
    pub(super) fn end(self, result: PublishResult) {
        // The caller may have stopped waiting; the message is published anyway.
        let _ = self.done.send(result);
    }

    pub(super) fn fail(self, kind: Kind) {
        self.end(PublishResult::Failed(kind.into()));
    }

    pub(super) fn expire(self, blocked: Option<String>) {
        let what = format!("publishing task {} to {}", self.id, self.queue.name);
        let after = self.timeout;
        self.fail(match blocked {
            Some(cause) => Kind::Backpressure { what, cause },
            None => Kind::Timeout { what, after },
        });
    }
}

/// The error for a queue that the broker's user may not publish to.
pub(super) fn access_refused(queue: &Queue, cause: String) -> Error {
    let what = format!("queue {:.255}", queue.name);
    Kind::AccessRefused { what, cause }.into()
}

/// The error for a queue that cannot be published to.
pub(super) fn refused(queue: &Queue, cause: String) -> Error {
    let what = format!("queue {:.255}", queue.name);
    Kind::Codec { what, cause }.into()
}
