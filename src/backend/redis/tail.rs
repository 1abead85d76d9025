//! The reader of streams that are followed: one blocking read at a time, of all of them together,
//! on a connection of its own. A reader who asks meanwhile has it unblocked.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use redis::{FromRedisValue, Pipeline, ServerError, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::link::{Backoff, Keeper, Link, Session, passes, said};
use super::stream;
use crate::backend::StreamEntry;
use crate::error::{Error, Kind};

/// How long a read blocks at most: less than the connection's own probes wait.
const BLOCK: Duration = Duration::from_secs(2);
/// Between two tries to unblock a read that the server has not begun.
const RACE: Duration = Duration::from_millis(5);

/// Somebody waits for entries of a stream.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) key: String,
    pub(super) after: u64,
    pub(super) answer: oneshot::Sender<Result<Vec<StreamEntry>, Error>>,
}

/// The task that reads.
pub(super) struct Tail {
    reads: mpsc::UnboundedReceiver<Read>,
    /// Makes the connection, once somebody follows.
    keeper: Keeper,
    /// For commands that do not block.
    link: Link,
    closing: CancellationToken,
}

impl Tail {
    /// Starts it among `tasks`; it serves the reads that are sent to what this returns.
    pub(super) fn start(
        tasks: &TaskTracker,
        keeper: Keeper,
        link: Link,
        closing: CancellationToken,
    ) -> mpsc::UnboundedSender<Read> {
        let (sender, reads) = mpsc::unbounded_channel();
        tasks.spawn(Self { reads, keeper, link, closing }.run());
        sender
    }

    /// Reads until it is closed or has no callers left.
    async fn run(self) {
        let Self { reads, keeper, link, closing } = self;
        closing.run_until_cancelled(follow(reads, keeper, link)).await;
    }
}

async fn follow(mut reads: mpsc::UnboundedReceiver<Read>, keeper: Keeper, link: Link) {
    let Some(first) = reads.recv().await else { return };
    let blocking = keeper.start();
    let mut waiting = vec![first];
    let mut backoff = Backoff::default();
    loop {
        while let Ok(read) = reads.try_recv() {
            waiting.push(read);
        }
        waiting.retain(|read| !read.answer.is_closed());
        if waiting.is_empty() {
            match reads.recv().await {
                Some(read) => waiting.push(read),
                None => return,
            }
        }
        let Some(session) = blocking.session().await else { return };
        match read_all(&session, &link, &mut waiting, &mut reads).await {
            Some(Value::ServerError(error)) if passes(&error) => backoff.wait().await,
            // One of these keys is no stream: who reads it alone finds out that it is theirs.
            Some(Value::ServerError(error)) => refuse(&error, &mut waiting),
            Some(answer) => {
                backoff = Backoff::default();
                hand_out(answer, &mut waiting);
            }
            None => backoff.wait().await,
        }
    }
}

/// Reads for all that wait, blocking until one has something, or another one comes. `None`: the
/// connection broke.
async fn read_all(
    session: &Session,
    link: &Link,
    waiting: &mut Vec<Read>,
    reads: &mut mpsc::UnboundedReceiver<Read>,
) -> Option<Value> {
    let mut streams = HashMap::new();
    for Read { key, after, .. } in waiting.iter() {
        let from = streams.entry(key.clone()).or_insert(*after);
        *from = (*from).min(*after);
    }
    let streams: Vec<_> = streams.into_iter().collect();
    let block = u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX);
    let read = stream::read(&streams, Some(block));
    let mut reading = pin!(session.send_within(BLOCK + session.deadline(), &read));
    let answers = tokio::select! {
        biased;
        answers = &mut reading => answers,
        Some(another) = reads.recv() => {
            waiting.push(another);
            tokio::select! {
                answers = &mut reading => answers,
                () = unblock(session, link) => reading.await,
            }
        }
    };
    answers.ok()?.pop()
}

/// Ends the blocking read. It may not have begun yet: then tries again.
async fn unblock(session: &Session, link: &Link) {
    let Some(id) = session.client else { return };
    let mut unblock = Pipeline::with_capacity(1);
    unblock.cmd("CLIENT").arg("UNBLOCK").arg(id);
    loop {
        let Some(other) = link.session().await else { return };
        let unblocked = other.send(&unblock).await.ok().and_then(|mut answers| answers.pop());
        match unblocked.map(u8::from_redis_value) {
            Some(Ok(0)) => sleep(RACE).await,
            // Forbidden: then it ends by itself.
            _ => return,
        }
    }
}

/// Gives everybody the entries that they wait for.
fn hand_out(answer: Value, waiting: &mut Vec<Read>) {
    let mut streams: HashMap<_, _> = stream::parse(answer).into_iter().collect();
    for read in std::mem::take(waiting) {
        match streams.get(&read.key) {
            Some(Ok(entries)) => {
                let new = entries.iter().filter(|entry| entry.number > read.after);
                let new: Vec<_> = new.cloned().collect();
                if new.is_empty() {
                    waiting.push(read);
                } else {
                    let _ = read.answer.send(Ok(new));
                }
            }
            Some(Err(_)) => {
                let entries = streams.remove(&read.key).unwrap_or_else(|| Ok(Vec::new()));
                let _ = read.answer.send(entries);
            }
            None => waiting.push(read),
        }
    }
}

/// Tells everybody that what they wait for cannot be read.
fn refuse(cause: &ServerError, waiting: &mut Vec<Read>) {
    for read in waiting.drain(..) {
        let (peer, cause) = ("Redis".to_owned(), said(cause));
        let _ = read.answer.send(Err(Kind::Connection { peer, cause }.into()));
    }
}
