//! The writer of results. Whatever waits goes out as one pipeline, so that under load a hundred
//! results cost one round trip, and a lone one is not delayed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Pipeline, ServerError, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::link::{Backoff, Link, Session, passes, said};
use super::recent::Recent;
use super::{Keys, REPLY_PREFIX};
use crate::backend::Finish;
use crate::error::{Error, Kind};
use crate::protocol::{Document, PARKED, date};

/// The most results in one pipeline, and the most bytes before it is cut off.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 1024 * 1024;
/// Pipelines on their way at a time: one is written while another is answered.
const IN_FLIGHT: usize = 2;
/// Redis closes the connection on a value over `proto-max-bulk-len`, which is never below 1 MiB.
pub(super) const ALWAYS_TAKEN: usize = 1024 * 1024;
/// How many connections one large document may break before it is given up.
pub(super) const LARGE_TRIES: u32 = 5;

/// The script's word for keeping a result without end.
const FOR_EVER: &str = "0";

/// A result on its way, and who waits for it to be stored (none: it is being re-asserted).
#[derive(Debug)]
pub(super) struct Job {
    pub(super) finish: Finish,
    pub(super) stored: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Job {
    fn is_wanted(&self) -> bool {
        self.stored.as_ref().is_none_or(|stored| !stored.is_closed())
    }

    fn answer(self, outcome: Result<(), Error>) -> Finish {
        if let Some(stored) = self.stored {
            // The caller may have given up meanwhile.
            let _ = stored.send(outcome);
        }
        self.finish
    }
}

/// The task that writes results.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) link: Link,
    pub(super) script: Script,
    pub(super) closing: CancellationToken,
}

impl Writer {
    /// Writes until it is closed or has no callers left.
    pub(super) async fn run(mut self) {
        let mut recent = Recent::default();
        let mut again = VecDeque::new();
        let mut identity: Option<Arc<str>> = None;
        let mut sessions = self.link.clone();
        let mut in_flight = FuturesUnordered::new();
        let mut broom = interval(Duration::from_secs(15));
        broom.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = Vec::with_capacity(BATCH);
        loop {
            let room = in_flight.len() < IN_FLIGHT;
            if room && !again.is_empty() {
                let batch = again.drain(..again.len().min(BATCH)).collect();
                in_flight.push(self.script.store(batch, &self.link));
                continue;
            }
            tokio::select! {
                Some(stored) = in_flight.next(), if !in_flight.is_empty() => {
                    let now = Instant::now();
                    for finish in stored {
                        recent.remember(finish, now);
                    }
                }
                Some(session) = sessions.changed() => {
                    let known = identity.replace(session.identity.clone());
                    if known.is_some_and(|known| known != session.identity) {
                        again.extend(recent.take().map(|finish| Job { finish, stored: None }));
                    }
                }
                taken = self.jobs.recv_many(&mut waiting, BATCH), if room => {
                    if taken == 0 {
                        break;
                    }
                    // Tasks that are ready to run now may add theirs.
                    tokio::task::yield_now().await;
                    while waiting.len() < BATCH && let Ok(job) = self.jobs.try_recv() {
                        waiting.push(job);
                    }
                    in_flight.push(self.script.store(std::mem::take(&mut waiting), &self.link));
                    waiting.reserve(BATCH);
                }
                _ = broom.tick() => recent.forget_old(Instant::now()),
                () = self.closing.cancelled() => break,
            }
        }
        self.jobs.close();
        while let Some(job) = self.jobs.recv().await {
            in_flight.push(self.script.store(vec![job], &self.link));
        }
        while in_flight.next().await.is_some() {}
    }
}

/// How results are stored: the call of the script.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) keys: Keys,
    /// Seconds; `0`: for ever.
    pub(super) expires: String,
}

/// What became of one job in one pipeline.
enum Fate {
    Stored,
    Again(Option<ServerError>),
    Never(Error),
}

