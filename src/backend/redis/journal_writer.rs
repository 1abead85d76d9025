//! The writer of journals and streams. It writes all queued script calls in order.
//!
//! Only one pipeline is in flight, because otherwise later calls could overtake a retried one.

use bytes::Bytes;
use redis::{Pipeline, ServerError, Value};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::connection::{Connection, ConnectionHandle, error_text};
use super::pipelined_writer::{self, PipelinedCall};
use super::script::Script;
use crate::error::Error;

/// Queued calls; further callers wait for capacity.
const QUEUE_CAPACITY: usize = 256;
/// The most calls of one pipeline.
const BATCH: usize = 512;

/// A queued script call and the channel for its reply.
#[derive(Debug)]
pub(super) struct JournalCall {
    /// An idempotent script.
    pub(super) script: Script,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<Bytes>,
    pub(super) reply: oneshot::Sender<Result<Value, Error>>,
}

impl PipelinedCall for JournalCall {
    type Written = ();
    const WHAT: &'static str = "this value";
    const IS_ORDERED: bool = true;

    fn size(&self) -> usize {
        self.arguments.iter().map(Bytes::len).sum()
    }

    /// A call takes effect even if its caller has stopped waiting.
    fn is_wanted(&self) -> bool {
        true
    }

    fn succeed(self, reply: Value) {
        let _ = self.reply.send(Ok(reply));
    }

    fn fail(self, error: Error) {
        let _ = self.reply.send(Err(error));
    }

    fn replies(replies: Vec<Value>, _count: usize) -> Vec<Value> {
        replies
    }

    fn log_rejection(error: &ServerError) {
        debug!(cause = error_text(error), "Redis rejected steps or stream entries; retrying");
    }
}

/// The task that runs the scripts.
#[derive(Debug)]
pub(super) struct JournalWriter {
    calls: mpsc::Receiver<JournalCall>,
    handle: ConnectionHandle,
    closing: CancellationToken,
}

impl JournalWriter {
    /// Starts the writer among `tasks`. Returns the channel that accepts calls.
    pub(super) fn start(
        tasks: &TaskTracker,
        handle: ConnectionHandle,
        closing: CancellationToken,
    ) -> mpsc::Sender<JournalCall> {
        let (sender, calls) = mpsc::channel(QUEUE_CAPACITY);
        tasks.spawn(Self { calls, handle, closing }.run());
        sender
    }

    /// Writes until the store is closed or all senders are gone.
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        let closing = self.closing.clone();
        loop {
            let receiving = pipelined_writer::receive(&mut self.calls, &mut batch, BATCH);
            if closing.run_until_cancelled(receiving).await != Some(true) {
                break;
            }
            self.write(&mut batch).await;
        }
        self.calls.close();
        self.write(&mut batch).await;
        while self.calls.recv_many(&mut batch, BATCH).await > 0 {
            self.write(&mut batch).await;
        }
    }

    async fn write(&self, batch: &mut Vec<JournalCall>) {
        pipelined_writer::write(batch.drain(..), &self.handle, encode).await;
    }
}

fn encode(calls: &[JournalCall], pipeline: &mut Pipeline, connection: &Connection) {
    for JournalCall { script, keys, arguments, .. } in calls {
        pipeline.cmd("EVALSHA").arg(connection.hash(*script)).arg(keys.len()).arg(keys);
        for argument in arguments {
            pipeline.arg(&**argument);
        }
    }
}
