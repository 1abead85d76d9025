//! Marks on revoked tasks: two sorted sets by time, for those that may not start and, of these,
//! for those that are to end even if they run; and a channel by which running workers hear of new
//! ones.

use std::time::Duration;

use redis::{FromRedisValue, Pipeline};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::RedisStore;
use super::link::{Backoff, Link};
use crate::backend::Revocation;
use crate::clock;
use crate::error::Error;
use crate::task::{Revoke, TaskId};

/// The channel of new marks.
pub(super) const CHANNEL: &str = "cs:revoked";
const REVOKED: &str = "cs:revoked";
const TERMINATED: &str = "cs:terminated";
/// A mark outlives any task that still waits in a queue.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Batches that may wait for the worker.
const BACKLOG: usize = 64;

/// What the subscription has to say of marks.
#[derive(Clone, Debug)]
pub(super) enum Rung {
    /// These are new.
    Marks(Vec<Revocation>),
    /// Some may have been missed.
    ReadAll,
}

/// What is published.
#[derive(Debug, Deserialize, Serialize)]
struct Published {
    ids: Vec<String>,
    terminate: bool,
}

/// Reads what was published; anything else that comes there is ignored.
pub(super) fn heard(payload: &[u8]) -> Option<Rung> {
    let Published { ids, terminate } = serde_json::from_slice(payload).ok()?;
    let revoke = if terminate { Revoke::EvenRunning } else { Revoke::IfQueued };
    let marks = ids.into_iter().map(|id| Revocation { id: TaskId::from(id), revoke });
    Some(Rung::Marks(marks.collect()))
}

impl RedisStore {
    /// Marks these tasks, and tells the workers.
    pub(super) async fn mark_revoked(&self, ids: &[TaskId], revoke: Revoke) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        let now = since_epoch();
        let terminate = revoke == Revoke::EvenRunning;
        let mut mark = Pipeline::new();
        for key in [REVOKED].into_iter().chain(terminate.then_some(TERMINATED)) {
            let add = mark.cmd("ZADD").arg(key);
            for id in ids {
                add.arg(now.as_secs()).arg(id.as_str());
            }
            let old = now.saturating_sub(KEPT).as_secs();
            mark.cmd("ZREMRANGEBYSCORE").arg(key).arg("-inf").arg(old);
        }
        let ids = ids.iter().map(ToString::to_string).collect();
        let told = serde_json::to_string(&Published { ids, terminate }).unwrap_or_default();
        mark.cmd("PUBLISH").arg(CHANNEL).arg(told);
        self.ask_soon(move |_| mark).await.map(drop)
    }

    /// All marks there are, then each new one, until the store is closed.
    pub(super) fn follow_revocations(&self) -> mpsc::Receiver<Vec<Revocation>> {
        let (tell, told) = mpsc::channel(BACKLOG);
        let follower = Follower {
            rings: self.bells.revoked.subscribe(),
            link: self.link.clone(),
            tell,
            closing: self.closing.clone(),
        };
        self.tasks.spawn_on(follower.run(), &self.runtime);
        told
    }
}

/// Reads the marks whenever some may have been missed, and passes on those that are heard.
struct Follower {
    rings: broadcast::Receiver<Rung>,
    link: Link,
    tell: mpsc::Sender<Vec<Revocation>>,
    closing: CancellationToken,
}

impl Follower {
    async fn run(mut self) {
        let closing = self.closing.clone();
        closing.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let mut rung = Rung::ReadAll;
        loop {
            let marks = match rung {
                Rung::Marks(marks) => marks,
                Rung::ReadAll => match read_all(&self.link).await {
                    Some(marks) => marks,
                    None => return,
                },
            };
            if self.tell.send(marks).await.is_err() {
                return;
            }
            rung = match self.rings.recv().await {
                Ok(rung) => rung,
                Err(broadcast::error::RecvError::Lagged(_)) => Rung::ReadAll,
                Err(broadcast::error::RecvError::Closed) => return,
            };
        }
    }
}

/// Asks until there is an answer; `None` when the link is closed.
async fn read_all(link: &Link) -> Option<Vec<Revocation>> {
    let mut backoff = Backoff::default();
    let mut read = Pipeline::with_capacity(2);
    for key in [REVOKED, TERMINATED] {
        let old = since_epoch().saturating_sub(KEPT).as_secs();
        read.cmd("ZRANGEBYSCORE").arg(key).arg(old).arg("+inf");
    }
    loop {
        let session = link.session().await?;
        if let Ok(answers) = session.send(&read).await {
            let lists = answers.into_iter().map(Vec::<Vec<u8>>::from_redis_value);
            match lists.collect::<Result<Vec<_>, _>>() {
                Ok(lists) => return Some(marks(lists)),
                Err(error) => warn!("cannot read which tasks were revoked, trying again: {error}"),
            }
        }
        backoff.wait().await;
    }
}

/// An id that is no UTF-8 is no task's.
fn marks(lists: Vec<Vec<Vec<u8>>>) -> Vec<Revocation> {
    let with = lists.into_iter().zip([Revoke::IfQueued, Revoke::EvenRunning]);
    with.flat_map(|(ids, revoke)| {
        let ids = ids.into_iter().filter_map(|id| String::from_utf8(id).ok());
        ids.map(move |id| Revocation { id: TaskId::from(id), revoke })
    })
    .collect()
}

fn since_epoch() -> Duration {
    clock::now().as_duration().unsigned_abs()
}
