//! The writer of results. It keeps the results of the last minute, and writes them again to a server
//! that has lost them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Pipeline, ServerError, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::approval_records::{PENDING, suspension_key};
use super::connection::{Connection, ConnectionHandle, error_text};
use super::keys::{Keys, REPLY_PREFIX};
use super::pipelined_writer::{self, ALWAYS_ACCEPTED, PipelinedCall};
use super::recent_results::RecentResults;
use super::script::Script;
use crate::backend::StoreResult;
use crate::backend::approvals::REQUEST_RETENTION;
use crate::backend::suspensions::ENDED_RETENTION;
use crate::error::{Error, Kind};
use crate::protocol::{Document, SUSPENDED, TaskDigest, date};

/// Queued results; further callers wait for capacity.
const QUEUE_CAPACITY: usize = 256;
/// The most results of one pipeline.
const BATCH: usize = 128;
/// Pipelines in flight: one is written while another is answered.
const IN_FLIGHT: usize = 2;

/// The argument of `store_results.lua` that keeps a result forever.
const NO_EXPIRY: &str = "0";

/// A result to store and the channel for its caller (`None`: a recent result is stored again).
#[derive(Debug)]
pub(super) struct ResultJob {
    pub(super) result: StoreResult,
    /// The digest of the task, if the end of its suspension is recorded in the same step.
    pub(super) ended: Option<TaskDigest>,
    /// Gets the reply of the script.
    pub(super) stored: Option<oneshot::Sender<Result<Value, Error>>>,
}

impl PipelinedCall for ResultJob {
    type Written = StoreResult;
    const WHAT: &'static str = "this result";
    const IS_ORDERED: bool = false;

    fn size(&self) -> usize {
        self.result.document.json.len()
    }

    fn is_wanted(&self) -> bool {
        self.stored.as_ref().is_none_or(|stored| !stored.is_closed())
    }

    fn succeed(self, reply: Value) -> StoreResult {
        if let Some(stored) = self.stored {
            // The caller may have stopped waiting.
            let _ = stored.send(Ok(reply));
        }
        self.result
    }

    fn fail(self, error: Error) {
        if let Some(stored) = self.stored {
            let _ = stored.send(Err(error));
        }
    }

    fn error_of(&self, error: &ServerError) -> Error {
        let is_too_large = error.details().is_some_and(|text| text.contains("invalid bulk length"));
        if is_too_large {
            let (size, limit) = (self.size(), ALWAYS_ACCEPTED);
            let (what, setting) = ("a result", "proto-max-bulk-len of Redis");
            return Kind::TooLarge { what, size, limit, setting }.into();
        }
        Kind::Connection { peer: "Redis".into(), cause: error_text(error) }.into()
    }

    /// An error of the script is the reply to each call.
    fn replies(mut replies: Vec<Value>, count: usize) -> Vec<Value> {
        match replies.pop() {
            Some(Value::Array(replies)) => replies,
            Some(error) => vec![error; count],
            None => Vec::new(),
        }
    }

    fn log_rejection(error: &ServerError) {
        warn!(cause = error_text(error), "Redis rejected results; retrying");
    }
}

/// The task that writes results.
#[derive(Debug)]
pub(super) struct ResultWriter {
    jobs: mpsc::Receiver<ResultJob>,
    handle: ConnectionHandle,
    script: ResultScript,
    closing: CancellationToken,
}

impl ResultWriter {
    /// Starts the writer among `tasks`. Returns the channel that accepts results. They expire after
    /// `expires` seconds; `0`: never.
    pub(super) fn start(
        tasks: &TaskTracker,
        handle: ConnectionHandle,
        (keys, expires): (Keys, u64),
        closing: CancellationToken,
    ) -> mpsc::Sender<ResultJob> {
        let (sender, jobs) = mpsc::channel(QUEUE_CAPACITY);
        let script = ResultScript { keys, expires: expires.to_string() };
        tasks.spawn(Self { jobs, handle, script, closing }.run());
        sender
    }

