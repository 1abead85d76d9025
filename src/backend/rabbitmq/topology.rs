//! Declaring queues without ever colliding with what another client declared.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Connection, ErrorKind};
use tokio::time::timeout;

use super::codec::short;
use crate::backend::Queue;
use crate::config::QueueType;

/// A classic queue whose node is dead answers only after 64 s.
pub(super) const DECLARE_DEADLINE: Duration = Duration::from_secs(10);
pub(super) const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// Why a queue is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undeclared {
    /// The broker refuses access, or its name cannot be written: asking again soon is of no use.
    #[error("{0}")]
    Refused(String),
    /// Nobody knows.
    #[error("{0}")]
    Unknown(String),
}

/// Makes sure that `queue` exists. One that exists is taken as it is, whatever its type and
/// arguments; only a missing one is made, as `queue` says.
pub(super) async fn declare(connection: &Connection, queue: &Queue) -> Result<(), Undeclared> {
    match timeout(DECLARE_DEADLINE, declare_missing(connection, queue)).await {
        Ok(declared) => declared,
        Err(_) => {
            let told = format!("no answer to the declaration of {}", queue.name);
            Err(Undeclared::Unknown(told))
        }
    }
}

async fn declare_missing(connection: &Connection, queue: &Queue) -> Result<(), Undeclared> {
    let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = match ask(connection, queue, look).await.map_err(Undeclared::Unknown)? {
        Err(error) if is(&error, NOT_FOUND) => {
            make(connection, queue).await.map_err(Undeclared::Unknown)?
        }
        looked => looked,
    };
    declared.map_err(access_refused("configure"))
}

/// An error that says nothing of rights.
#[expect(clippy::needless_pass_by_value, reason = "so it can be given to map_err")]
pub(super) fn undeclared(error: lapin::Error) -> Undeclared {
    Undeclared::Unknown(error.to_string())
}

/// Makes the error of an operation that needs `permission` one. The broker's own text names the object.
pub(super) fn access_refused(permission: &'static str) -> impl Fn(lapin::Error) -> Undeclared {
    move |error| match is(&error, ACCESS_REFUSED) {
        true => Undeclared::Refused(explain_refusal(&error, permission)),
        false => undeclared(error),
    }
}

/// Says which permission to grant.
pub(super) fn explain_refusal(error: &lapin::Error, permission: &str) -> String {
    format!("{error}; grant the {permission} permission with `rabbitmqctl set_permissions`")
}

/// Whether a queue is as it should be.
pub(super) enum Declared {
    AsWished,
    /// It exists with another type or other arguments; what the broker says.
    Otherwise(String),
}

/// Makes `queue`, or compares it with the one that exists.
pub(super) async fn compare(connection: &Connection, queue: &Queue) -> Result<Declared, String> {
    match timeout(DECLARE_DEADLINE, make(connection, queue)).await {
        Ok(Ok(Ok(()))) => Ok(Declared::AsWished),
        Ok(Ok(Err(error))) if is(&error, PRECONDITION_FAILED) => {
            Ok(Declared::Otherwise(said(error)))
        }
        Ok(Ok(Err(error))) => Err(said(error)),
        Ok(Err(why)) => Err(why),
        Err(_) => Err(format!("no answer to the declaration of {}", queue.name)),
    }
}

async fn make(connection: &Connection, queue: &Queue) -> Result<Result<(), lapin::Error>, String> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    ask(connection, queue, durable).await
}

/// One declaration, on a channel of its own: a refused one closes its channel.
async fn ask(
    connection: &Connection,
    queue: &Queue,
    options: QueueDeclareOptions,
) -> Result<Result<(), lapin::Error>, String> {
    let name = short(&queue.name)?;
    let channel = connection.create_channel().await.map_err(said)?;
    match channel.queue_declare(name, options, arguments(queue)).await {
        Ok(_) => {
            let _ = channel.close(200, "OK".into()).await;
            Ok(Ok(()))
        }
        Err(error) => Ok(Err(error)),
    }
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
    arguments
}

/// Whether the broker has closed the channel with this code.
pub(super) fn is(error: &lapin::Error, code: u16) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(reply) if reply.get_id() == code)
}

#[expect(clippy::needless_pass_by_value, reason = "so it can be given to map_err")]
fn said(error: lapin::Error) -> String {
    error.to_string()
}
