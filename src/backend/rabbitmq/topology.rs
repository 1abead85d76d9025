//! Declares queues without conflicts with the declarations of other clients.

use lapin::ErrorKind;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, LongString};
use tokio::time::timeout;

use super::channel_pool::{ChannelPool, DECLARE_DEADLINE};
use super::codec::short;
use crate::backend::{Expiry, Queue};
use crate::config::QueueType;

pub(super) const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// Why a queue could not be declared.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeclareError {
    /// The broker refuses access, or the name cannot be encoded: a quick retry is useless.
    #[error("{0}")]
    Refused(String),
    /// Any other error; the queue may exist.
    #[error("{0}")]
    Unknown(String),
}

/// Ensures that `queue` exists. Accepts an existing queue with any type and arguments; declares a
/// missing one as `queue` specifies.
pub(super) async fn declare(channels: &ChannelPool, queue: &Queue) -> Result<(), DeclareError> {
    match timeout(DECLARE_DEADLINE, declare_missing(channels, queue)).await {
        Ok(declared) => declared,
        Err(_) => {
            let reason = format!("no reply to the declaration of {}", queue.name);
            Err(DeclareError::Unknown(reason))
        }
    }
}

async fn declare_missing(channels: &ChannelPool, queue: &Queue) -> Result<(), DeclareError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared =
        match declare_with(channels, queue, passive).await.map_err(DeclareError::Unknown)? {
            Err(error) if is(&error, NOT_FOUND) => {
                create(channels, queue).await.map_err(DeclareError::Unknown)?
            }
            result => result,
        };
    declared.map_err(access_refused("configure"))
}

/// Converts an error that is not about permissions.
#[expect(clippy::needless_pass_by_value, reason = "so it can be given to map_err")]
pub(super) fn declare_error(error: lapin::Error) -> DeclareError {
    DeclareError::Unknown(error.to_string())
}

/// Converts errors of an operation that requires `permission`. The broker's own text names the object.
pub(super) fn access_refused(permission: &'static str) -> impl Fn(lapin::Error) -> DeclareError {
    move |error| match is(&error, ACCESS_REFUSED) {
        true => DeclareError::Refused(explain_refusal(&error, permission)),
        false => declare_error(error),
    }
}

/// Adds the permission to grant.
pub(super) fn explain_refusal(error: &lapin::Error, permission: &str) -> String {
    format!("{error}; grant the {permission} permission with `rabbitmqctl set_permissions`")
}

/// Whether a queue exists as specified.
pub(super) enum Declared {
    Matches,
    /// It exists with another type or other arguments; the broker's text.
    Differs(String),
}

/// Declares `queue`, or compares it with the existing one.
pub(super) async fn compare(channels: &ChannelPool, queue: &Queue) -> Result<Declared, String> {
    match timeout(DECLARE_DEADLINE, create(channels, queue)).await {
        Ok(Ok(Ok(()))) => Ok(Declared::Matches),
        Ok(Ok(Err(error))) if is(&error, PRECONDITION_FAILED) => {
            Ok(Declared::Differs(error_text(error)))
        }
        Ok(Ok(Err(error))) => Err(error_text(error)),
        Ok(Err(why)) => Err(why),
        Err(_) => Err(format!("no reply to the declaration of {}", queue.name)),
    }
}

async fn create(channels: &ChannelPool, queue: &Queue) -> Result<Result<(), lapin::Error>, String> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    declare_with(channels, queue, durable).await
}

/// Sends one declaration. A refused one closes its channel.
async fn declare_with(
    channels: &ChannelPool,
    queue: &Queue,
    options: QueueDeclareOptions,
) -> Result<Result<(), lapin::Error>, String> {
    let name = short(&queue.name)?;
    let borrowed = channels.take().await?;
    match borrowed.channel.queue_declare(name, options, arguments(queue)).await {
        Ok(_) => {
            borrowed.put_back();
            Ok(Ok(()))
        }
        Err(error) => Ok(Err(error)),
    }
}

/// The exchange where delayed messages of `queue` arrive, whether the queue exists or not.
pub(super) fn arrival_exchange(queue: &Queue) -> String {
    format!("countersign_delayed.{}", queue.name)
}

fn arguments(queue: &Queue) -> FieldTable {
    let mut arguments = FieldTable::default();
    if queue.kind == QueueType::Quorum {
        let quorum = AMQPValue::LongString(LongString::from("quorum"));
        arguments.insert("x-queue-type".into(), quorum);
    }
    if let Some(limit) = queue.delivery_limit {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit.into()));
    }
    if let Some(levels) = queue.max_priority {
        arguments.insert("x-max-priority".into(), AMQPValue::LongInt(levels.into()));
    }
    if let Some(Expiry { after, to }) = &queue.expiry {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let ttl = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
        arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(ttl));
        arguments.insert("x-dead-letter-exchange".into(), text(&arrival_exchange(to)));
        arguments.insert("x-dead-letter-routing-key".into(), text(&to.name));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
    }
    arguments
}

/// Whether the broker has closed the channel with this code.
pub(super) fn is(error: &lapin::Error, code: u16) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(reply) if reply.get_id() == code)
}

#[expect(clippy::needless_pass_by_value, reason = "so it can be given to map_err")]
fn error_text(error: lapin::Error) -> String {
    error.to_string()
}
