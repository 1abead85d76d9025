//! Declaring queues without ever colliding with what another client declared.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ErrorKind};
use tokio::time::timeout;

use super::codec::short;
use crate::backend::Queue;

/// A classic queue whose node is dead answers only after 64 s.
const DECLARE_DEADLINE: Duration = Duration::from_secs(10);
const NOT_FOUND: u16 = 404;

/// Makes sure that `queue` exists. One that exists is taken as it is, whatever its type and
/// arguments; only a missing one is made: durable, classic, with an empty argument table.
pub(super) async fn declare(connection: &Connection, queue: &Queue) -> Result<(), String> {
    match timeout(DECLARE_DEADLINE, declare_missing(connection, queue)).await {
        Ok(declared) => declared,
        Err(_) => Err(format!("no answer to the declaration of {}", queue.name)),
    }
}

async fn declare_missing(connection: &Connection, queue: &Queue) -> Result<(), String> {
    let name = short(&queue.name)?;
    let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let make = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for options in [look, make] {
        // A refused declaration closes its channel, so each has one of its own.
        let channel = connection.create_channel().await.map_err(|error| error.to_string())?;
        match channel.queue_declare(name.clone(), options, FieldTable::default()).await {
            Ok(_) => {
                let _ = channel.close(200, "OK".into()).await;
                return Ok(());
            }
            Err(error) if options.passive && is_not_found(&error) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(reply) if reply.get_id() == NOT_FOUND)
}
