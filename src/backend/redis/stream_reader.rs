//! The reader of followed streams: one blocking read of all streams at a time, on its own connection. A
//! new follower interrupts the read with `CLIENT UNBLOCK`.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use redis::{FromRedisValue, Pipeline, ServerError, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{
    Connection, ConnectionHandle, RETRY_DELAY, Supervisor, error_text, is_transient,
};
use super::stream_entries;
use crate::backend::StreamEntry;
use crate::backend::backoff::Backoff;
use crate::error::{Error, Kind};

/// The longest time a read blocks: shorter than the deadline of the connection's PING.
const BLOCK: Duration = Duration::from_secs(2);
/// The delay between attempts to unblock a read that the server has not begun.
const RACE: Duration = Duration::from_millis(5);

/// A wait for entries of a stream.
#[derive(Debug)]
pub(super) struct StreamRead {
    pub(super) key: String,
    pub(super) after: u64,
    pub(super) reply: oneshot::Sender<Result<Vec<StreamEntry>, Error>>,
}

/// The task that reads.
pub(super) struct StreamReader {
    reads: mpsc::UnboundedReceiver<StreamRead>,
    /// Supervises the reader's connection, which is made for the first follower.
    supervisor: Supervisor,
    /// The connection for commands that do not block.
    handle: ConnectionHandle,
    closing: CancellationToken,
}

impl StreamReader {
    /// Starts the reader among `tasks`. Returns the channel that accepts reads.
    pub(super) fn start(
        tasks: &TaskTracker,
        supervisor: Supervisor,
        handle: ConnectionHandle,
        closing: CancellationToken,
    ) -> mpsc::UnboundedSender<StreamRead> {
        let (sender, reads) = mpsc::unbounded_channel();
        tasks.spawn(Self { reads, supervisor, handle, closing }.run());
        sender
    }

    /// Reads until the store is closed or all senders are gone.
    async fn run(self) {
        let Self { reads, supervisor, handle, closing } = self;
        closing.run_until_cancelled(follow(reads, supervisor, handle)).await;
    }
}

async fn follow(
    mut reads: mpsc::UnboundedReceiver<StreamRead>,
    supervisor: Supervisor,
    handle: ConnectionHandle,
) {
    let Some(first) = reads.recv().await else { return };
    let blocking = supervisor.start();
    let mut waiting = vec![first];
    let mut backoff = Backoff::new(RETRY_DELAY);
    loop {
        while let Ok(read) = reads.try_recv() {
            waiting.push(read);
        }
        waiting.retain(|read| !read.reply.is_closed());
        if waiting.is_empty() {
            match reads.recv().await {
                Some(read) => waiting.push(read),
                None => return,
            }
        }
        let Some(connection) = blocking.connection().await else { return };
        let (reply, late) = read_all(&connection, &handle, &waiting, &mut reads).await;
        match reply {
            Some(Value::ServerError(error)) if is_transient(&error) => backoff.wait().await,
            // One of these keys is not a stream. All followers retry; the one that then reads alone
            // learns that it is its key.
            Some(Value::ServerError(error)) => refuse(&error, &mut waiting),
            Some(reply) => {
                backoff = Backoff::new(RETRY_DELAY);
                hand_out(reply, &mut waiting);
            }
            None => backoff.wait().await,
        }
        waiting.extend(late);
    }
}

/// Reads the streams of all waits. Blocks until one has entries or a new wait arrives. Returns the reply,
/// `None` when the connection broke; and the new wait, which the reply does not answer: it may begin after
/// entries that the new follower has not read.
async fn read_all(
    connection: &Connection,
    handle: &ConnectionHandle,
    waiting: &[StreamRead],
    reads: &mut mpsc::UnboundedReceiver<StreamRead>,
) -> (Option<Value>, Option<StreamRead>) {
    let mut streams = HashMap::new();
    for StreamRead { key, after, .. } in waiting {
        let from = streams.entry(key.clone()).or_insert(*after);
        *from = (*from).min(*after);
    }
    let streams: Vec<_> = streams.into_iter().collect();
    let block = u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX);
    let read = stream_entries::read(&streams, Some(block));
    let mut reading = pin!(connection.send_within(BLOCK + connection.deadline(), &read));
    let mut late = None;
    let replies = tokio::select! {
        biased;
        replies = &mut reading => replies,
        Some(another) = reads.recv() => {
            late = Some(another);
            tokio::select! {
                replies = &mut reading => replies,
                () = unblock(connection, handle) => reading.await,
            }
        }
    };
    (replies.ok().and_then(|mut replies| replies.pop()), late)
}

/// Ends the blocking read. Retries while the server has not begun it.
async fn unblock(connection: &Connection, handle: &ConnectionHandle) {
    let Some(id) = connection.client else { return };
    let mut unblock = Pipeline::with_capacity(1);
    unblock.cmd("CLIENT").arg("UNBLOCK").arg(id);
    loop {
        let Some(other) = handle.connection().await else { return };
        let unblocked = other.send(&unblock).await.ok().and_then(|mut replies| replies.pop());
        match unblocked.map(u8::from_redis_value) {
            Some(Ok(0)) => sleep(RACE).await,
            // `CLIENT UNBLOCK` is forbidden: the read ends by its own timeout.
            _ => return,
        }
    }
}

/// Answers every wait that has new entries.
fn hand_out(reply: Value, waiting: &mut Vec<StreamRead>) {
    let mut streams: HashMap<_, _> = stream_entries::parse(reply).into_iter().collect();
    for read in std::mem::take(waiting) {
        match streams.get(&read.key) {
            Some(Ok(entries)) => {
                let new = entries.iter().filter(|entry| entry.number > read.after);
                let new: Vec<_> = new.cloned().collect();
                if new.is_empty() {
                    waiting.push(read);
                } else {
                    let _ = read.reply.send(Ok(new));
                }
            }
            Some(Err(_)) => {
                let entries = streams.remove(&read.key).unwrap_or_else(|| Ok(Vec::new()));
                let _ = read.reply.send(entries);
            }
            None => waiting.push(read),
        }
    }
}

/// Fails every wait: the server cannot read the streams.
fn refuse(cause: &ServerError, waiting: &mut Vec<StreamRead>) {
    for read in waiting.drain(..) {
        let (peer, cause) = ("Redis".to_owned(), error_text(cause));
        let _ = read.reply.send(Err(Kind::Connection { peer, cause }.into()));
    }
}
