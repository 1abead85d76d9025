//! Gets messages from a queue one by one, without consuming it, and inspects queues.

use futures_util::TryFutureExt;
use lapin::ErrorKind;
use lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::channel_pool::ChannelPool;
use super::channel_pool::DECLARE_DEADLINE;
use super::codec::short;
use super::consume::{receive, write_acks};
use super::delayed_delivery;
use crate::backend::{Fetched, Queue, QueueState, SettleBarrier};

/// The most bytes held in memory, not counting the last message.
const FETCH_BYTES: usize = 64 * 1024 * 1024;
const NOT_FOUND: u16 = 404;

/// Gets the first messages of a queue, oldest first: at most `count`, and no more after 64 MiB. They
/// are settled on the same channel, which no other request uses until all are settled.
pub(super) async fn fetch(
    channels: &ChannelPool,
    queue: &str,
    count: usize,
    acks: &TaskTracker,
) -> Result<Fetched, String> {
    let name = short(queue)?;
    let borrowed = channels.take().await?;
    let channel = borrowed.channel.clone();
    let (settlements, settled) = mpsc::unbounded_channel();
    let (acking, queue) = (channel.clone(), name.clone());
    let flushed = acks.spawn(async move {
        if !write_acks(&acking, settled, 0, CancellationToken::new()).await {
            return;
        }
        // The reply shows that the queue has processed the acks, because they were sent before.
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let looked = within(acking.queue_declare(queue, look, FieldTable::default())).await;
        if let Ok(Ok(_)) = looked {
            borrowed.put_back();
        }
    });
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
    Ok((fetched, SettleBarrier(flushed)))
}

/// Returns the state of a queue; `None` when it does not exist.
pub(super) async fn inspect(
    channels: &ChannelPool,
    queue: &str,
) -> Result<Option<QueueState>, String> {
    let name = short(queue)?;
    let borrowed = channels.take().await?;
    let channel = borrowed.channel.clone();
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match within(channel.queue_declare(name, passive, FieldTable::default())).await? {
        Ok(found) => {
            let state = QueueState {
                ready: found.message_count().into(),
                consumers: found.consumer_count().into(),
            };
            borrowed.put_back();
            Ok(Some(state))
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Deletes every ready message of a queue. Returns their number; 0 when the queue does not exist.
pub(super) async fn purge(channels: &ChannelPool, queue: &str) -> Result<u64, String> {
    let name = short(queue)?;
    let borrowed = channels.take().await?;
    let channel = borrowed.channel.clone();
    match within(channel.queue_purge(name, QueuePurgeOptions::default())).await? {
        Ok(count) => {
            borrowed.put_back();
            Ok(count.into())
        }
        Err(error) if is_not_found(&error) => Ok(0),
        Err(error) => Err(error.to_string()),
    }
}

/// Deletes a queue that has no consumer. Returns how many messages were deleted with it, or `None` when
/// the queue does not exist.
pub(super) async fn delete(channels: &ChannelPool, queue: &Queue) -> Result<Option<u64>, String> {
    if inspect(channels, &queue.name).await?.is_none() {
        return Ok(None);
    }
    // After this, delayed messages of the queue become dead letters and do not block others.
    delayed_delivery::bind(channels, queue).await.map_err(|error| error.to_string())?;
    let name = short(&queue.name)?;
    let borrowed = channels.take().await?;
    let channel = borrowed.channel.clone();
    let unused = QueueDeleteOptions { if_unused: true, ..QueueDeleteOptions::default() };
    match within(channel.queue_delete(name, unused)).await? {
        Ok(count) => {
            borrowed.put_back();
            Ok(Some(count.into()))
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// lapin waits forever for a broker that does not respond.
async fn within<T, E>(
    operation: impl Future<Output = Result<T, E>>,
) -> Result<Result<T, E>, String> {
    timeout(DECLARE_DEADLINE, operation).map_err(|_| "no reply within 10 s".to_owned()).await
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(reply) if reply.get_id() == NOT_FOUND)
}