impl Script {
    /// Stores all of these, however long it takes; returns those that are new to the server.
    async fn store(&self, batch: Vec<Job>, link: &Link) -> Vec<Finish> {
        let mut stored = Vec::with_capacity(batch.len());
        let mut jobs = VecDeque::from(batch);
        let mut backoff = Backoff::default();
        let mut warned = false;
        let mut broken = 0;
        loop {
            jobs.retain(Job::is_wanted);
            if jobs.is_empty() {
                return stored;
            }
            let Some(session) = link.session().await else {
                jobs.into_iter().for_each(|job| drop(job.answer(Err(Kind::Closed.into()))));
                return stored;
            };
            // After a failure one by one, so that what breaks connections answers for itself.
            let count = if broken == 0 { portion(&jobs) } else { 1 };
            let before = jobs.len();
            match session.send(&self.pipeline(jobs.iter().take(count), &session)).await {
                Ok(answers) => {
                    let refused = self.settle(&mut jobs, answers, &session, &mut stored).await;
                    if let Some(error) = refused.filter(|_| !std::mem::replace(&mut warned, true)) {
                        warn!(cause = said(&error), "Redis refuses results; holding them");
                    }
                    if jobs.len() < before {
                        broken = 0;
                        backoff = Backoff::default();
                        continue;
                    }
                    backoff.wait().await;
                }
                Err(error) => {
                    broken += 1;
                    if broken > LARGE_TRIES
                        && jobs.front().is_some_and(|job| is_large(&job.finish))
                        && let Some(job) = jobs.pop_front()
                    {
                        let peer = "Redis".to_owned();
                        let cause = format!("a result broke {broken} connections: {error}");
                        drop(job.answer(Err(Kind::Connection { peer, cause }.into())));
                    }
                    // The next connection takes its time.
                    session.discard();
                }
            }
        }
    }

    fn pipeline<'a>(&self, jobs: impl Iterator<Item = &'a Job>, session: &Session) -> Pipeline {
        let mut pipeline = Pipeline::new();
        for Job { finish, .. } in jobs {
            let document = &finish.document;
            let reply = finish.reply_to.as_deref().filter(|to| to.starts_with(REPLY_PREFIX));
            pipeline
                .cmd("EVALSHA")
                .arg(&*session.finish)
                .arg("1")
                .arg(self.keys.of(&document.id))
                .arg(&*document.json)
                .arg(if is_parked(document) { FOR_EVER } else { &self.expires })
                .arg(reply.unwrap_or_default())
                .arg(finish.received.map(date).unwrap_or_default());
        }
        pipeline
    }

    /// Answers the first jobs, one for each answer; those to be tried again stay.
    async fn settle(
        &self,
        jobs: &mut VecDeque<Job>,
        answers: Vec<Value>,
        session: &Session,
        stored: &mut Vec<Finish>,
    ) -> Option<ServerError> {
        let mut refused = None;
        let mut unknown_script = false;
        for answer in answers {
            let is_new = matches!(answer, Value::Int(1));
            let Some(job) = jobs.pop_front() else { break };
            match fate(answer, &job.finish) {
                Fate::Stored => {
                    let finish = job.answer(Ok(()));
                    if is_new && finish.document.state.is_terminal() {
                        stored.push(finish);
                    }
                }
                Fate::Never(error) => drop(job.answer(Err(error))),
                Fate::Again(why) => {
                    unknown_script |= why.is_none();
                    refused = refused.or(why);
                    jobs.push_back(job);
                }
            }
        }
        if unknown_script {
            // If this fails too, the session is discarded, and the next one loads it.
            let _ = session.load_finish().await;
        }
        refused
    }
}

/// However long the decision takes, whoever waits finds the task.
fn is_parked(document: &Document) -> bool {
    document.state.as_str() == PARKED
}

fn fate(answer: Value, finish: &Finish) -> Fate {
    let Value::ServerError(error) = answer else {
        return Fate::Stored;
    };
    match error.code() {
        "NOSCRIPT" => Fate::Again(None),
        _ if passes(&error) => Fate::Again(Some(error)),
        _ if is_too_large(&error) => Fate::Never(
            Kind::TooLarge {
                what: "a result",
                size: finish.document.json.len(),
                limit: ALWAYS_TAKEN,
                setting: "proto-max-bulk-len of Redis",
            }
            .into(),
        ),
        _ => Fate::Never(Kind::Connection { peer: "Redis".into(), cause: said(&error) }.into()),
    }
}

fn is_too_large(error: &ServerError) -> bool {
    error.details().is_some_and(|text| text.contains("invalid bulk length"))
}

fn is_large(finish: &Finish) -> bool {
    finish.document.json.len() >= ALWAYS_TAKEN
}

/// How many of these go into one pipeline: at least one.
fn portion(jobs: &VecDeque<Job>) -> usize {
    let mut bytes = 0;
    let fits = jobs.iter().take_while(|job| {
        bytes += job.finish.document.json.len();
        bytes <= BATCH_BYTES
    });
    fits.count().clamp(1, BATCH)
}
