//! Marks on revoked tasks: a sorted set by time for the tasks that may not start, another for those of
//! them that must end even if they run, and a channel that announces new marks to running workers.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{FromRedisValue, Pipeline, Value};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::connection::ConnectionHandle;
use super::revocation_events::{CHANNEL, RevocationEvent};
use super::script::Script;
use super::store::RedisStore;
use crate::backend::{Revocation, Revocations};
use crate::clock;
use crate::error::Error;
use crate::task::{Revoke, TaskId};

const REVOKED: &str = "cs:revoked";
const TERMINATED: &str = "cs:terminated";
/// Retention: a mark outlives any task that still waits in a queue.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Marks per script call: Redis serves no other request during the call.
const BATCH: usize = 5_000;
/// Batches that may wait for the worker.
const CHANNEL_CAPACITY: usize = 64;

impl Revocations for RedisStore {
    fn revoke(&self, ids: &[TaskId], revoke: Revoke) -> BoxFuture<'_, Result<(), Error>> {
        let ids = ids.to_vec();
        Box::pin(async move {
            for ids in ids.chunks(BATCH) {
                let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
                self.request_with_timeout(move |connection| {
                    let terminate = u8::from(revoke == Revoke::Terminate);
                    let mut eval = Pipeline::with_capacity(1);
                    eval.cmd("EVALSHA")
                        .arg(connection.hash(Script::Revoke))
                        .arg(2)
                        .arg(REVOKED)
                        .arg(TERMINATED);
                    eval.arg(since_epoch().as_secs())
                        .arg(RETENTION.as_secs())
                        .arg(terminate)
                        .arg(CHANNEL);
                    eval.arg(&ids);
                    eval
                })
                .await?;
            }
            Ok(())
        })
    }

    fn watch_revocations(&self) -> mpsc::Receiver<Vec<Revocation>> {
        let (sender, receiver) = mpsc::channel(CHANNEL_CAPACITY);
        let follower = Follower {
            events: self.notifications.revoked.subscribe(),
            handle: self.handle.clone(),
            sender,
            closing: self.closing.clone(),
        };
        self.tasks.spawn_on(follower.run(), &self.runtime);
        receiver
    }
}

/// Forwards new marks, and re-reads all marks when some may have been missed.
struct Follower {
    events: broadcast::Receiver<RevocationEvent>,
    handle: ConnectionHandle,
    sender: mpsc::Sender<Vec<Revocation>>,
    closing: CancellationToken,
}

impl Follower {
    async fn run(mut self) {
        let closing = self.closing.clone();
        closing.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let mut event = RevocationEvent::ReadAll;
        loop {
            let marks = match event {
                RevocationEvent::Marks(marks) => marks,
                RevocationEvent::ReadAll => match read_all(&self.handle).await {
                    Some(marks) => marks,
                    None => return,
                },
            };
            if self.sender.send(marks).await.is_err() {
                return;
            }
            event = match self.events.recv().await {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(_)) => RevocationEvent::ReadAll,
                Err(broadcast::error::RecvError::Closed) => return,
            };
        }
    }
}

/// Retries until the server answers. Returns `None` when the connection is closed.
async fn read_all(handle: &ConnectionHandle) -> Option<Vec<Revocation>> {
    let mut read = Pipeline::with_capacity(2);
    for key in [REVOKED, TERMINATED] {
        let old = since_epoch().saturating_sub(RETENTION).as_secs();
        read.cmd("ZRANGEBYSCORE").arg(key).arg(old).arg("+inf");
    }
    let decode = |replies: Vec<Value>| {
        let lists = replies.into_iter().map(Vec::<Vec<u8>>::from_redis_value);
        match lists.collect::<Result<Vec<_>, _>>() {
            Ok(lists) => Some(marks(lists)),
            Err(error) => {
                warn!(cause = %error, "cannot read the revoked tasks; retrying");
                None
            }
        }
    };
    handle.send_with_retry(&read, decode).await
}

/// Decodes marks. Skips ids that are not UTF-8: they belong to no task.
fn marks(lists: Vec<Vec<Vec<u8>>>) -> Vec<Revocation> {
    let with = lists.into_iter().zip([Revoke::IfQueued, Revoke::Terminate]);
    with.flat_map(|(ids, revoke)| {
        let ids = ids.into_iter().filter_map(|id| String::from_utf8(id).ok());
        ids.map(move |id| Revocation { id: TaskId::from(id), revoke })
    })
    .collect()
}

fn since_epoch() -> Duration {
    clock::now().as_duration().unsigned_abs()
}
