//! One attempt to publish a message, and who waits for what becomes of it.

use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::ShortString;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::codec;
use super::ladder::{self, Route};
use crate::backend::{Parcel, Queue};
use crate::error::{Error, Kind};
use crate::task::TaskId;

/// An attempt about to be made. The message itself stays with its caller, who sends another when
/// the fate of this one is unknown.
pub(super) struct Job {
    /// Boxed: it moves through many hands.
    pub(super) letter: Box<Letter>,
    pub(super) waiter: Waiter,
}

/// What lapin takes, and keeps.
pub(super) struct Letter {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

/// Who waits, and what is needed to answer.
pub(super) struct Waiter {
    pub(super) id: TaskId,
    /// By which the broker returns it.
    pub(super) message_id: TaskId,
    pub(super) queue: Queue,
    pub(super) is_delayed: bool,
    pub(super) deadline: Instant,
    timeout: Duration,
    done: oneshot::Sender<Answer>,
}

/// What the caller is told.
pub(super) enum Answer {
    Confirmed,
    Failed(Error),
    /// The connection or the channel broke: it may or may not have arrived.
    Unknown(String),
}

impl Job {
    /// Fails when the message, or the name of its queue, cannot be written in AMQP's terms.
    pub(super) fn new(
        parcel: &Parcel,
        deadline: Instant,
        done: oneshot::Sender<Answer>,
    ) -> Result<Self, Error> {
        let message = &parcel.message;
        let waiter = Waiter {
            id: message.id.clone(),
            message_id: TaskId::from(codec::message_id_of(message)),
            queue: parcel.queue.clone(),
            is_delayed: parcel.delay.is_some(),
            deadline,
            timeout: parcel.timeout,
            done,
        };
        Ok(Self { letter: Box::new(Letter::new(parcel)?), waiter })
    }
}

impl Letter {
    fn new(parcel: &Parcel) -> Result<Self, Error> {
        let message = &parcel.message;
        let properties = codec::encode(message).map_err(|cause| {
            let what = format!("task {}", message.id);
            Error::new(Kind::Codec { what, cause })
        })?;
        let route = match parcel.delay {
            Some(delay) => {
                parcel.queue.check_name().map_err(|why| refused(&parcel.queue, why))?;
                ladder::route(&parcel.queue, delay)
            }
            None => Route { exchange: String::new(), routing_key: parcel.queue.name.clone() },
        };
        let key = codec::short(&route.routing_key).map_err(|why| refused(&parcel.queue, why))?;
        Ok(Self { exchange: route.exchange.into(), key, properties, body: message.body.clone() })
    }
}

impl Waiter {
    pub(super) fn end(self, answer: Answer) {
        // Nobody waits any more: the message is out all the same.
        let _ = self.done.send(answer);
    }

    pub(super) fn fail(self, kind: Kind) {
        self.end(Answer::Failed(kind.into()));
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

/// A queue that the broker's user may not publish to as it takes.
pub(super) fn access_refused(queue: &Queue, cause: String) -> Error {
    let what = format!("queue {:.255}", queue.name);
    Kind::AccessRefused { what, cause }.into()
}

/// A queue that cannot be published to.
pub(super) fn refused(queue: &Queue, cause: String) -> Error {
    let what = format!("queue {:.255}", queue.name);
    Kind::Codec { what, cause }.into()
}