    /// Writes until the store is closed or all senders are gone.
    async fn run(self) {
        let Self { mut jobs, handle, script, closing } = self;
        let encode = |jobs: &[ResultJob], pipeline: &mut Pipeline, connection: &Connection| {
            script.encode(jobs, pipeline, connection);
        };
        let write = |batch: Vec<ResultJob>| pipelined_writer::write(batch, &handle, encode);
        let mut recent = RecentResults::default();
        let mut retries = VecDeque::new();
        let mut identity: Option<Arc<str>> = None;
        let mut connections = handle.clone();
        let mut in_flight = FuturesUnordered::new();
        let mut cleanup = interval(Duration::from_secs(15));
        cleanup.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let has_capacity = in_flight.len() < IN_FLIGHT;
            if has_capacity && !retries.is_empty() {
                in_flight.push(write(retries.drain(..retries.len().min(BATCH)).collect()));
                continue;
            }
            tokio::select! {
                Some(stored) = in_flight.next(), if !in_flight.is_empty() => {
                    let now = Instant::now();
                    for result in stored {
                        recent.remember(result, now);
                    }
                }
                Some(connection) = connections.changed() => {
                    let known = identity.replace(connection.identity.clone());
                    if known.is_some_and(|known| known != connection.identity) {
                        retries.extend(recent.take().map(|result| ResultJob { result, ended: None, stored: None }));
                    }
                }
                received = pipelined_writer::receive(&mut jobs, &mut batch, BATCH), if has_capacity => {
                    if !received {
                        break;
                    }
                    in_flight.push(write(std::mem::take(&mut batch)));
                    batch.reserve(BATCH);
                }
                _ = cleanup.tick() => recent.forget_old(Instant::now()),
                () = closing.cancelled() => break,
            }
        }
        jobs.close();
        in_flight.push(write(batch));
        while let Some(job) = jobs.recv().await {
            in_flight.push(write(vec![job]));
        }
        while in_flight.next().await.is_some() {}
    }
}

/// The parameters of `store_results.lua`.
#[derive(Debug)]
struct ResultScript {
    keys: Keys,
    /// Retention in seconds; `0`: forever.
    expires: String,
}

impl ResultScript {
    /// Adds one call for all results: looking a script up and preparing its arguments takes Redis as long
    /// as storing a result.
    fn encode(&self, jobs: &[ResultJob], pipeline: &mut Pipeline, connection: &Connection) {
        let ended = jobs.iter().filter(|job| job.ended.is_some());
        let records: Vec<_> = ended.map(|job| suspension_key(&job.result.document.id)).collect();
        let index = (!records.is_empty()).then_some(PENDING);
        let keys = jobs.len() + usize::from(index.is_some()) + records.len();
        pipeline.cmd("EVALSHA").arg(connection.hash(Script::StoreResults)).arg(keys);
        for job in jobs {
            pipeline.arg(self.keys.of(&job.result.document.id));
        }
        pipeline.arg(index.as_slice()).arg(records);
        pipeline.arg(ENDED_RETENTION.as_secs()).arg(REQUEST_RETENTION.as_secs());
        for ResultJob { result: StoreResult { document, reply_to, received }, ended, .. } in jobs {
            let reply = reply_to.as_deref().filter(|to| to.starts_with(REPLY_PREFIX));
            pipeline
                .arg(&*document.json)
                .arg(if is_suspended(document) { NO_EXPIRY } else { &self.expires })
                .arg(reply.unwrap_or_default())
                .arg(received.map(date).unwrap_or_default())
                .arg(ended.as_ref().map_or("", TaskDigest::as_str));
        }
    }
}

/// A suspended task's document never expires, so that waiters find it however late the decision is.
fn is_suspended(document: &Document) -> bool {
    document.state.as_str() == SUSPENDED
}
