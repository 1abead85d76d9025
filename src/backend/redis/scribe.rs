//! The writer of journals and streams: whatever waits goes out as one pipeline of scripts, in the
//! order in which it came, and is tried again until the server has answered.
//!
//! One pipeline at a time, or what is tried again could be overtaken.

use std::collections::VecDeque;

use bytes::Bytes;
use redis::{Pipeline, Value};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::HANDED_OVER;
use super::finish::{ALWAYS_TAKEN, LARGE_TRIES};
use super::link::{Backoff, Link, Session, passes, said};
use crate::error::{Error, Kind};

/// The most calls in one pipeline, and the most bytes before it is cut off.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1024 * 1024;

/// What is called. Each may be called twice with the same effect as once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Script {
    Record,
    Append,
    Keep,
}

impl Script {
    fn text(self) -> &'static str {
        match self {
            Self::Record => include_str!("journal.lua"),
            Self::Append => include_str!("stream.lua"),
            Self::Keep => include_str!("keep.lua"),
        }
    }
}

/// A script to be run, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) script: Script,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<Bytes>,
    pub(super) answer: oneshot::Sender<Result<Value, Error>>,
}

impl Call {
    fn size(&self) -> usize {
        self.arguments.iter().map(Bytes::len).sum()
    }

    fn is_large(&self) -> bool {
        self.size() >= ALWAYS_TAKEN
    }

    fn fail(self, error: impl Into<Error>) {
        // The caller may have given up meanwhile.
        let _ = self.answer.send(Err(error.into()));
    }
}

/// The task that runs the scripts.
#[derive(Debug)]
pub(super) struct Scribe {
    calls: mpsc::Receiver<Call>,
    link: Link,
    closing: CancellationToken,
}

impl Scribe {
    /// Starts it among `tasks`; it takes the calls that are sent to what this returns.
    pub(super) fn start(
        tasks: &TaskTracker,
        link: Link,
        closing: CancellationToken,
    ) -> mpsc::Sender<Call> {
        let (sender, calls) = mpsc::channel(HANDED_OVER);
        tasks.spawn(Self { calls, link, closing }.run());
        sender
    }

    /// Writes until it is closed or has no callers left.
    async fn run(mut self) {
        let mut waiting = Vec::with_capacity(BATCH);
        let closing = self.closing.clone();
        while let Some(1..) =
            closing.run_until_cancelled(self.calls.recv_many(&mut waiting, BATCH)).await
        {
            // Tasks that are ready to run now may add theirs.
            tokio::task::yield_now().await;
            while waiting.len() < BATCH
                && let Ok(call) = self.calls.try_recv()
            {
                waiting.push(call);
            }
            write(waiting.drain(..).collect(), &self.link).await;
        }
        self.calls.close();
        while self.calls.recv_many(&mut waiting, BATCH).await > 0 {
            write(waiting.drain(..).collect(), &self.link).await;
        }
    }
}

/// Runs all of these, however long it takes.
async fn write(mut calls: VecDeque<Call>, link: &Link) {
    let mut backoff = Backoff::default();
    let mut broken = 0;
    while !calls.is_empty() {
        let Some(session) = link.session().await else {
            calls.into_iter().for_each(|call| call.fail(Kind::Closed));
            return;
        };
        // After a failure one by one, so that what breaks connections answers for itself.
        let count = if broken == 0 { portion(&calls) } else { 1 };
        match session.send(&pipeline(calls.iter().take(count), &session)).await {
            Ok(answers) => {
                let before = calls.len();
                settle(&mut calls, answers, &session).await;
                if calls.len() == before {
                    backoff.wait().await;
                } else {
                    (broken, backoff) = (0, Backoff::default());
                }
            }
            Err(error) => {
                broken += 1;
                session.discard();
                if broken > LARGE_TRIES
                    && calls.front().is_some_and(Call::is_large)
                    && let Some(call) = calls.pop_front()
                {
                    let cause = format!("a value broke {broken} connections: {error}");
                    call.fail(Kind::Connection { peer: "Redis".to_owned(), cause });
                }
            }
        }
    }
}

/// How many of these go into one pipeline: at least one.
fn portion(calls: &VecDeque<Call>) -> usize {
    let mut bytes = 0;
    let fits = calls.iter().take_while(|call| {
        bytes += call.size();
        bytes <= BATCH_BYTES
    });
    fits.count().max(1)
}

fn pipeline<'a>(calls: impl Iterator<Item = &'a Call>, session: &Session) -> Pipeline {
    let hash = |script: Script| redis::Script::new(session.script(script.text()));
    let (record, append, keep) = (hash(Script::Record), hash(Script::Append), hash(Script::Keep));
    let mut pipeline = Pipeline::new();
    for Call { script, keys, arguments, .. } in calls {
        let script = match script {
            Script::Record => &record,
            Script::Append => &append,
            Script::Keep => &keep,
        };
        pipeline.cmd("EVALSHA").arg(script.get_hash()).arg(keys.len()).arg(keys);
        for argument in arguments {
            pipeline.arg(&**argument);
        }
    }
    pipeline
}

/// Answers the first calls, one for each answer; those to be made again stay, in their order.
async fn settle(calls: &mut VecDeque<Call>, answers: Vec<Value>, session: &Session) {
    let (mut again, mut unknown_script) = (Vec::new(), false);
    for answer in answers {
        let Some(call) = calls.pop_front() else { break };
        match answer {
            Value::ServerError(error) if error.code() == "NOSCRIPT" => {
                unknown_script = true;
                again.push(call);
            }
            Value::ServerError(error) if passes(&error) => {
                debug!(cause = said(&error), "Redis refuses steps and streams; holding them");
                again.push(call);
            }
            Value::ServerError(error) => {
                call.fail(Kind::Connection { peer: "Redis".to_owned(), cause: said(&error) });
            }
            answer => drop(call.answer.send(Ok(answer))),
        }
    }
    again.into_iter().rev().for_each(|call| calls.push_front(call));
    if unknown_script {
        // If this fails, the session is discarded, and all is tried again on the next one.
        let scripts = [Script::Record, Script::Append, Script::Keep];
        let _ = session.load(&scripts.map(Script::text)).await;
    }
}
