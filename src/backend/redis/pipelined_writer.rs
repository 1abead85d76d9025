//! Writing many calls of scripts in one pipeline: under load a hundred calls cost one round trip, and a
//! single call is not delayed.

use std::collections::VecDeque;

use redis::{Pipeline, ServerError, Value};
use tokio::sync::mpsc;

use super::connection::{Connection, ConnectionHandle, RETRY_DELAY, error_text, is_transient};
use crate::backend::backoff::Backoff;
use crate::error::{Error, Kind};

/// The bytes after which a pipeline is cut off.
const BATCH_BYTES: usize = 1024 * 1024;
/// Redis closes the connection on a value over `proto-max-bulk-len`, which is never below 1 MiB.
pub(super) const ALWAYS_ACCEPTED: usize = 1024 * 1024;
/// How many connections one large call may break before it fails.
const MAX_LARGE_ATTEMPTS: u32 = 5;

/// A call of an idempotent script, and its caller.
pub(super) trait PipelinedCall: Sized {
    /// What a successful call leaves for the writer.
    type Written;
    /// What is written, in errors.
    const WHAT: &'static str;
    /// Whether no call may overtake another.
    const IS_ORDERED: bool;

    /// Returns the size of its arguments, in bytes.
    fn size(&self) -> usize;

    /// Returns whether a caller still waits for it, or needs it anyway.
    fn is_wanted(&self) -> bool;

    /// Gives the reply to the caller.
    fn succeed(self, reply: Value) -> Self::Written;

    /// Gives the error to the caller.
    fn fail(self, error: Error);

    /// Returns the error for a reply that is neither a success nor transient.
    fn error_of(&self, error: &ServerError) -> Error {
        Kind::Connection { peer: "Redis".to_owned(), cause: error_text(error) }.into()
    }

    /// Returns the replies of `count` calls from those of their pipeline.
    fn replies(replies: Vec<Value>, count: usize) -> Vec<Value>;

    /// Logs that the server has rejected calls for now. Called once for each batch.
    fn log_rejection(error: &ServerError);
}

/// Receives calls until there are `limit`, or no more are queued. Returns false when the channel is
/// closed. Cancel safe.
pub(super) async fn receive<C>(
    calls: &mut mpsc::Receiver<C>,
    batch: &mut Vec<C>,
    limit: usize,
) -> bool {
    // Not empty after a call that was cancelled below.
    if batch.is_empty() && calls.recv_many(batch, limit).await == 0 {
        return false;
    }
    // Lets other ready tasks add their calls.
    tokio::task::yield_now().await;
    while batch.len() < limit
        && let Ok(call) = calls.try_recv()
    {
        batch.push(call);
    }
    true
}

/// Writes all calls of a batch. Retries without a time limit. Returns what the successful ones leave.
pub(super) async fn write<C: PipelinedCall>(
    batch: impl IntoIterator<Item = C>,
    handle: &ConnectionHandle,
    encode: impl Fn(&[C], &mut Pipeline, &Connection),
) -> Vec<C::Written> {
    let mut calls = VecDeque::from_iter(batch);
    let mut written = Vec::with_capacity(calls.len());
    let mut backoff = Backoff::new(RETRY_DELAY);
    let mut warned = false;
    let mut broken = 0;
    loop {
        calls.retain(C::is_wanted);
        if calls.is_empty() {
            return written;
        }
        let Some(connection) = handle.connection().await else {
            calls.into_iter().for_each(|call| call.fail(Kind::Closed.into()));
            return written;
        };
        // After a failure, send one call at a time, so that a call that breaks connections fails alone.
        let count = if broken == 0 { portion(&calls) } else { 1 };
        let before = calls.len();
        let mut pipeline = Pipeline::new();
        encode(&calls.make_contiguous()[..count], &mut pipeline, &connection);
        match connection.send(&pipeline).await {
            Ok(replies) => {
                let replies = C::replies(replies, count);
                let rejected = settle(&mut calls, replies, &connection, &mut written).await;
                if let Some(error) = rejected.filter(|_| !std::mem::replace(&mut warned, true)) {
                    C::log_rejection(&error);
                }
                if calls.len() == before {
                    backoff.wait().await;
                } else {
                    (broken, backoff) = (0, Backoff::new(RETRY_DELAY));
                }
            }
            Err(error) => {
                broken += 1;
                if broken > MAX_LARGE_ATTEMPTS
                    && calls.front().is_some_and(|call| call.size() >= ALWAYS_ACCEPTED)
                    && let Some(call) = calls.pop_front()
                {
                    let (peer, what) = ("Redis".to_owned(), C::WHAT);
                    let cause = format!(
                        "the connection failed {broken} times while {what} was written: {error}"
                    );
                    call.fail(Kind::Connection { peer, cause }.into());
                }
                // Reconnecting takes time, which delays the retry.
                connection.discard();
            }
        }
    }
}

/// The number of calls for the next pipeline: at least one.
fn portion<C: PipelinedCall>(calls: &VecDeque<C>) -> usize {
    let mut bytes = 0;
    let fits = calls.iter().take_while(|call| {
        bytes += call.size();
        bytes <= BATCH_BYTES
    });
    fits.count().max(1)
}

/// Answers the first calls, one per reply. Calls to retry stay in the queue. Returns why one of them was
/// rejected.
async fn settle<C: PipelinedCall>(
    calls: &mut VecDeque<C>,
    replies: Vec<Value>,
    connection: &Connection,
    written: &mut Vec<C::Written>,
) -> Option<ServerError> {
    let (mut retries, mut rejected, mut unknown_script) = (Vec::new(), None, false);
    for reply in replies {
        let Some(call) = calls.pop_front() else { break };
        match reply {
            Value::ServerError(error) if error.code() == "NOSCRIPT" => {
                unknown_script = true;
                retries.push(call);
            }
            Value::ServerError(error) if is_transient(&error) => {
                rejected = rejected.or(Some(error));
                retries.push(call);
            }
            Value::ServerError(error) => {
                let error = call.error_of(&error);
                call.fail(error);
            }
            reply => written.push(call.succeed(reply)),
        }
    }
    if C::IS_ORDERED {
        retries.into_iter().rev().for_each(|call| calls.push_front(call));
    } else {
        // Behind the others, so that a call that the server always rejects does not block them.
        calls.extend(retries);
    }
    if unknown_script {
        // If this fails, the connection is discarded, and all calls are retried on the next one.
        let _ = connection.load_scripts().await;
    }
    rejected
}
