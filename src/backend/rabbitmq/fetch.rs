//! Taking messages out of a queue one by one, without consuming it, and looking at queues.

use futures_util::TryFutureExt;
use lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ErrorKind};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::codec::short;
use super::consume::{receive, write_acks};
use super::ladder;
use super::topology::DECLARE_DEADLINE;
use crate::backend::{Fetched, Flushed, Queue, QueueState};

/// What is held in memory at most, less the last message.
const FETCH_BYTES: usize = 64 * 1024 * 1024;
const NOT_FOUND: u16 = 404;

/// The first messages of a queue, oldest first: at most `count`, and no more once they are 64 MiB.
/// They are settled over a channel of their own, which closes when all are.
pub(super) async fn fetch(
    connection: &Connection,
    queue: &str,
    count: usize,
    acks: &TaskTracker,
) -> Result<Fetched, String> {
    let name = short(queue)?;
    let channel = within(connection.create_channel()).await?.map_err(|error| error.to_string())?;
    let (settlements, settled) = mpsc::unbounded_channel();
    let flushed = acks.spawn(write_acks(channel.clone(), settled, CancellationToken::new()));
    let (mut fetched, mut bytes) = (Vec::new(), 0);
    while fetched.len() < count && bytes < FETCH_BYTES {
        let got = channel.basic_get(name.clone(), BasicGetOptions::default());
        match within(got).await? {
            Ok(Some(got)) => {
                bytes += got.delivery.data.len();
                fetched.push(receive(got.delivery, &settlements));
            }
            Ok(None) => break,
            Err(error) if is_not_found(&error) => break,
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok((fetched, Flushed(flushed)))
}

/// How a queue is doing; `None` when there is no such queue.
pub(super) async fn inspect(
    connection: &Connection,
    queue: &str,
) -> Result<Option<QueueState>, String> {
    let name = short(queue)?;
    let channel = within(connection.create_channel()).await?.map_err(|error| error.to_string())?;
    let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match within(channel.queue_declare(name, look, FieldTable::default())).await? {
        Ok(found) => {
            let state = QueueState {
                ready: found.message_count().into(),
                consumers: found.consumer_count().into(),
            };
            let _ = within(channel.close(200, "OK".into())).await;
            Ok(Some(state))
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Deletes every message that is ready in a queue; says how many. None in a queue that is not.
pub(super) async fn purge(connection: &Connection, queue: &str) -> Result<u64, String> {
    let name = short(queue)?;
    let channel = within(connection.create_channel()).await?.map_err(|error| error.to_string())?;
    match within(channel.queue_purge(name, QueuePurgeOptions::default())).await? {
        Ok(count) => {
            let _ = within(channel.close(200, "OK".into())).await;
            Ok(count.into())
        }
        Err(error) if is_not_found(&error) => Ok(0),
        Err(error) => Err(error.to_string()),
    }
}

/// Deletes a queue that has no consumer; says how many messages went with it.
pub(super) async fn delete(connection: &Connection, queue: &Queue) -> Result<Option<u64>, String> {
    if inspect(connection, &queue.name).await?.is_none() {
        return Ok(None);
    }
    // Delayed messages of it are dead letters then, and hold up no others.
    ladder::bind(connection, queue).await.map_err(|error| error.to_string())?;
    let name = short(&queue.name)?;
    let channel = within(connection.create_channel()).await?.map_err(|error| error.to_string())?;
    let unused = QueueDeleteOptions { if_unused: true, ..QueueDeleteOptions::default() };
    match within(channel.queue_delete(name, unused)).await? {
        Ok(count) => {
            let _ = within(channel.close(200, "OK".into())).await;
            Ok(Some(count.into()))
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// lapin waits for ever for a broker that does not answer.
async fn within<T, E>(asked: impl Future<Output = Result<T, E>>) -> Result<Result<T, E>, String> {
    timeout(DECLARE_DEADLINE, asked).map_err(|_| "no answer within 10 s".to_owned()).await
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(reply) if reply.get_id() == NOT_FOUND)
}
